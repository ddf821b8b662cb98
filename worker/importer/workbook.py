"""Reads the rows of a workbook's sheet.

The size is checked before the sheet is held in memory. A cell with an error, or with a formula that
was never computed, is not read as blank.
"""

from __future__ import annotations

import html
import posixpath
import re
import zipfile
from array import array
from itertools import chain, zip_longest
from typing import IO, TYPE_CHECKING, Any, Final

from worker.importer.cells import MERGED, UNREAD, Altered, Priced, is_blank, spreadsheet_value
from worker.importer.number_formats import PLAIN, Styles, styles_of
from worker.importer.sources import Source, read_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from worker.errors import InputError

_BLOCK: Final = 128 * 1024
_PACKED: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""How the parts of a workbook may be compressed."""
_STYLES: Final = "xl/styles.xml"
_COLUMN_BITS: Final = 15
_COLUMN_MASK: Final = (1 << _COLUMN_BITS) - 1
_MOST_MERGED: Final = 200_000
"""Merged cells of all sheets that are held in memory."""


def _scanned(source: Source, file: IO[bytes]) -> dict[str, Sheet]:
    """Return what each part of the workbook holds.

    Raises `InputError` if it is not a workbook, or is too large.
    """
    # A zip file can misstate its own sizes, so every member is unpacked once, and discarded.
    total = merged = 0
    sheets: dict[str, Sheet] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            # The reader accepts other kinds of workbooks, too, but the limits do not fit them.
            if "xl/workbook.xml" not in archive.namelist():
                raise source.problem(
                    "is not a complete XLSX workbook but another zip file or kind of workbook: save"
                    " it as .xlsx or CSV"
                )
            styles = _styles(source, archive)
            for member in archive.infolist():
                if member.compress_type not in _PACKED:
                    raise source.problem(
                        f"is not a workbook that can be read: its part {member.filename!r} is"
                        " compressed as in other zip files; save it as .xlsx or CSV"
                    )
                sheet = sheets[member.filename] = Sheet(source, styles)
                with archive.open(member) as stream:
                    while block := read_block(source, stream, _BLOCK):
                        total += len(block)
                        if total > source.options.max_unpacked_bytes:
                            raise source.too_large()
                        if total > source.options.max_workbook_bytes:
                            raise _workbook_too_large(
                                source,
                                f"unpacks to more than {source.options.max_workbook_bytes:,} bytes",
                            )
                        if member.filename.endswith(".xml"):
                            sheet.grow(block)
                sheet.end()
                merged += sheet.merged_cells
                if merged > _MOST_MERGED:
                    raise _too_many_merged(source)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise _not_complete(source, error) from None
    file.seek(0)
    return sheets


def _not_complete(source: Source, error: Exception) -> InputError:
    return source.problem(
        f"is not a complete XLSX workbook ({error}): save it again as .xlsx or CSV, or copy it"
        " again"
    )


def _styles(source: Source, archive: zipfile.ZipFile) -> Styles:
    if _STYLES not in archive.namelist() or archive.getinfo(_STYLES).compress_type not in _PACKED:
        return PLAIN
    with archive.open(_STYLES) as stream:
        # If the part is longer, the workbook is refused when all parts are unpacked.
        return styles_of(read_block(source, stream, source.options.max_workbook_bytes))


def _workbook_too_large(source: Source, what: str) -> InputError:
    return source.problem(
        f"{what}, and a workbook is held in memory: save the sheet as CSV, which can have any"
        " length"
    )


def _too_many_merged(source: Source) -> InputError:
    return source.problem(
        f"has more than {_MOST_MERGED:,} merged cells: unmerge them, or save the sheet as CSV"
    )


class Sheet:
    """The XML of a sheet, checked while it is unpacked.

    The size of the sheet, and its cells without a value.

    The size matters because a reader holds the whole rectangle from A1 to the last cell, however
    few cells are filled. A cell with an error such as `#N/A`, or with a formula that was never
    computed, would be read as blank although it is not.
    """

    _END: Final = re.compile(rb"</(?:[A-Za-z0-9]+:)?sheetData\s*>")
    # No tag is read beyond the next <, so that one without an end costs little. The last group is
    # the first character of a tag's text, if the tag has a text.
    _TAG: Final = re.compile(rb"<(?:[A-Za-z0-9]+:)?(row|c)(?=[\s/>])([^<>]*)>()")
    _TAGS: Final = re.compile(rb"<(?:[A-Za-z0-9]+:)?(row|c|f|v)(?=[\s/>])([^<>]*)>([^<]?)")
    _SUSPECT: Final = re.compile(rb"""<(?:[A-Za-z0-9]+:)?f[\s/>]|\st=["']e["']""")
    _ADDRESS: Final = re.compile(rb"""\sr=["']([A-Z]{0,3})([0-9]{1,7})["']""")
    _ERROR: Final = re.compile(rb"""\st=["']e["']""")
    _MERGED: Final = re.compile(
        rb"""<(?:[A-Za-z0-9]+:)?mergeCell\s[^<>]*?\bref=["']"""
        rb"""([A-Z]{1,3})([0-9]{1,7}):([A-Z]{1,3})([0-9]{1,7})["']"""
    )
    _TEXT: Final = re.compile(rb"""\st=["']str["']""")
    _STYLE: Final = re.compile(rb"""\ss=["']([0-9]+)["']""")
    _NOT_NUMBER: Final = re.compile(rb"""\st=["'](?!n["'])""")

    def __init__(self, source: Source, styles: Styles = PLAIN) -> None:
        self._source = source
        self._styles = styles
        self._has_styles = any(styles)
        self.priced = array("Q")
        """The row, shifted, and the column, from 1, of each cell that shows a number as money."""
        self.altered = array("Q")
        """The same of each cell that shows another number than it holds."""
        self._rest = b""
        self._row = self._column = 0
        self._rows = self._columns = 0
        self._formula = False
        """Whether the current cell has a formula but, so far, no result."""
        self._over = False
        """Whether all cells were seen: what follows, as a list of choices, has other formulas."""
        self._cell = b""
        """The attributes of the current cell."""
        self.hidden = 0
        """The number of hidden rows, such as rows behind a filter."""
        self.unread: set[tuple[int, int]] = set()
        """The row and the column, from 1, of each cell without a value."""
        self.merged_cells = 0
        self.merged: dict[int, dict[int, tuple[int, int]]] = {}
        """By row and column, from 1, the row and the column whose value a merged cell shows."""

    def grow(self, block: bytes) -> None:
        """Checks the next bytes of a sheet; raises `InputError` as soon as it is too large."""
        block = self._rest + block
        # All before the last tag: its own text may be in the next block.
        end = max(block.rfind(b"<"), 0)
        self._rest = block[end:]
        if not self._over and (last := self._END.search(block)) is not None:
            self._check(block[: last.start()])
            self.end()
            self._over = True
            self._after(block[last.start() : end])
        elif self._over:
            self._after(block[:end])
        else:
            self._check(block[:end])
        if self._rows * self._columns > (most := self._source.options.max_workbook_cells):
            what = (
                f"spans {self._rows:,} rows and {self._columns:,} columns, more than {most:,} cells"
            )
            raise _workbook_too_large(self._source, what)

    def _after(self, block: bytes) -> None:
        """Checks what follows the cells, and notes which of them are merged."""
        self._check(block)
        for left, top, right, bottom in self._MERGED.findall(block):
            first, last = _column_number(left), min(_column_number(right), self._columns)
            rows = range(int(top), min(int(bottom), self._rows) + 1)
            self.merged_cells += max(0, last - first + 1) * len(rows)
            if self.merged_cells > _MOST_MERGED:
                raise _too_many_merged(self._source)
            for row in rows:
                shown = dict.fromkeys(range(first, last + 1), (int(top), first))
                self.merged.setdefault(row, {}).update(shown)

    def _check(self, block: bytes) -> None:
        """Checks the tags in whole tags and texts."""
        # Most sheets have no formula, so half of the tags need no check.
        has_formulas = not self._over and (self._formula or self._SUSPECT.search(block))
        for kind, attributes, text in (self._TAGS if has_formulas else self._TAG).findall(block):
            if kind == b"f":
                self._formula = True
            elif kind == b"v":
                self._formula = self._formula and not self._is_result(attributes, text)
            else:
                self._next(kind, attributes)

    def _is_result(self, attributes: bytes, text: bytes) -> bool:
        """Return whether a value is a result: only that of a formula for text may be empty."""
        if self._TEXT.search(self._cell):
            return True
        # What follows an empty tag is not its text.
        return bool(text) and not attributes.endswith(b"/")

    def _next(self, kind: bytes, attributes: bytes) -> None:
        """Moves to the next row or cell."""
        if self._formula:
            self.unread.add((self._row, self._column))
            self._formula = False
        address = self._ADDRESS.search(attributes)
        if kind == b"row":
            # A row or cell without an address follows the previous one.
            self._row = int(address[2]) if address else self._row + 1
            self._column = 0
            self.hidden += b' hidden="1"' in attributes or b' hidden="true"' in attributes
        elif address:
            self._row, self._column = int(address[2]), _column_number(address[1])
        else:
            self._column += 1
        if kind == b"c":
            self._cell = attributes
            if self._ERROR.search(attributes):
                self.unread.add((self._row, self._column))
            if self._has_styles:
                self._note_style(attributes)
        self._rows, self._columns = max(self._rows, self._row), max(self._columns, self._column)

    def _note_style(self, attributes: bytes) -> None:
        found = self._STYLE.search(attributes)
        # A cell that names no style has the first one.
        style = found[1] if found else b"0"
        for styles, cells in zip(self._styles, (self.priced, self.altered), strict=True):
            if style in styles and self._NOT_NUMBER.search(attributes) is None:
                cells.append(self._row << _COLUMN_BITS | self._column)

    def end(self) -> None:
        """Notes the last cell if it has a formula without a result."""
        if self._formula:
            self.unread.add((self._row, self._column))
            self._formula = False


def _column_number(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number


def sheet_rows(source: Source, file: IO[bytes]) -> Iterator[list[object]]:
    """Yield all rows of the sheet to import; cells without a value are `UNREAD`."""
    sheets = _scanned(source, file)
    members = _members(file)
    name, before, rows = _chosen(source, file)
    # If the part that holds the sheet is unknown, the findings in all parts count.
    known = [sheets[members[name]]] if members.get(name) in sheets else [*sheets.values()]
    source.hidden_rows = sum(sheet.hidden for sheet in known)
    unread: dict[int, list[int]] = {}
    for sheet in known:
        for row, column in sheet.unread:
            if column > before:
                unread.setdefault(row, []).append(column - before)
    mark_priced = _marker((sheet.priced for sheet in known), before, _priced)
    mark_altered = _marker((sheet.altered for sheet in known), before, _altered)
    has_names = False
    filled: set[tuple[int, int]] = set()
    for number, found in enumerate(_to_row(rows, max(unread, default=0)), 1):
        cells = [*found]
        for column in unread.get(number, ()):
            cells += [""] * (column - len(cells))
            if cells[column - 1] in {"", None}:
                cells[column - 1] = UNREAD
        mark_priced(number, cells)
        mark_altered(number, cells)
        # A row of blanks is none, and the name of a column may be merged with its neighbour.
        if not all(map(is_blank, cells)):
            for sheet in known if has_names else ():
                _mark_merged(cells, before, sheet.merged.get(number, {}), number, filled)
            has_names = True
        yield cells


def _to_row(rows: Iterator[Sequence[object]], last: int) -> Iterator[Sequence[object]]:
    """Yield the rows, and blank ones to the last.

    The reader ends at the last value, and rows below it may hold formulas without a result.
    """
    for found, _ in zip_longest(rows, range(last), fillvalue=()):
        yield found


def _priced(value: object) -> object:
    return Priced(value) if type(value) is int else value


def _altered(value: object) -> object:
    return Altered(value) if type(value) is int or type(value) is float else value


def _marker(
    places: Iterable[Iterable[int]], before: int, marked: Callable[[object], object]
) -> Callable[[int, list[object]], None]:
    """Return the function that marks the numbers of a row at these places, row by row."""
    left = iter(sorted(chain.from_iterable(places)))
    ahead = next(left, None)

    def mark(number: int, cells: list[object]) -> None:
        nonlocal ahead
        while ahead is not None and ahead >> _COLUMN_BITS <= number:
            at = (ahead & _COLUMN_MASK) - before - 1
            if 0 <= at < len(cells):
                cells[at] = marked(spreadsheet_value(cells[at]))
            ahead = next(left, None)

    return mark


def _mark_merged(
    cells: list[object],
    before: int,
    merged: Mapping[int, tuple[int, int]],
    number: int,
    filled: set[tuple[int, int]],
) -> None:
    """Mark the blank cells of a row that show the value of another one.

    `filled` are the cells with a value that others show, of this row and those above.
    """
    for column, shown in sorted(merged.items()):
        at = column - before - 1
        if not 0 <= at < len(cells):
            continue
        if not is_blank(cells[at]):
            if shown == (number, column):
                filled.add(shown)
        elif shown in filled:
            cells[at] = MERGED


def _members(file: IO[bytes]) -> dict[str, str]:
    """Return the workbook's part that holds each sheet, for sheets whose part is stated plainly."""
    with zipfile.ZipFile(file) as archive:
        try:
            book, relations = (
                archive.read("xl/workbook.xml"),
                archive.read("xl/_rels/workbook.xml.rels"),
            )
        except (KeyError, OSError, zipfile.BadZipFile):
            return {}
        finally:
            file.seek(0)
    targets = {each.get("Id"): each.get("Target", "") for each in _tags(relations, "Relationship")}
    return {
        each["name"]: (
            posixpath.normpath(posixpath.join("/xl", targets.get(each.get("id"), ""))).lstrip("/")
        )
        for each in _tags(book, "sheet")
        if "name" in each
    }


def _tags(xml: bytes, name: str) -> Iterator[dict[str, str]]:
    """Yield the attributes of each tag with this name, both without their prefix."""
    text = xml.decode("utf-8", errors="replace")
    for tag in re.findall(rf"<(?:\w+:)?{name}\s([^<>]*)>", text):
        yield {
            key: html.unescape(value)
            # Only from a word's begin: else a long one would be read again from each character.
            for key, _, value in re.findall(r"\b(\w+)=([\"'])(.*?)\2", tag)
        }


def _chosen(source: Source, file: IO[bytes]) -> tuple[str, int, Iterator[Sequence[object]]]:
    """Return the name of the sheet to import, its empty columns before the first, and its rows.

    The rows have no cells of these columns.
    """
    try:
        import python_calamine as calamine  # noqa: PLC0415 - an extra, needed only to read XLSX
    except ImportError:
        raise source.problem(
            "reading XLSX needs the extra xlsx: run pip install 'refund-worker[xlsx]', or save the"
            " sheet as CSV"
        ) from None
    try:
        with calamine.CalamineWorkbook.from_filelike(file) as workbook:
            sheets = [
                sheet.name
                for sheet in workbook.sheets_metadata
                if sheet.typ is calamine.SheetTypeEnum.WorkSheet
                and sheet.visible is calamine.SheetVisibleEnum.Visible
            ]
            wanted = source.options.sheet
            if wanted is not None:
                if wanted not in workbook.sheet_names:
                    raise source.problem(
                        f"has no sheet {wanted!r}: its sheets are {', '.join(sheets)}"
                    )
                return wanted, *_iterated(workbook, wanted)
            filled = [name for name in sheets if workbook.get_sheet_by_name(name).height > 0]
            if not filled:
                raise source.problem("no sheet has cells: name another file")
            if len(filled) > 1:
                raise source.problem(
                    f"has several sheets with rows ({', '.join(filled)}): name the right one"
                    " with --sheet"
                )
            return filled[0], *_iterated(workbook, filled[0])
    except (
        calamine.CalamineError,
        calamine.PasswordError,
        calamine.XmlError,
        calamine.ZipError,
    ) as error:
        raise _not_complete(source, error) from None


def _iterated(workbook: Any, name: str) -> tuple[int, Iterator[Sequence[object]]]:
    sheet = workbook.get_sheet_by_name(name)
    rows: Iterator[Sequence[object]] = sheet.iter_rows()
    # An empty sheet has no start.
    return (sheet.start or (0, 0))[1], rows
