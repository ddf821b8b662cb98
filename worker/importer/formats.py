"""Reads the rows of a file in CSV, JSON lines or XLSX, without guessing.

A file that breaks its format raises `InputError` with line and column. Blank lines, and rows in
which every cell is blank, are not rows. Text streams. The whole sheet of a workbook is in memory
while it is read, about 600 bytes a row, so a workbook above the cap is refused; a million rows are
imported as CSV.
"""

from __future__ import annotations

import csv
import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from worker.importer.cells import BLANKS, Rounded, is_blank, spreadsheet_value, text_of, unguarded
from worker.importer.columns import ALIASES, IGNORE_HINT, columns_of, fields_of
from worker.importer.options import DELIMITERS
from worker.importer.sources import EMPTY
from worker.importer.workbook import sheet_rows

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator, Sequence

    from worker.importer.sources import Source

_END_MARK: Final = "\x1a"
# A first line for Excel that names the delimiter of the cells below it.
_SEPARATOR_LINE: Final = re.compile(r'"?sep=([^"\r\n])"?[;,\t ]*[\r\n]*', re.IGNORECASE)


class Layout(NamedTuple):
    """What the columns of a file must be.

    `header` returns their names as they are read, and raises `InputError` if they cannot be used.
    `least` returns how many cells a row must have; each column after them may be blank.
    """

    header: Callable[[Source, list[str], int], tuple[str, ...]]
    least: Callable[[Source, tuple[str, ...]], int]
    may_be_empty: bool = False
    """Whether a header without rows, or an empty line of JSON lines, is a file too."""


class Row(NamedTuple):
    """One row: the physical line it starts on, its number from 0, the columns' names and values.

    `names` is the same object for all rows of a file that has a header.
    """

    line: int
    ordinal: int
    names: tuple[str, ...]
    values: Sequence[object]


def read_rows(source: Source, layout: Layout | None = None) -> Iterator[Row]:
    """Yield the rows of a source from its start; raises `InputError` if it has none.

    The layout is that of refunds to be imported if none is given.
    """
    layout = layout or REFUNDS
    if source.format == "jsonl":
        rows = _json_rows(source)
    else:
        rows = (_csv_rows if source.format == "csv" else _xlsx_rows)(source, layout)
    first = next(rows, None)
    if first is not None:
        yield first
        yield from rows
    elif not layout.may_be_empty:
        found = "has a header but no rows" if source.format != "jsonl" else "has no rows"
        raise source.problem(f"{found}: export it again, or name another file")
    source.check_unchanged()


