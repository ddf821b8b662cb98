"""The rows of a workbook's sheet: size checked before it is held, no cell without a value taken for a blank one."""

from __future__ import annotations

import html
import posixpath
import re
import zipfile
from typing import IO, TYPE_CHECKING, Any, Final

from worker.importer.cells import UNREAD
from worker.importer.sources import Source, read_block

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.errors import InputError

_BLOCK: Final = 128 * 1024


def _scanned(source: Source, file: IO[bytes]) -> dict[str, Sheet]:
    """Return what was seen in each part of the workbook; raises `InputError` if it is none, or too large."""
    # What a zip says of its own sizes may be a lie, so every member is unpacked once, into nothing.
    total = 0
    sheets: dict[str, Sheet] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            # Another kind of workbook would be read too, and none of the caps fits it.
            if "xl/workbook.xml" not in archive.namelist():
                raise source.problem(
                    "is not a whole XLSX workbook: perhaps another zip file, or another kind of workbook"
                )
            for member in archive.infolist():
                sheet = sheets[member.filename] = Sheet(source)
                with archive.open(member) as stream:
                    while block := read_block(source, stream, _BLOCK):
                        total += len(block)
                        if total > source.options.max_unpacked_bytes:
                            raise source.too_large()
                        if total > source.options.max_workbook_bytes:
                            raise _workbook_too_large(
                                source, f"unpacks to more than {source.options.max_workbook_bytes:,} bytes"
                            )
                        if member.filename.endswith(".xml"):
                            sheet.grow(block)
                sheet.end()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise source.problem(f"is not a whole XLSX workbook: {error}") from None
    file.seek(0)
    return sheets


def _workbook_too_large(source: Source, what: str) -> InputError:
    return source.problem(f"{what}, and a workbook is held in memory: save the sheet as CSV, which may have any length")


class Sheet:
    """A sheet's XML, looked at as it is unpacked: how far its cells reach, and which of them have no value.

    A reader holds the whole rectangle from A1 to the last cell, however few of its cells are filled. A cell with an
    error such as `#N/A`, or with a formula that was never computed, would be read as a blank one: nobody has said that
    it is blank.
    """

    _TAG: Final = re.compile(rb"<(?:[A-Za-z0-9]+:)?(row|c)(?=[\s/>])([^>]*)>")
    _TAGS: Final = re.compile(rb"<(?:[A-Za-z0-9]+:)?(row|c|f|v)(?=[\s/>])([^>]*)>")
    _SUSPECT: Final = re.compile(rb"""<(?:[A-Za-z0-9]+:)?f[\s/>]|\st=["']e["']""")
    _ADDRESS: Final = re.compile(rb"""\sr=["']([A-Z]{0,3})([0-9]{1,7})["']""")
    _ERROR: Final = re.compile(rb"""\st=["']e["']""")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rest = b""
        self._row = self._column = 0
        self._rows = self._columns = 0
        self._formula = False
        """Whether the present cell has a formula of which no result was seen yet."""
        self.hidden = 0
        """Rows that a person who looks at the sheet does not see, as behind a filter."""
        self.unread: set[tuple[int, int]] = set()
        """Rows and columns, from 1, of the cells that have no value."""

    def grow(self, block: bytes) -> None:
        """Look at the next bytes of a sheet; raises `InputError` as soon as it is too large."""
        block = self._rest + block
        end = block.rfind(b">") + 1
        self._rest = block[end:]
        # Most sheets have no formula, and then half of the tags need no look.
        tags = self._TAGS if self._formula or self._SUSPECT.search(block) else self._TAG
        for kind, attributes in tags.findall(block[:end]):
            if kind == b"f":
                self._formula = True
            elif kind == b"v":
                self._formula = self._formula and attributes.endswith(b"/")
            else:
                self._next(kind, attributes)
        if self._rows * self._columns > (most := self._source.options.max_workbook_cells):
            what = f"reaches over {self._rows:,} rows and {self._columns:,} columns, more than {most:,} cells"
            raise _workbook_too_large(self._source, what)

    def _next(self, kind: bytes, attributes: bytes) -> None:
        """Go on to the next row or cell."""
        if self._formula:
            self.unread.add((self._row, self._column))
            self._formula = False
        address = self._ADDRESS.search(attributes)
        if kind == b"row":
            # A row or cell that does not say where it stands follows the one before.
            self._row = int(address[2]) if address else self._row + 1
            self._column = 0
            self.hidden += b' hidden="1"' in attributes or b' hidden="true"' in attributes
        elif address:
            self._row, self._column = int(address[2]), _column_number(address[1])
        else:
            self._column += 1
        if kind == b"c" and self._ERROR.search(attributes):
            self.unread.add((self._row, self._column))
        self._rows, self._columns = max(self._rows, self._row), max(self._columns, self._column)

    def end(self) -> None:
        """Note what the last cell leaves open."""
        if self._formula:
            self.unread.add((self._row, self._column))


