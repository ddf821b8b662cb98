"""The verdict on each row of a file, and the rows read again with their verdicts.

A verdict takes four bytes, so the verdicts on a file of any length fit in memory. The rows
themselves are read again whenever they are needed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from worker.importer.columns import id_fields
from worker.importer.formats import Row, read_rows
from worker.importer.ids import numbered
from worker.importer.requests import Candidate, RequestReader, RowError
from worker.model.request import RefundRequest, shown

if TYPE_CHECKING:
    from worker.importer.columns import Columns
    from worker.importer.sources import Source


class Mark(IntEnum):
    """A verdict that is not an acceptance. An accepted row's mark is its occurrence, from 1."""

    REFUSED = 0
    """The row breaks a rule by itself."""
    CONFLICT = 2**32 - 2
    """Another row has the same id and other contents."""
    DUPLICATE = 2**32 - 1
    """An earlier row states the same refund."""


@dataclass(frozen=True, kw_only=True)
class Total:
    """The total of one currency: accepted rows, minor units, and how many rows state no amount.

    A row without an amount asks for all that is left of its payment, so it adds nothing to
    `amount`.
    """

    rows: int
    amount: int
    all_remaining: int


class LinePair(NamedTuple):
    """Two related lines: a later one, and the first one that it is like."""

    line: int
    first_line: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of a file. `rows` = `accepted` + `refused` + `duplicates`.

    `duplicates` are rows whose id and contents are in the file already: they are harmless, and
    submitted once. `repeats` are accepted rows with the payment and amount of an earlier accepted
    row, under another id. `totals` has the accepted rows by currency, under None those that state
    none. `errors` counts broken rules; one row can break several. The lists hold the first entries
    of their kind by line.
    """

    rows: int
    accepted: int
    refused: int
    duplicates: int
    repeats: int
    errors: int
    errors_by_code: Mapping[str, int]
    first_errors: tuple[RowError, ...]
    first_duplicates: tuple[LinePair, ...]
    first_repeats: tuple[LinePair, ...]
    totals: Mapping[str | None, Total]
    largest_amount: int | None
    largest_line: int | None
    columns: Mapping[str, str]
    """The use of each column: a field, `metadata.KEY`, `id`, `result` or `ignored`."""

    @property
    def all_remaining(self) -> int:
        """Return how many accepted rows state no amount, and so ask for all that is left."""
        return sum(total.all_remaining for total in self.totals.values())


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The verdicts on all rows of one source, and their summary."""

    digest: str
    summary: Summary
    marks: array[int] = field(repr=False)
    """One entry per row: a `Mark`, or the occurrence of an accepted row."""
    others: array[int] = field(repr=False)
    """One entry per row: the other line of a duplicate or a conflict, 0 for other rows.

    Empty if no id is repeated.
    """


class JudgedRow(NamedTuple):
    """A row with its verdict: a request, or errors.

    `duplicate_of` is the first line that states the same refund.
    """

    row: Row
    request: RefundRequest | None
    duplicate_of: int | None
    errors: tuple[RowError, ...]


class Accepted(NamedTuple):
    """A refund to submit, and the line that requests it."""

    line: int
    request: RefundRequest


def judged(source: Source, validation: Validation) -> Iterator[JudgedRow]:
    """Yield every row in the file's order with its verdict.

    Raises `InputError` for a file that was not validated.
    """
    if source.digest != validation.digest:
        raise source.problem("is not the file that was validated: run the command again")
    reader = RequestReader(source)
    marks, others = validation.marks, validation.others
    for row in read_rows(source):
        found = reader.read(row)
        mark = marks[row.ordinal]
        if not isinstance(found, Candidate):
            yield JudgedRow(row, None, None, found)
        elif mark == Mark.CONFLICT:
            error = _conflict(source, row, found, reader.columns(row.names), others[row.ordinal])
            yield JudgedRow(row, None, None, (error,))
        elif mark == Mark.DUPLICATE:
            request = _with_occurrence(found.request, found.occurrence or 1)
            yield JudgedRow(row, request, others[row.ordinal], ())
        else:
            yield JudgedRow(row, _with_occurrence(found.request, mark), None, ())


def accepted(source: Source, validation: Validation) -> Iterator[Accepted]:
    """Yield each refund of the file once, in the file's order."""
    for row, request, duplicate_of, _ in judged(source, validation):
        if request is not None and duplicate_of is None:
            yield Accepted(row.line, request)


def refused(source: Source, validation: Validation) -> Iterator[tuple[Row, tuple[RowError, ...]]]:
    """Yield the rows that cannot be submitted, each with all of its errors."""
    for row, _, _, errors in judged(source, validation):
        if errors:
            yield row, errors


def _with_occurrence(request: RefundRequest, occurrence: int) -> RefundRequest:
    if occurrence <= 1:
        return request
    return replace(request, refund_id=numbered(request.refund_id, occurrence))


def _conflict(source: Source, row: Row, found: Candidate, columns: Columns, other: int) -> RowError:
    names = source.options.id_from
    if not names:
        rule = f"is also on line {other}, with other contents: give each refund its own id"
        column, value = columns.header("refund_id"), shown(found.request.refund_id)
        return RowError(row.line, column, "duplicate_id", value, rule)
    indexes = [
        columns.indexes[name] for name in id_fields(source.options) if name in columns.indexes
    ]
    column = ", ".join(columns.names[index].strip() for index in indexes)
    value = ", ".join(shown(row.values[index]) for index in indexes)
    rule = (
        f"is equal on line {other}, but the rest of the row differs: make the id from more columns"
    )
    if "amount" not in id_fields(source.options):
        rule += f", such as --id-from {','.join(names)},amount"
    return RowError(row.line, column, "ambiguous_id", value, rule)
