"""Validates a whole file before any of it is submitted.

A verdict on each row, and the file's totals.

Memory hardly grows with the file: a row keeps its verdict of four bytes, and its record in
`Buckets`, which move to disk. A source that changes while it is read is refused.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from worker.importer.formats import read_rows
from worker.importer.grouping import KEY_BYTES, Bucket, Buckets, repeated
from worker.importer.requests import Candidate, RequestReader, RowError
from worker.importer.verdicts import LinePair, Mark, Summary, Total, Validation, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.importer.sources import Source
    from worker.model.request import RefundRequest

FIRST: Final = 20
_PROGRESS_ROWS: Final = 10_000
_HELD_BYTES: Final = 4 * 2**20


class Unstated(IntEnum):
    """The values of `IdRecord.occurrence` for a row whose id states no occurrence."""

    OWN_ID = 0
    """The id is the file's own."""
    TO_COUNT = 2**32 - 1
    """The id is made from columns; the row gets its number among equals once all rows are known."""


_UNSTATED: Final = frozenset(map(int, Unstated))
_NOT_ACCEPTED: Final = frozenset(map(int, Mark))


class IdRecord(NamedTuple):
    """A row that breaks no rule by itself, stored under the digest of its id."""

    key: bytes
    ordinal: int
    line: int
    contents: bytes
    """The digest of every field that is sent."""
    occurrence: int
    """The occurrence that the row's id states, from 1, or one of `Unstated`."""


_ID_LAYOUT: Final = f">{KEY_BYTES}sII{KEY_BYTES}sI"


class PaymentRecord(NamedTuple):
    """A row that breaks no rule by itself, stored under the digest of its payment and amount."""

    key: bytes
    ordinal: int
    line: int
    amount: int
    """Minor units, 0 for all that is left."""
    currency: int
    """An index into the currencies of the file."""


_PAYMENT_LAYOUT: Final = f">{KEY_BYTES}sIIQH"


def validate(source: Source, on_progress: Callable[[int], None] | None = None) -> Validation:
    """Return the verdict on every row.

    `on_progress` is called now and then with the number of rows read.

    Raises `InputError` if the file cannot be read to its end.
    """
    judge = _Judge(source)
    with (
        Buckets(_ID_LAYOUT, _HELD_BYTES) as by_id,
        Buckets(_PAYMENT_LAYOUT, _HELD_BYTES) as by_payment,
    ):
        judge.read(by_id, by_payment, on_progress)
        judge.settle_ids(by_id)
        judge.count(by_payment)
    return judge.result()


class _Firsts:
    """The pairs with the lowest lines, of any number of pairs in any order."""

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
    """The accepted rows of one currency, while they are counted."""

    rows: int = 0
    amount: int = 0
    all_remaining: int = 0

    def add(self, amount: int) -> None:
        self.rows += 1
        self.amount += amount
        if not amount:
            self.all_remaining += 1


@dataclass(slots=True)
class _Group:
    """The rows with one id: the first, the first line that differs, and the occurrences in use."""

    first: IdRecord
    different_line: int | None = None
    stated: set[int] = field(default_factory=set)
    line_by_occurrence: dict[int, int] = field(default_factory=dict)
    next_occurrence: int = 1

    def add(self, record: IdRecord) -> None:
        if self.different_line is None and record.contents != self.first.contents:
            self.different_line = record.line
        if record.occurrence not in _UNSTATED:
            self.stated.add(record.occurrence)

    def verdict_on(self, record: IdRecord) -> tuple[int, int]:
        """Return the row's mark, and the other line of a duplicate or a conflict, else 0."""
        if self.different_line is not None:
            is_like_first = record.contents == self.first.contents
            return Mark.CONFLICT, self.different_line if is_like_first else self.first.line
        if record.occurrence == Unstated.TO_COUNT:
            return self._next_free(), 0
        if (line := self.line_by_occurrence.get(record.occurrence)) is not None:
            return Mark.DUPLICATE, line
        self.line_by_occurrence[record.occurrence] = record.line
        return record.occurrence or 1, 0

    def _next_free(self) -> int:
        while self.next_occurrence in self.stated:
            self.next_occurrence += 1
        self.next_occurrence += 1
        return self.next_occurrence - 1


