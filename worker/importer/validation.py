"""The whole file judged before anything of it is handed in: what each row is worth, and what the file adds up to.

A row's verdict takes four bytes, so a file of any length is judged in memory that hardly grows with it. The rows
themselves are read again when they are wanted; a source that has changed since is refused.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from worker.importer.columns import id_fields
from worker.importer.formats import Row, read_rows
from worker.importer.grouping import KEY_BYTES, Buckets
from worker.importer.ids import numbered
from worker.importer.requests import Candidate, RequestReader, RowError
from worker.model.request import RefundRequest, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from worker.importer.columns import Columns
    from worker.importer.sources import Source

FIRST: Final = 20
_PROGRESS_ROWS: Final = 10_000

# A row's verdict is its occurrence, from 1, or one of these.
_REFUSED: Final = 0
_CONFLICT: Final = 2**32 - 2
_DUPLICATE: Final = 2**32 - 1

_HELD_BYTES: Final = 4 * 2**20
_TO_COUNT: Final = 2**32 - 1
_BY_ID: Final = f">{KEY_BYTES}sII{KEY_BYTES}sQHI"
_BY_PAYMENT: Final = f">{KEY_BYTES}sII"


@dataclass(frozen=True, kw_only=True)
class Total:
    """What one currency comes to: refunds, minor units, and how many ask for all that is left (and are in no sum)."""

    rows: int
    amount: int
    all_remaining: int


class LinePair(NamedTuple):
    """Two lines that belong together: the later one, and the first one it is like."""

    line: int
    first_line: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a file comes to. `rows` = `accepted` + `refused` + `duplicates`.

    `duplicates` are rows with an id and contents that stand in the file already: harmless, handed in once. `repeats`
    are accepted rows with the payment and amount of an earlier accepted row, under another id. `totals` are by
    currency, None where none is stated, over accepted rows. `errors` counts broken rules, of which a row can have
    several; lists hold the first of their kind by line.
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
    """What each column is used as: a field, `metadata.KEY`, `id`, `result` or `ignored`."""

    @property
    def all_remaining(self) -> int:
        """Return how many accepted rows state no amount, and so ask for all that is left of their payments."""
        return sum(total.all_remaining for total in self.totals.values())


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The verdict on every row of one source, and their summary."""

    digest: str
    summary: Summary
    marks: array[int] = field(repr=False)
    """A verdict a row."""
    others: array[int] = field(repr=False)
    """The line that a duplicate or a conflicting row stands against; empty when there is none."""


class JudgedRow(NamedTuple):
    """One row with its verdict: a request, or errors. `duplicate_of` is the line that states the same refund first."""

    row: Row
    request: RefundRequest | None
    duplicate_of: int | None
    errors: tuple[RowError, ...]


class Accepted(NamedTuple):
    """A refund to hand in and the line that asks for it."""

    line: int
    request: RefundRequest


def validate(source: Source, on_progress: Callable[[int], None] | None = None) -> Validation:
    """Return the verdict on every row; `on_progress` is told now and then how many rows were read.

    Raises `InputError` when the file cannot be read to its end.
    """
    judge = _Judge(source)
    with Buckets(_BY_ID, _HELD_BYTES) as by_id, Buckets(_BY_PAYMENT, _HELD_BYTES) as by_payment:
        judge.read(by_id, by_payment, on_progress)
        judge.settle_ids(by_id)
        judge.find_repeats(by_payment)
    return judge.result()