def delimiter_of(source: Source) -> str | None:
    """Return the delimiter of a CSV: the stated one, else the one in its first lines.

    None for other formats.
    """
    if source.format != "csv":
        return None
    if source.options.delimiter is not None:
        return source.options.delimiter
    if (named := separator_named(source)) is not None:
        if named not in DELIMITERS:
            allowed = "use comma, semicolon or tab"
            raise source.problem(
                f"{f'sep={named}'!r} names a delimiter that is not supported: {allowed}", line=1
            )
        return named
    text = source.head.decode("utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines(keepends=True) if line.strip(BLANKS)]
    scores = []
    for rank, delimiter in enumerate(DELIMITERS):
        rows = csv.reader(lines, delimiter=delimiter)
        header = next((row for row in rows if not all(map(is_blank, row))), [])
        fields = fields_of(map(unguarded, header), source.options)
        known = sum(field in ALIASES or field.startswith("metadata.") for field in fields)
        scores.append((known, len(header), -rank, delimiter))
    return max(scores)[-1]


def separator_named(source: Source) -> str | None:
    """Return the character that Excel's first line `sep=;` names.

    None for a CSV without such a line.
    """
    first = source.head.decode("utf-8-sig", errors="replace").replace("\r", "\n").partition("\n")[0]
    match = _SEPARATOR_LINE.fullmatch(first)
    return None if match is None else match[1]


def describe(source: Source) -> str:
    """Return the format of the file in words: `CSV, semicolon-separated, gzipped`."""
    words = {"csv": "CSV", "jsonl": "JSON lines", "xlsx": "XLSX"}[source.format]
    if (delimiter := delimiter_of(source)) is not None:
        words += f", {DELIMITERS[delimiter]}-separated"
    return f"{words}, gzipped" if source.packed else words


class _Lines:
    """The lines of text for the CSV reader; `taken` counts the characters of the current row."""

    def __init__(self, source: Source, text: io.TextIOWrapper) -> None:
        self._source = source
        self._text = text
        self.taken = 0
        self.last = ""
        self.guarded = False
        """Whether the current row has an apostrophe so far; without one no cell can be guarded."""

    def __iter__(self) -> Iterator[str]:
        limit = self._source.options.max_row_bytes
        number = 0
        if separator_named(self._source) is not None:
            # An empty line instead of it keeps the line numbers below.
            self._text.readline()
            number = 1
            yield "\n"
        for number, line in enumerate(self._text, number + 1):  # noqa: B020 - continues from the line above
            self.taken += len(line)
            if self.taken > limit:
                raise self._source.problem(
                    f"the row is longer than {limit:,} bytes: look for a quotation mark that is not"
                    " closed",
                    line=number,
                )
            if "'" in line:
                self.guarded = True
            if line[-1] == _END_MARK:
                line = line.rstrip(_END_MARK)  # noqa: PLW2901 - once in a file, at its end
                if not line:
                    return
            self.last = line
            yield line


def _csv_rows(source: Source, layout: Layout) -> Iterator[Row]:
    with source.text() as text:
        lines = _Lines(source, text)
        reader = csv.reader(iter(lines), delimiter=delimiter_of(source) or ",", strict=True)
        names: tuple[str, ...] | None = None
        width = least = 0
        start, ordinal = 1, 0
        try:
            for values in reader:
                line, start = start, reader.line_num + 1
                if lines.guarded:
                    values = [unguarded(value) for value in values]  # noqa: PLW2901 - rare, and meant for all below
                    lines.guarded = False
                lines.taken = 0
                # The first cell of almost every row is filled, so the others are rarely checked.
                if (not values or not values[0].strip(BLANKS)) and all(map(is_blank, values)):
                    continue
                if names is None:
                    _check_delimiter(source, values, line)
                    names = layout.header(source, values, line)
                    width, least = len(names), layout.least(source, names)
                    continue
                if len(values) != width:
                    ended = lines.last.endswith(("\n", "\r"))
                    values = _fitted(source, names, values, line, least, ended=ended)  # noqa: PLW2901 - as above
                yield Row(line, ordinal, names, values)
                ordinal += 1
        except csv.Error as error:
            raise source.problem(f"is not valid CSV: {_csv_reason(error)}", line=start) from None
        if names is None:
            raise source.problem(EMPTY)


def _check_delimiter(source: Source, cells: list[str], line: int) -> None:
    """Raise `InputError` if the whole header is one cell because of an unknown delimiter."""
    filled = [cell for cell in cells if not is_blank(cell)]
    if len(filled) == 1 and "|" in filled[0]:
        raise source.problem(
            "the columns are separated by '|': use commas, semicolons or tabs", line=line
        )


def _named(cells: list[str]) -> list[str]:
    """Return the columns' names without the blank ones that delimiters at the line's end add."""
    while is_blank(cells[-1]):
        cells.pop()
    return cells


def _header(source: Source, cells: list[str], line: int) -> tuple[str, ...]:
    # If unknown columns are ignored, a column without a name is one of them.
    names = cells if source.options.ignore_extra and source.format == "csv" else _named(cells)
    problems = columns_of(tuple(names), source.options, objects=False).problems
    sentences = [f"column {problem.column.strip()!r} {problem.rule}" for problem in problems]
    hint = [IGNORE_HINT] if any(problem.code == "unknown_column" for problem in problems) else []
    if len(sentences) == 1:
        raise source.problem("; ".join([*sentences, *hint]), line=line, column=problems[0].position)
    if sentences:
        raise source.problem(
            "\n  ".join(["the columns cannot be used as they are:", *sentences, *hint]), line=line
        )
    return tuple(names)


def _least_cells(source: Source, names: tuple[str, ...]) -> int:
    """Return how many cells a row must have; each column after them may be blank."""
    options = source.options
    columns = columns_of(names, options, objects=False)
    needed = [columns.payment_intent, columns.amount, *(index for _, index in columns.id_parts)]
    if not options.id_from:
        needed.append(columns.refund_id)
    return 1 + max(index for index in needed if index is not None)


REFUNDS: Final = Layout(header=_header, least=_least_cells)
"""The layout of refunds to be imported."""


def _fitted(
    source: Source, names: tuple[str, ...], values: list[str], line: int, least: int, *, ended: bool
) -> list[str]:
    """Return a row with as many cells as the header; raises `InputError` if that would be a guess.

    `ended` means that the row's line has a line end; without one the last cell may be cut off.
    """
    width, has = len(names), len(values)
    if has > width and all(map(is_blank, values[width:])):
        return values[:width]
    if least <= has < width and ended:
        return [*values, *[""] * (width - has)]
    if has > width:
        sentence = (
            f"the row has {has} cells, but the header names {width} columns: quote each cell that"
            " contains a delimiter, and name every column"
        )
    elif has < least:
        missing = " and ".join(repr(name.strip()) for name in names[has:least])
        sentence = f"the row has too few cells, {has} of {width}: add {missing}"
    else:
        sentence = (
            f"the last row has too few cells, {has} of {width}, and no line end: check whether the"
            " file was cut off; if it is complete, add the line end"
        )
    raise source.problem(sentence, line=line, column=min(has, width) + 1)


def _csv_reason(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text:
        return (
            f"a cell is longer than {csv.field_size_limit():,} characters: shorten it, or look for"
            " a quotation mark that is not closed"
        )
    if "unexpected end of data" in text:
        return "a quotation mark that opens a cell in this row is never closed"
    if "expected after" in text:
        return "a quotation mark inside a cell must be doubled, and its cell quoted"
    return text


def _json_rows(source: Source) -> Iterator[Row]:
    limit = source.options.max_row_bytes
    decoder = json.JSONDecoder(
        object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant
    )
    ordinal = 0
    names: tuple[str, ...] = ()
    with source.text() as text:
        text.reconfigure(newline="\n")
        for line, entry in enumerate(text, 1):
            if len(entry) > limit:
                raise source.problem(f"the line is longer than {limit:,} bytes", line=line)
            if not entry.strip(BLANKS):
                continue
            found = _decoded(source, decoder, entry, line)
            if not isinstance(found, dict):
                raise source.problem("each line must be one JSON object", line=line)
            if tuple(found) != names:
                names = tuple(found)
            yield Row(line, ordinal, names, tuple(found.values()))
            ordinal += 1


def _decoded(source: Source, decoder: json.JSONDecoder, entry: str, line: int) -> Any:
    """Return the JSON of a line; raises `InputError` if it cannot be read."""
    stripped = entry.strip(BLANKS)
    try:
        return decoder.decode(stripped)
    except json.JSONDecodeError as error:
        if error.pos >= len(stripped) or error.msg.startswith("Unterminated string"):
            raise source.problem(
                "the JSON does not end on this line: write one object per line, or look whether the"
                " file was cut off",
                line=line,
            ) from None
        column = error.pos + 1 + len(entry) - len(entry.lstrip(BLANKS))
        raise source.problem(f"is not valid JSON: {error.msg}", line=line, column=column) from None
    except _WrongJson as error:
        raise source.problem(str(error), line=line) from None
    except RecursionError:
        raise source.problem("is nested too deeply", line=line) from None
    except ValueError:
        # Python's own words name its functions.
        raise source.problem("a number has too many digits", line=line) from None


class _WrongJson(ValueError):
    """JSON that is not read; its text is the reason."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _WrongJson(f"the key {twice!r} occurs twice in one object: keep one of them")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _WrongJson(f"the number {text[:40]} is too large")
    try:
        is_exact = Decimal(text) == Decimal(repr(number))
    except InvalidOperation:
        # The exponent is beyond that of decimals, too.
        is_exact = False
    return number if is_exact else Rounded(text)


def _no_constant(text: str) -> NoReturn:
    raise _WrongJson(f"{text} is not valid JSON")


def _xlsx_rows(source: Source, layout: Layout) -> Iterator[Row]:
    with source.workbook() as file:
        names: tuple[str, ...] | None = None
        ordinal = 0
        for line, found in enumerate(sheet_rows(source, file), 1):
            values = [spreadsheet_value(value) for value in found]
            if all(map(is_blank, values)):
                continue
            if names is None:
                names = layout.header(source, [text_of(value) or "" for value in values], line)
                continue
            width = len(names)
            if not all(map(is_blank, values[width:])):
                raise source.problem(
                    "a cell to the right of the last named column is filled: name its column, or"
                    " clear the cell",
                    line=line,
                    column=width + 1,
                )
            yield Row(line, ordinal, names, [*values[:width], *[""] * (width - len(values))])
            ordinal += 1
    if names is None:
        raise source.problem("the sheet has no cells: name another one with --sheet")
