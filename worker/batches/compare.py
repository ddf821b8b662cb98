"""Compares a file with the records before its import; writes nothing and keeps no row in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from worker.importer import Accepted, SameRefund
from worker.model.refund import Refund, Stage
from worker.model.request import RefundRequest
from worker.store.connection import redis_errors
from worker.store.creations import MOST_FIELDS
from worker.store.scripts import Argument, Command, Script
from worker.store.store import Store

COMPARE: Final = Script("batch_compare", "_standing")
FIRST: Final = 20
_PAGE: Final = 250
"""Rows per round trip: few enough that the script that checks them does not delay other clients."""
_HELD: Final = 100_000
_CROWDED: Final = "?"
_DROPPED: Final = "?"
_ANSWER: Final = 5


class Conflict(NamedTuple):
    """A row whose id belongs to a refund with other contents."""

    row: Accepted
    refund: Refund


class Repeat(NamedTuple):
    """A new row with the payment and amount of another refund that is pending or done."""

    row: Accepted
    refund_id: str


@dataclass(kw_only=True)
class Comparison:
    """The result of comparing a file with the records; lists hold the first twenty.

    `same` refunds exist with the same contents, by status in `statuses`; `conflicting` ids hold
    other contents; `fresh` rows are new, of which `repeats` have the payment and amount of a
    pending or done refund, and `all_remaining` state no amount and so ask for all that is left.
    """

    fresh: int = 0
    all_remaining: int = 0
    first_all_remaining: list[int] = field(default_factory=list)
    """The lines of the first `all_remaining` rows."""
    same: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    conflicting: int = 0
    first_conflicts: list[Conflict] = field(default_factory=list)
    not_failed: int = 0
    """New rows of which another attempt is pending or has succeeded."""
    first_not_failed: list[Conflict] = field(default_factory=list)
    repeats: int = 0
    first_repeats: list[Repeat] = field(default_factory=list)


class _Payments:
    """Cache of the refunds on payments that have very many.

    A payment is read once while it is cached.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, dict[int | None, str]] = {}
        self._count = 0

    def standing(self, asked: RefundRequest) -> str:
        """Return a refund that pays this amount back on this payment, '' if none exists."""
        payment_intent = asked.payment_intent
        amounts = self._held.get(payment_intent)
        if amounts is None:
            if self._count > _HELD:
                self._held.clear()
                self._count = 0
            amounts = self._held[payment_intent] = self._read(payment_intent)
            self._count += len(amounts)
        return amounts.get(asked.amount, "")

    def _read(self, payment_intent: str) -> dict[int | None, str]:
        found: dict[int | None, str] = {}
        store = self._store
        with redis_errors(store.address):
            names = store.redis.hscan_iter(
                store.key(f"payment:{payment_intent}"), match="refund:*", count=_PAGE
            )
            while page := [name.removeprefix("refund:") for name, _ in islice(names, _PAGE)]:
                with store.redis.pipeline(transaction=False) as pipeline:
                    for refund_id in page:
                        pipeline.hmget(
                            store.key(f"refund:{refund_id}"),
                            *("status", "amount", "all_remaining"),
                            *("contradicted_by", "set_aside_ids"),
                        )
                    for refund_id, (status, amount, rest, *shown) in zip(
                        page, pipeline.execute(), strict=True
                    ):
                        # As `stands` in `lua/_rows.lua`.
                        if status in {"pending", "succeeded"} or any(shown):
                            found.setdefault(
                                None if rest == "1" or amount is None else int(amount), refund_id
                            )
        return found


def compare(
    store: Store, rows: Iterable[Accepted], on_progress: Callable[[int], None] | None = None
) -> Comparison:
    """Compare a file's rows with the records; raises `StoreUnavailable`.

    Memory does not grow with the file, and a payment with very many refunds is not read again for
    each of its rows.
    """
    compared = Comparison()
    payments = _Payments(store)
    same_refund = SameRefund()
    rows = iter(rows)
    done = 0
    while page := list(islice(rows, _PAGE)):
        odd: list[Accepted] = []
        attempted: list[tuple[Accepted, str]] = []
        for row, (fingerprint, status, stage, repeated, attempt) in zip(
            page, _answers(store, page), strict=True
        ):
            if not fingerprint:
                _note_fresh(compared, row)
                if attempt:
                    attempted.append((row, attempt))
                other = payments.standing(row.request) if repeated == _CROWDED else repeated
                if other not in {"", attempt}:
                    _note(compared, Repeat(row, other))
            elif fingerprint == row.request.fingerprint:
                compared.same += 1
                compared.statuses[status if stage != "review" else "review"] += 1
            else:
                odd.append(row)
        _note_attempted(store, compared, attempted)
        _note_odd(store, compared, odd, same_refund)
        done += len(page)
        if on_progress is not None:
            on_progress(done)
    if compared.same:
        # The statuses of the records are reported.
        store.confirm()
    return compared


def _note_fresh(compared: Comparison, row: Accepted) -> None:
    compared.fresh += 1
    if row.request.amount is None:
        compared.all_remaining += 1
        if len(compared.first_all_remaining) < FIRST:
            compared.first_all_remaining.append(row.line)


def _note_attempted(
    store: Store, compared: Comparison, rows: Sequence[tuple[Accepted, str]]
) -> None:
    """Note rows of which another attempt, with that id, is pending or has succeeded."""
    compared.not_failed += len(rows)
    first = rows[: FIRST - len(compared.first_not_failed)]
    found = store.get_many([refund_id for _, refund_id in first])
    compared.first_not_failed += [
        Conflict(row, refund)
        for (row, _), refund in zip(first, found, strict=True)
        if refund is not None
    ]


def _note_odd(
    store: Store, compared: Comparison, rows: Sequence[Accepted], same_refund: SameRefund
) -> None:
    """Separate conflicts from rows that differ only in metadata that their ids were made from.

    If a refund's metadata were erased, only the fingerprint identifies a repeat.
    """
    for row, refund in zip(
        rows, store.get_many([row.request.refund_id for row in rows]), strict=True
    ):
        if refund is None:
            compared.fresh += 1
        elif refund.metadata_erased_at is None and same_refund(row.request, refund.as_request()):
            compared.same += 1
            compared.statuses[
                "review" if refund.stage is Stage.REVIEW else refund.status.value
            ] += 1
        else:
            compared.conflicting += 1
            if len(compared.first_conflicts) < FIRST:
                compared.first_conflicts.append(Conflict(row, refund))


def _answers(store: Store, page: Sequence[Accepted]) -> list[list[str]]:
    """Return each row's reply of `batch_compare.lua`, with any existing record's fingerprint."""
    arguments: list[Argument] = [MOST_FIELDS]
    for _, request in page:
        arguments += (request.refund_id, request.payment_intent, request.amount or "")
    flat: list[str] = store.run(
        Command(script=COMPARE, arguments=arguments, read=list, durable=False)
    )
    answers = [flat[index : index + _ANSWER] for index in range(0, len(flat), _ANSWER)]
    dropped = [index for index, answer in enumerate(answers) if answer[0] == _DROPPED]
    found = store.get_many([page[index].request.refund_id for index in dropped])
    for index, refund in zip(dropped, found, strict=True):
        answers[index][0] = refund.fingerprint if refund is not None else ""
    return answers


def _note(compared: Comparison, repeat: Repeat) -> None:
    compared.repeats += 1
    if len(compared.first_repeats) < FIRST:
        compared.first_repeats.append(repeat)