def judged(source: Source, validation: Validation) -> Iterator[JudgedRow]:
    """Yield every row in the file's order with its verdict."""
    if source.digest != validation.digest:
        raise source.problem("is not the file that was validated")
    reader = RequestReader(source)
    marks, others = validation.marks, validation.others
    for row in read_rows(source):
        found = reader.read(row)
        mark = marks[row.ordinal]
        if not isinstance(found, Candidate):
            yield JudgedRow(row, None, None, found)
        elif mark == _CONFLICT:
            error = _conflict(source, row, found, reader.columns(row.names), others[row.ordinal])
            yield JudgedRow(row, None, None, (error,))
        elif mark == _DUPLICATE:
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
    """Yield the rows that cannot be handed in, each with all of its errors."""
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
        rule = f"is on line {other} too, with other contents: an id is for one refund"
        column, value = columns.header("refund_id"), shown(found.request.refund_id)
        return RowError(row.line, column, "duplicate_id", value, rule)
    places = [columns.places[name] for name in id_fields(source.options) if name in columns.places]
    column = ", ".join(columns.names[place].strip() for place in places)
    value = ", ".join(shown(row.values[place]) for place in places)
    rule = f"is equal on line {other}, and the rest of the row differs: make the id from more columns"
    if "amount" not in id_fields(source.options):
        rule += f", such as --id-from {','.join(names)},amount"
    return RowError(row.line, column, "ambiguous_id", value, rule)


