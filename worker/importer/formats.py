"""Rows out of a file: CSV, JSON lines, XLSX, none of them guessed at.

A file that is not what it claims to be raises `InputError` with line and column. Blank lines, and rows in which every
cell is blank, are no rows. Text streams; of a workbook the whole sheet is in memory while it is read, some 600 bytes
a row, so a workbook beyond a cap is refused and a season of a million rows is handed in as CSV.
"""

from __future__ import annotations

import csv
import json
import math
import re
import zipfile
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from worker.importer.cells import spreadsheet_value, text_of, unguarded
from worker.importer.columns import ALIASES, columns_of, field_of
from worker.importer.options import DELIMITERS
from worker.importer.sources import Source, read_block

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator, Sequence

    from worker.errors import InputError

_BLOCK = 128 * 1024


class Row(NamedTuple):
    """One row: the physical line on which it starts, its place among the rows from 0, the columns' names and values.

    `names` is one and the same tuple for all rows of a file that has a header.
    """

    line: int
    ordinal: int
    names: tuple[str, ...]
    values: Sequence[object]


def read_rows(source: Source) -> Iterator[Row]:
    """Yield the rows of a source from its start; raises `InputError` if there is none."""
    read = {"csv": _csv_rows, "jsonl": _json_rows, "xlsx": _xlsx_rows}[source.format]
    rows = read(source)
    first = next(rows, None)
    if first is None:
        raise source.problem("holds a header and no rows" if source.format != "jsonl" else "holds no rows")
    yield first
    yield from rows
    source.check_unchanged()