def _column_number(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number


def sheet_rows(source: Source, file: IO[bytes]) -> Iterator[list[object]]:
    """Yield the rows of the one sheet that is to be imported, from the first on; cells without a value are `UNREAD`."""
    sheets = _scanned(source, file)
    members = _members(file)
    name, rows = _chosen(source, file)
    # A sheet of which it is not known where it stands is taken for each of them.
    known = [sheets[members[name]]] if members.get(name) in sheets else [*sheets.values()]
    source.hidden_rows = sum(sheet.hidden for sheet in known)
    unread: dict[int, list[int]] = {}
    for sheet in known:
        for row, column in sheet.unread:
            unread.setdefault(row, []).append(column)
    for number, found in enumerate(rows, 1):
        cells = [*found]
        for column in unread.get(number, ()):
            cells += [""] * (column - len(cells))
            if cells[column - 1] in {"", None}:
                cells[column - 1] = UNREAD
        yield cells


def _members(file: IO[bytes]) -> dict[str, str]:
    """Return in which part of a workbook each sheet stands, as far as the workbook says so plainly."""
    with zipfile.ZipFile(file) as archive:
        try:
            book, relations = archive.read("xl/workbook.xml"), archive.read("xl/_rels/workbook.xml.rels")
        except (KeyError, OSError, zipfile.BadZipFile):
            return {}
        finally:
            file.seek(0)
    targets = {each.get("Id"): each.get("Target", "") for each in _tags(relations, "Relationship")}
    return {
        each["name"]: posixpath.normpath(posixpath.join("/xl", targets.get(each.get("id"), ""))).lstrip("/")
        for each in _tags(book, "sheet")
        if "name" in each
    }


def _tags(xml: bytes, name: str) -> Iterator[dict[str, str]]:
    """Yield the attributes of each tag of a name, both without their prefix."""
    text = xml.decode("utf-8", errors="replace")
    for tag in re.findall(rf"<(?:\w+:)?{name}\s([^>]*)>", text):
        yield {key: html.unescape(value) for key, _, value in re.findall(r"([\w]+)=([\"'])(.*?)\2", tag)}


def _chosen(source: Source, file: IO[bytes]) -> tuple[str, Iterator[Sequence[object]]]:
    """Return the name of the sheet to import, and its rows."""
    try:
        import python_calamine as calamine  # noqa: PLC0415 - an extra: only who reads XLSX needs it
    except ImportError:
        raise source.problem(
            "reading XLSX needs the extra xlsx: run pip install 'refund-worker[xlsx]', or save the sheet as CSV"
        ) from None
    try:
        with calamine.CalamineWorkbook.from_filelike(file) as workbook:
            sheets = [
                sheet.name
                for sheet in workbook.sheets_metadata
                if sheet.typ is calamine.SheetTypeEnum.WorkSheet and sheet.visible is calamine.SheetVisibleEnum.Visible
            ]
            wanted = source.options.sheet
            if wanted is not None:
                if wanted not in workbook.sheet_names:
                    raise source.problem(f"has no sheet {wanted!r}: its sheets are {', '.join(sheets)}")
                return wanted, _iterated(workbook, wanted)
            filled = [name for name in sheets if workbook.get_sheet_by_name(name).height > 0]
            if not filled:
                raise source.problem("is empty: no sheet has cells")
            if len(filled) > 1:
                raise source.problem(f"has several sheets with rows ({', '.join(filled)}): say which to import")
            return filled[0], _iterated(workbook, filled[0])
    except (calamine.CalamineError, calamine.PasswordError, calamine.XmlError, calamine.ZipError) as error:
        raise source.problem(f"is not a whole XLSX workbook: {error}") from None


def _iterated(workbook: Any, name: str) -> Iterator[Sequence[object]]:
    rows: Iterator[Sequence[object]] = workbook.get_sheet_by_name(name).iter_rows()
    return rows