class _Firsts:
    """The pairs of the lowest lines, however many are noted and in whatever order."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[LinePair] = []

    def note(self, line: int, first_line: int) -> None:
        self.count += 1
        self._kept.append(LinePair(line, first_line))
        if len(self._kept) > 100 * FIRST:
            self._kept = sorted(self._kept)[:FIRST]

    def pairs(self) -> tuple[LinePair, ...]:
        return tuple(sorted(self._kept)[:FIRST])


@dataclass(slots=True)
class _Sum:
    rows: int = 0
    amount: int = 0
    all_remaining: int = 0

    def add(self, amount: int, sign: int) -> None:
        self.rows += sign
        self.amount += sign * amount
        self.all_remaining += 0 if amount else sign


@dataclass(slots=True)
class _Group:
    """Rows with one id: the first one, the first that differs from it, and the occurrences in use."""

    ordinal: int
    line: int
    contents: bytes
    other_line: int = 0
    stated: set[int] = field(default_factory=set)
    used: dict[int, int] = field(default_factory=dict)
    next_occurrence: int = 1


class _Judge:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._reader = RequestReader(source)
        self._marks = array("I")
        self._others = array("I")
        self._currencies: dict[str | None, int] = {None: 0}
        self._sums = [_Sum()]
        self._errors: Counter[str] = Counter()
        self._first_errors: list[RowError] = []
        self._refused = 0
        self._conflicts = 0
        self._duplicates = _Firsts()
        self._repeats = _Firsts()
        self._largest: tuple[int, int] | None = None

    def read(self, by_id: Buckets, by_payment: Buckets, on_progress: Callable[[int], None] | None) -> None:
        blake2b = hashlib.blake2b
        read = self._reader.read
        marks, sums, currencies = self._marks, self._sums, self._currencies
        largest, largest_line = 0, 0
        for row in read_rows(self._source):
            ordinal = row.ordinal
            if on_progress is not None and ordinal % _PROGRESS_ROWS == 0 and ordinal:
                on_progress(ordinal)
            found = read(row)
            if not isinstance(found, Candidate):
                self._refuse(found)
                continue
            line, request, occurrence = found
            amount = request.amount or 0
            place = currencies.get(request.currency)
            if place is None:
                place = currencies[request.currency] = len(sums)
                sums.append(_Sum())
            sums[place].add(amount, 1)
            if amount > largest:
                largest, largest_line = amount, line
            # Valid fields hold no NUL, so the parts cannot run into each other.
            paid = f"{request.payment_intent}\0{amount}"
            rest = (
                request.currency or "",
                request.reason or "",
                *(text for pair in request.metadata.items() for text in pair),
            )
            by_id.add(
                blake2b(request.refund_id.encode(), digest_size=KEY_BYTES).digest(),
                ordinal,
                line,
                blake2b("\0".join((paid, *rest)).encode(), digest_size=KEY_BYTES).digest(),
                amount,
                place,
                _TO_COUNT if occurrence is None else occurrence,
            )
            by_payment.add(blake2b(paid.encode(), digest_size=KEY_BYTES).digest(), ordinal, line)
            marks.append(occurrence or 1)
        self._reader.require_columns()
        if largest:
            self._largest = largest, largest_line
        if on_progress is not None:
            on_progress(len(marks))

    def _refuse(self, errors: tuple[RowError, ...]) -> None:
        self._marks.append(_REFUSED)
        self._refused += 1
        self._errors.update(error.code for error in errors)
        if len(self._first_errors) < FIRST:
            self._first_errors.extend(errors[: FIRST - len(self._first_errors)])

    def settle_ids(self, by_id: Buckets) -> None:
        """Tells rows with one id apart: the same refund twice, one of several equal ones, or a contradiction."""
        for keys, records in by_id.repeated():
            if not self._others:
                self._others = array("I", bytes(4 * len(self._marks)))
            groups: dict[bytes, _Group] = {}
            for key, ordinal, line, contents, _, _, occurrence in records():
                if key not in keys:
                    continue
                group = groups.get(key)
                if group is None:
                    group = groups[key] = _Group(ordinal, line, contents)
                elif contents != group.contents and not group.other_line:
                    group.other_line = line
                if occurrence not in {0, _TO_COUNT}:
                    group.stated.add(occurrence)
            for key, ordinal, line, contents, amount, place, occurrence in records():
                if key in keys:
                    self._settle(groups[key], ordinal, line, contents, amount, place, occurrence)

    def _settle(
        self, group: _Group, ordinal: int, line: int, contents: bytes, amount: int, place: int, occurrence: int, /
    ) -> None:
        if group.other_line:
            self._marks[ordinal] = _CONFLICT
            self._others[ordinal] = group.other_line if contents == group.contents else group.line
            self._sums[place].add(amount, -1)
            self._conflicts += 1
            return
        if occurrence == _TO_COUNT:
            while group.next_occurrence in group.stated:
                group.next_occurrence += 1
            occurrence = group.next_occurrence
            group.next_occurrence += 1
        elif occurrence in group.used:
            self._marks[ordinal] = _DUPLICATE
            self._others[ordinal] = group.used[occurrence]
            self._sums[place].add(amount, -1)
            self._duplicates.note(line, group.used[occurrence])
            return
        else:
            group.used[occurrence] = line
        self._marks[ordinal] = occurrence or 1

    def find_repeats(self, by_payment: Buckets) -> None:
        """Finds accepted rows that pay the same amount back on the same payment as an earlier one."""
        for keys, records in by_payment.repeated():
            first: dict[bytes, int] = {}
            for key, ordinal, line in records():
                if key not in keys or self._marks[ordinal] in {_CONFLICT, _DUPLICATE}:
                    continue
                if key in first:
                    self._repeats.note(line, first[key])
                else:
                    first[key] = line

    def result(self) -> Validation:
        """Return what was found."""
        if self._conflicts:
            self._errors["ambiguous_id" if self._source.options.id_from else "duplicate_id"] += self._conflicts
        refused_rows = self._refused + self._conflicts
        validation = Validation(
            digest=self._source.digest,
            marks=self._marks,
            others=self._others,
            summary=Summary(
                rows=len(self._marks),
                accepted=len(self._marks) - refused_rows - self._duplicates.count,
                refused=refused_rows,
                duplicates=self._duplicates.count,
                repeats=self._repeats.count,
                errors=self._errors.total(),
                errors_by_code=MappingProxyType(dict(self._errors.most_common())),
                first_errors=tuple(self._first_errors),
                first_duplicates=self._duplicates.pairs(),
                first_repeats=self._repeats.pairs(),
                totals=MappingProxyType(
                    {
                        currency: Total(rows=found.rows, amount=found.amount, all_remaining=found.all_remaining)
                        for currency, place in self._currencies.items()
                        if (found := self._sums[place]).rows
                    }
                ),
                largest_amount=self._largest[0] if self._largest else None,
                largest_line=self._largest[1] if self._largest else None,
                columns=MappingProxyType(self._reader.uses),
            ),
        )
        if not self._conflicts:
            return validation
        # Which rows contradict each other was known only at the end, so the first errors are read again, in order.
        errors = (error for _, found in refused(self._source, validation) for error in found)
        summary = replace(validation.summary, first_errors=tuple(islice(errors, FIRST)))
        return replace(validation, summary=summary)