def delimiter_of(source: Source) -> str | None:
    """Return what separates the columns of a CSV: as stated, else as the header line shows; None for other formats."""
    if source.format != "csv":
        return None
    if source.options.delimiter is not None:
        return source.options.delimiter
    text = source.head.decode("utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    scores = []
    for rank, delimiter in enumerate(DELIMITERS):
        header = next(csv.reader(lines, delimiter=delimiter), [])
        fields = [field_of(unguarded(name)) for name in header]
        known = sum(field in ALIASES or field.startswith("metadata.") for field in fields)
        scores.append((known, len(header), -rank, delimiter))
    return max(scores)[-1]


def describe(source: Source) -> str:
    """Return what the file was taken for, in words: `CSV, semicolon-separated, gzipped`."""
    words = {"csv": "CSV", "jsonl": "JSON lines", "xlsx": "XLSX"}[source.format]
    if (delimiter := delimiter_of(source)) is not None:
        words += f", {DELIMITERS[delimiter]}-separated"
    return f"{words}, gzipped" if source.packed else words


class _Lines:
    """Lines of text on their way to the CSV reader; `taken` counts the characters of the present row."""

    def __init__(self, source: Source, text: io.TextIOWrapper) -> None:
        self._source = source
        self._text = text
        self.taken = 0
        self.guarded = False
        """Whether an apostrophe was seen since the row began: without one no cell can be guarded."""

    def __iter__(self) -> Iterator[str]:
        limit = self._source.options.max_row_bytes
        number = 0
        for number, line in enumerate(self._text, 1):
            self.taken += len(line)
            if self.taken > limit:
                raise self._source.problem(
                    f"the row is longer than {limit:,} bytes: perhaps a quotation mark is not closed", line=number
                )
            if "'" in line:
                self.guarded = True
            yield line


def _csv_rows(source: Source) -> Iterator[Row]:
    with source.text() as text:
        lines = _Lines(source, text)
        reader = csv.reader(iter(lines), delimiter=delimiter_of(source) or ",", strict=True)
        names: tuple[str, ...] | None = None
        start, ordinal = 1, 0
        try:
            for values in reader:
                line, start = start, reader.line_num + 1
                if lines.guarded:
                    values = [unguarded(value) for value in values]  # noqa: PLW2901 - rarely, and then for all below
                    lines.guarded = False
                lines.taken = 0
                if not any(values):
                    continue
                if names is None:
                    names = _header(source, values, line)
                    continue
                if len(values) != len(names):
                    raise source.problem(_ragged(values, names), line=line, column=min(len(values), len(names)) + 1)
                yield Row(line, ordinal, names, values)
                ordinal += 1
        except csv.Error as error:
            raise source.problem(f"is no CSV: {_csv_reason(error)}", line=start) from None
        if names is None:
            raise source.problem("is empty")


def _header(source: Source, names: Sequence[str], line: int) -> tuple[str, ...]:
    problems = columns_of(tuple(names), source.options, objects=False).problems
    if problems:
        said = "; ".join(f"column {problem.column!r} {problem.rule}" for problem in problems)
        raise source.problem(said, line=line, column=problems[0].place)
    return tuple(names)


def _ragged(values: Sequence[object], names: Sequence[str]) -> str:
    return f"the row has {len(values)} cells and the header has {len(names)}: is a cell with a delimiter not quoted?"


def _csv_reason(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text or "unexpected end of data" in text:
        return "a quotation mark that opens a cell in this row is never closed"
    if "expected after" in text:
        return "a quotation mark inside a cell must be doubled, and its cell quoted"
    return text


def _json_rows(source: Source) -> Iterator[Row]:
    limit = source.options.max_row_bytes
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant)
    ordinal = 0
    names: tuple[str, ...] = ()
    with source.text() as text:
        text.reconfigure(newline="\n")
        for line, entry in enumerate(text, 1):
            if len(entry) > limit:
                raise source.problem(f"the line is longer than {limit:,} bytes", line=line)
            stripped = entry.strip()
            if not stripped:
                continue
            try:
                found = decoder.decode(stripped)
            except json.JSONDecodeError as error:
                column = error.pos + 1 + len(entry) - len(entry.lstrip())
                raise source.problem(f"is no JSON: {error.msg}", line=line, column=column) from None
            except (ValueError, RecursionError) as error:
                reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise source.problem(reason, line=line) from None
            if not isinstance(found, dict):
                raise source.problem("each line must be one JSON object", line=line)
            if tuple(found) != names:
                names = tuple(found)
            yield Row(line, ordinal, names, tuple(found.values()))
            ordinal += 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _xlsx_rows(source: Source) -> Iterator[Row]:
    with source.workbook() as file:
        _check_zip(source, file)
        cells = _sheet_rows(source, file)
        names: tuple[str, ...] | None = None
        ordinal = 0
        for line, found in enumerate(cells, 1):
            values = [spreadsheet_value(value) for value in found]
            if all(value in ("", None) for value in values):
                continue
            if names is None:
                header = [(text_of(value) or "") for value in values]
                while header and not header[-1]:
                    header.pop()
                names = _header(source, header, line)
                continue
            width = len(names)
            if any(value not in ("", None) for value in values[width:]):
                raise source.problem("a cell stands to the right of the last named column", line=line, column=width + 1)
            yield Row(line, ordinal, names, [*values[:width], *[""] * (width - len(values))])
            ordinal += 1
    if names is None:
        raise source.problem("is empty: the sheet has no cells")


def _check_zip(source: Source, file: IO[bytes]) -> None:
    # What a zip says of its own sizes may be a lie, so every member is unpacked once, into nothing.
    total = 0
    try:
        with zipfile.ZipFile(file) as archive:
            # Another kind of workbook would be read too, and none of the caps fits it.
            if "xl/workbook.xml" not in archive.namelist():
                raise source.problem("is no whole XLSX workbook: perhaps another zip file, or another kind of workbook")
            for member in archive.infolist():
                rectangle = _Rectangle(source)
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
                            rectangle.grow(block)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise source.problem(f"is no whole XLSX workbook: {error}") from None
    file.seek(0)


def _workbook_too_large(source: Source, what: str) -> InputError:
    return source.problem(f"{what}, and a workbook is held in memory: save the sheet as CSV, which may have any length")


class _Rectangle:
    """The rectangle from A1 to a sheet's last cell: so much a reader holds, however few of its cells are filled."""

    _TAG: Final = re.compile(rb"<(?:[A-Za-z0-9]+:)?(row|c)(?=[\s/>])([^>]*)>")
    _PLACE: Final = re.compile(rb"""\sr=["']([A-Z]{0,3})([0-9]{1,7})["']""")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rest = b""
        self._row = self._column = 0
        self._rows = self._columns = 0

    def grow(self, block: bytes) -> None:
        """Look at the next bytes of a sheet; raises `InputError` as soon as the rectangle is too large."""
        block = self._rest + block
        end = block.rfind(b">") + 1
        self._rest = block[end:]
        for kind, attributes in self._TAG.findall(block[:end]):
            place = self._PLACE.search(attributes)
            if kind == b"row":
                # A row or cell that does not say where it stands follows the one before.
                self._row = int(place[2]) if place else self._row + 1
                self._column = 0
            elif place:
                self._row, self._column = int(place[2]), _column_number(place[1])
            else:
                self._column += 1
            self._rows, self._columns = max(self._rows, self._row), max(self._columns, self._column)
        if self._rows * self._columns > (most := self._source.options.max_workbook_cells):
            what = f"reaches over {self._rows:,} rows and {self._columns:,} columns, more than {most:,} cells"
            raise _workbook_too_large(self._source, what)


def _column_number(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number


def _sheet_rows(source: Source, file: IO[bytes]) -> Iterable[Sequence[object]]:
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
                return _iterated(workbook, wanted)
            filled = [name for name in sheets if workbook.get_sheet_by_name(name).height > 0]
            if not filled:
                raise source.problem("is empty: no sheet has cells")
            if len(filled) > 1:
                raise source.problem(f"has several sheets with rows ({', '.join(filled)}): say which to import")
            return _iterated(workbook, filled[0])
    except (calamine.CalamineError, calamine.PasswordError, calamine.XmlError, calamine.ZipError) as error:
        raise source.problem(f"is no whole XLSX workbook: {error}") from None


def _iterated(workbook: Any, name: str) -> Iterator[Sequence[object]]:
    rows: Iterator[Sequence[object]] = workbook.get_sheet_by_name(name).iter_rows()
    return rows
