"""Writes two files for a person: the input with the result of each row, and the refused rows.

Both keep the input's columns in the input's order, both can be imported again, and both have the
input's format: JSON lines for JSON lines, else CSV with the input's delimiter. Cells that a
spreadsheet would run as a formula get a leading apostrophe, which reading removes again.
"""

from __future__ import annotations

import codecs
import csv
import json
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from worker.importer.cells import (
    Altered,
    Rounded,
    cell_problem,
    decimal_text,
    guarded,
    is_unclear,
    text_of,
)
from worker.importer.columns import (
    FAILED_COLUMNS,
    OWN_COLUMN,
    RESULT_COLUMNS,
    fields_of,
    id_fields,
    result_columns,
)
from worker.importer.formats import delimiter_of, separator_named
from worker.importer.ids import SameRefund
from worker.importer.verdicts import JudgedRow, judged, refused
from worker.model.currencies import in_major
from worker.model.refund import Refund, Status
from worker.model.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from worker.importer.options import ImportOptions
    from worker.importer.requests import RowError
    from worker.importer.sources import Source
    from worker.importer.verdicts import Validation

INVALID: Final = "invalid"
"""The status of a refused row in a result file; no record ever has it."""
_CONFLICT: Final = {
    "error_code": "conflict",
    "error_message": "the refund with this id has other contents than this row: see that refund",
}
_AT_ONCE: Final = 500


def result_suffix(source: Source) -> str:
    """Return the suffix of the files written for this source: `.jsonl` or `.csv`."""
    return ".jsonl" if source.format == "jsonl" else ".csv"


def write_result(
    source: Source,
    validation: Validation,
    lookup: Callable[[Sequence[str]], Sequence[Refund | None]],
    out: IO[str],
) -> int:
    """Write every row with its result, and return the number of rows.

    `lookup` returns the record of each id in the ids' order, None if there is none: such a row has
    its refund_id and no status. Refused rows have the status `invalid` and their errors. A row
    whose id belongs to a refund with other contents has an error and no status, because that
    refund is not the row's. `out` is opened with `encoding="utf-8", newline=""`.
    """
    table = _table(source, RESULT_COLUMNS, out)
    rows = judged(source, validation)
    same_refund = SameRefund()
    written = 0
    while chunk := list(islice(rows, _AT_ONCE)):
        ids = [each.request.refund_id for each in chunk if each.request is not None]
        found = iter(lookup(ids) if ids else ())
        for each in chunk:
            refund = next(found) if each.request is not None else None
            outcome = _outcome(each, refund, source.options)
            if refund is not None and not _is_of(each, refund, same_refund):
                outcome = {"refund_id": refund.refund_id, **_CONFLICT}
            table.write(each.row.names, each.row.values, outcome)
            written += 1
    return written


def write_failed_rows(
    source: Source, validation: Validation, out: IO[str], *, say: Callable[[str], str] = str
) -> int:
    """Write each refused row once with line, column, code, value and rule; return their number.

    A row that breaks several rules has them in one cell, separated by `; `. Once fixed, the file
    can be imported. `out` is opened with `encoding="utf-8", newline=""`. `say` puts a rule into
    the words of those who read it.
    """
    table = _table(source, FAILED_COLUMNS, out)
    written = 0
    for row, errors in refused(source, validation):
        table.write(row.names, row.values, _failure(row.line, errors, say))
        written += 1
    return written


def _is_of(each: JudgedRow, refund: Refund, same_refund: SameRefund) -> bool:
    """Return whether the record with the row's id is the refund that the row requests."""
    request = each.request
    if request is None or request.fingerprint == refund.fingerprint:
        return True
    return refund.metadata_erased_at is None and same_refund(request, refund.as_request())


def _outcome(each: JudgedRow, refund: Refund | None, options: ImportOptions) -> Mapping[str, Any]:
    if each.request is None:
        return {
            "refund_id": None,
            "status": INVALID,
            "error_code": each.errors[0].code,
            "error_message": "; ".join(
                f"{error.column} {error.value}: {error.rule}" for error in each.errors
            ),
        }
    if refund is None:
        return {"refund_id": each.request.refund_id}
    # A repeated row is the same refund: its amount is shown once, so that the column can be added
    # up.
    counts = each.duplicate_of is None and refund.status is Status.SUCCEEDED
    return {
        "refund_id": refund.refund_id,
        "status": refund.status.value,
        "stage": refund.stage.value,
        "provider_refund_id": refund.provider_refund_id,
        "error_code": refund.error_code,
        "error_message": refund.error_message,
        "attempts": refund.attempts,
        "updated_at": rfc3339(refund.updated_at),
        "amount_refunded": _refunded(refund, options) if counts else None,
        "currency_refunded": refund.currency if counts else None,
    }


def _refunded(refund: Refund, options: ImportOptions) -> int | str | None:
    """Return the refunded amount in the unit and with the decimal mark of the file.

    None if the provider never showed it.
    """
    if refund.amount is None:
        return None
    if options.amount_unit == "minor":
        return refund.amount
    mark = "," if options.decimal == "comma" else "."
    # The refund may be of all that was left, in a currency that cannot be written in major units.
    return in_major(refund.amount, refund.currency, mark) or f"{refund.amount} minor units"


def _failure(line: int, errors: Sequence[RowError], say: Callable[[str], str]) -> Mapping[str, Any]:
    return {
        "line": line,
        "column": "; ".join(error.column for error in errors),
        "code": "; ".join(error.code for error in errors),
        "value": "; ".join(error.value for error in errors),
        "rule": "; ".join(say(error.rule) for error in errors),
    }