class _Judge:
    """Judges a source's rows; `read`, `settle_ids` and `count` run once each, in this order."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reader = RequestReader(source)
        self._marks = array("I")
        self._others = array("I")
        self._currencies: dict[str | None, int] = {None: 0}
        self._sums: list[_Sum] = []
        self._errors: Counter[str] = Counter()
        self._first_errors: list[RowError] = []
        self._duplicates = _Firsts()
        self._repeats = _Firsts()
        self._largest_amount = 0
        self._largest_line: int | None = None

    def read(
        self, by_id: Buckets, by_payment: Buckets, on_progress: Callable[[int], None] | None
    ) -> None:
        """Judges each row by itself, and stores a record of each valid one in the buckets."""
        for row in read_rows(self._source):
            if on_progress is not None and row.ordinal % _PROGRESS_ROWS == 0 and row.ordinal:
                on_progress(row.ordinal)
            found = self._reader.read(row)
            if isinstance(found, Candidate):
                self._store(found, row.ordinal, by_id, by_payment)
            else:
                self._refuse(found)
        self._reader.require_columns()
        if on_progress is not None:
            on_progress(len(self._marks))

    def _store(self, found: Candidate, ordinal: int, by_id: Buckets, by_payment: Buckets) -> None:
        line, request, occurrence = found
        self._marks.append(occurrence or 1)
        amount = request.amount or 0
        if amount > self._largest_amount:
            self._largest_amount, self._largest_line = amount, line
        currency = self._currencies.setdefault(request.currency, len(self._currencies))
        # Valid fields hold no NUL, so the parts of a digest cannot run into each other.
        paid = f"{request.payment_intent}\0{amount}"
        contents = _digest(paid + _other_fields(request))
        by_id.add(_digest(request.refund_id), ordinal, line, contents, _packed(occurrence))
        by_payment.add(_digest(paid), ordinal, line, amount, currency)

    def _refuse(self, errors: tuple[RowError, ...]) -> None:
        self._marks.append(Mark.REFUSED)
        self._errors.update(error.code for error in errors)
        if len(self._first_errors) < FIRST:
            self._first_errors.extend(errors[: FIRST - len(self._first_errors)])

    def settle_ids(self, by_id: Buckets) -> None:
        """Gives rows with one id their verdicts.

        The same refund twice, one of several equal ones, or a conflict.
        """
        for bucket in by_id:
            keys = repeated(fields[0] for fields in bucket)
            if not keys:
                continue
            if not self._others:
                self._others = array("I", bytes(4 * len(self._marks)))
            groups: dict[bytes, _Group] = {}
            for record in _id_records(bucket, keys):
                if record.key not in groups:
                    groups[record.key] = _Group(record)
                groups[record.key].add(record)
            for record in _id_records(bucket, keys):
                mark, other_line = groups[record.key].verdict_on(record)
                self._marks[record.ordinal] = mark
                self._others[record.ordinal] = other_line
                if mark == Mark.DUPLICATE:
                    self._duplicates.note(record.line, other_line)

    def count(self, by_payment: Buckets) -> None:
        """Sum up accepted rows; note those with an earlier accepted row's payment and amount."""
        marks = self._marks
        sums = self._sums = [_Sum() for _ in self._currencies]
        for bucket in by_payment:
            seen: set[bytes] = set()
            again: set[bytes] = set()
            for key, ordinal, _, amount, currency in bucket:
                if marks[ordinal] not in _NOT_ACCEPTED:
                    sums[currency].add(amount)
                    (again if key in seen else seen).add(key)
            if again:
                self._note_repeats(bucket, again)

    def _note_repeats(self, bucket: Bucket, keys: set[bytes]) -> None:
        first_lines: dict[bytes, int] = {}
        for record in map(PaymentRecord._make, bucket):
            if record.key not in keys or self._marks[record.ordinal] in _NOT_ACCEPTED:
                continue
            if record.key in first_lines:
                self._repeats.note(record.line, first_lines[record.key])
            else:
                first_lines[record.key] = record.line

    def result(self) -> Validation:
        """Return what was found."""
        if conflicts := self._marks.count(Mark.CONFLICT):
            self._errors["ambiguous_id" if self._source.options.id_from else "duplicate_id"] += (
                conflicts
            )
        validation = Validation(
            digest=self._source.digest,
            marks=self._marks,
            others=self._others,
            summary=self._summary(),
        )
        if not conflicts:
            return validation
        # Conflicts are known only once all rows are read, so the first errors are read again, in
        # the file's order.
        errors = (error for _, found in refused(self._source, validation) for error in found)
        summary = replace(validation.summary, first_errors=tuple(islice(errors, FIRST)))
        return replace(validation, summary=summary)

    def _summary(self) -> Summary:
        rows, duplicates = len(self._marks), self._marks.count(Mark.DUPLICATE)
        refused_rows = self._marks.count(Mark.REFUSED) + self._marks.count(Mark.CONFLICT)
        totals = {
            currency: Total(rows=found.rows, amount=found.amount, all_remaining=found.all_remaining)
            for currency, found in zip(self._currencies, self._sums, strict=True)
            if found.rows
        }
        return Summary(
            rows=rows,
            accepted=rows - refused_rows - duplicates,
            refused=refused_rows,
            duplicates=duplicates,
            repeats=self._repeats.count,
            errors=self._errors.total(),
            errors_by_code=MappingProxyType(dict(self._errors.most_common())),
            first_errors=tuple(self._first_errors),
            first_duplicates=self._duplicates.pairs(),
            first_repeats=self._repeats.pairs(),
            totals=MappingProxyType(totals),
            largest_amount=self._largest_amount or None,
            largest_line=self._largest_line,
            columns=MappingProxyType(self._reader.uses),
        )


def _id_records(bucket: Bucket, keys: set[bytes]) -> Iterator[IdRecord]:
    return (IdRecord(*fields) for fields in bucket if fields[0] in keys)


def _packed(occurrence: int | None) -> int:
    return Unstated.TO_COUNT if occurrence is None else occurrence


def _other_fields(request: RefundRequest) -> str:
    """Return the fields sent beside the payment and the amount, as contents are compared."""
    parts = ["", request.currency or "", request.reason or ""]
    for pair in request.metadata.items():
        parts += pair
    return "\0".join(parts)


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=KEY_BYTES).digest()