class _Table(Protocol):
    def write(
        self, names: tuple[str, ...], values: Sequence[object], facts: Mapping[str, Any]
    ) -> None: ...


def _table(source: Source, added: tuple[str, ...], out: IO[str]) -> _Table:
    if source.format == "jsonl":
        return _JsonTable(added, out, source.options)
    # The result of a workbook is opened in a spreadsheet, which reads UTF-8 without a byte order
    # mark as Latin text.
    if source.format == "xlsx" or source.head.startswith(codecs.BOM_UTF8):
        out.write("\ufeff")
    delimiter = delimiter_of(source) or ","
    if source.format == "csv" and separator_named(source) is not None:
        out.write(f"sep={delimiter}\r\n")
    # The dialect's line end makes the writer quote carriage returns as well as line feeds.
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    return _CsvTable(added, writer.writerow, source.options)


class _Layout:
    """Which cells of an input row are kept or overwritten, and which are added before or after."""

    def __init__(
        self, names: tuple[str, ...], added: tuple[str, ...], options: ImportOptions
    ) -> None:
        self.names = names
        fields = fields_of(names, options)
        leading = added == FAILED_COLUMNS
        own = tuple(fields[: len(added)]) == FAILED_COLUMNS
        ours = (added if own else ()) if leading else result_columns(fields)
        replaced = {name: index for index, name in enumerate(fields) if name in ours}
        self.replaced = {index: name for name, index in replaced.items()}
        rest = tuple(name for name in added if name not in replaced)
        self.before = rest if leading else ()
        self.after = () if leading else rest
        taken = {*self.before, *self.after}
        self.refund_id = fields.index("refund_id") if "refund_id" in fields else None
        made = {*id_fields(options)} - {"refund_id", "amount"}
        self.id_parts = [index for index, field in enumerate(fields) if field in made]
        self._is_minor = options.amount_unit == "minor"
        self._amount = fields.index("amount") if "amount" in fields else None
        self._currency = fields.index("currency") if "currency" in fields else None
        self._default_currency = options.default_currency
        self.headers = [
            f"{name}{OWN_COLUMN}" if field in taken else name
            for name, field in zip(names, fields, strict=True)
        ]

    def value(self, index: int, values: Sequence[object], facts: Mapping[str, Any]) -> object:
        """Return the input's value in a column, or the fact of that name.

        The input's id stays if there is no other.
        """
        name, value = self.replaced.get(index), values[index]
        known = None if name is None else facts.get(name)
        if name is None or (name == "refund_id" and (known is None or known == text_of(value))):
            return self._as_shown(index, values)
        return known

    def _as_shown(self, index: int, values: Sequence[object]) -> object:
        """Return the input's value so that one which was refused as a guess is refused again.

        The file may be imported as it is, and it has no number formats.
        """
        value = values[index]
        if isinstance(value, Altered):
            return f"{value} #SHOWN OTHERWISE" if index == self._amount else value.number
        if index == self._amount and self._is_minor:
            stated = None if self._currency is None else text_of(values[self._currency])
            if is_unclear(value, stated or self._default_currency):
                return f"{value}.00"
        if isinstance(value, dict):
            return {key: _written(each) for key, each in value.items()}
        return _written(value)


def _written(value: object) -> object:
    """Return a number of JSON that a float cannot hold as the text that was written."""
    return repr(value) if isinstance(value, Rounded) else value


class _CsvTable:
    def __init__(
        self,
        added: tuple[str, ...],
        write_cells: Callable[[Iterable[str]], object],
        options: ImportOptions,
    ) -> None:
        self._added = added
        self._options = options
        self._mark = "," if options.decimal == "comma" else "."
        self._write_cells = write_cells
        self._layout: _Layout | None = None

    def write(
        self, names: tuple[str, ...], values: Sequence[object], facts: Mapping[str, Any]
    ) -> None:
        layout = self._layout
        if layout is None:
            layout = self._layout = _Layout(names, self._added, self._options)
            self._write_cells(
                guarded(name) for name in (*layout.before, *layout.headers, *layout.after)
            )
        cells = [layout.value(index, values, facts) for index in range(len(values))]
        at = layout.refund_id
        if at is not None and cell_problem(cells[at]) is not None:
            # As text it would be an id that is not in the file.
            cells[at] = f"{self._text(cells[at])} #NOT TEXT"
        for part in layout.id_parts:
            if cell_problem(cells[part]) is not None:
                # Any text would make an id. A blank cell makes none.
                cells[part] = None
        row = (*map(facts.get, layout.before), *cells, *map(facts.get, layout.after))
        self._write_cells(guarded(self._text(cell)) for cell in row)

    def _text(self, cell: object) -> str:
        if type(cell) is float and (plain := decimal_text(cell)) is not None:
            # A workbook's number becomes text with the decimal mark of the file's other amounts.
            return plain.replace(".", self._mark)
        return text_of(cell) or ""


class _JsonTable:
    def __init__(self, added: tuple[str, ...], out: IO[str], options: ImportOptions) -> None:
        self._added = added
        self._options = options
        self._out = out
        self._layout: _Layout | None = None

    def write(
        self, names: tuple[str, ...], values: Sequence[object], facts: Mapping[str, Any]
    ) -> None:
        layout = self._layout
        if layout is None or layout.names != names:
            layout = self._layout = _Layout(names, self._added, self._options)
        pairs: Iterator[tuple[str, object]] = (
            (header, layout.value(index, values, facts))
            for index, header in enumerate(layout.headers)
        )
        entry = {name: facts.get(name) for name in layout.before}
        entry.update(pairs)
        entry.update((name, facts.get(name)) for name in layout.after)
        self._out.write(json.dumps(entry, ensure_ascii=True) + "\n")
