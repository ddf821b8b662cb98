"""Finds when refunds succeeded and were reversed: in a window of time, whatever they are today.

The index of succeeded refunds has the time at which each settled last. A refund that changed after
it had settled is in `settled-again` or `reversed` too, and its history has the times. So a later
reversal never changes what a closed month adds up to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from worker.model.refund import Stage, Status
from worker.model.times import from_ms, to_ms
from worker.reconcile.window import Window
from worker.store.connection import redis_errors
from worker.store.records import Moves
from worker.store.store import PAGE, Store

SUCCEEDED: Final = "succeeded"
REVERSED: Final = "reversed"
FIELDS: Final = (
    "refund_id",
    "payment_intent",
    "amount",
    "currency",
    "status",
    "stage",
    "provider_refund_id",
    "prior_refund_ids",
    "evidence",
    "batch_id",
    "reason",
    "updated_at",
)
"""What is read of a record."""

Fields = Mapping[str, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A refund that succeeded, or was reversed, at `at`; its fields are those of today."""

    at: datetime
    kind: str
    fields: Fields

    @property
    def amount(self) -> int | None:
        """Return the amount in minor units, None if it is not known."""
        text = self.fields["amount"]
        return None if text is None else int(text)


def settled_in(store: Store, window: Window) -> Iterator[Settled]:
    """Yield what happened in a window up to now, in no order; raises `StoreUnavailable`.

    A refund that changes meanwhile may be missed: see `ids_settled_again`.
    """
    until = min(to_ms(window.end), to_ms(store.time()) + 1)
    again = set(ids_settled_again(store))
    for page in _walked(store, to_ms(window.start), until):
        scores = {refund_id: at for refund_id, at in page if refund_id not in again}
        for refund_id, fields in read(store, scores).items():
            if _succeeded(fields):
                yield Settled(at=from_ms(scores[refund_id]), kind=SUCCEEDED, fields=fields)
    for chunk in _chunks(sorted(again)):
        histories = _histories(store, chunk)
        for refund_id, fields in read(store, chunk).items():
            for kind, at in turns(histories[refund_id]):
                if at in window and to_ms(at) < until:
                    yield Settled(at=at, kind=kind, fields=fields)


def all_succeeded(store: Store) -> Iterator[tuple[int, Fields]]:
    """Yield every refund that is succeeded today, with when it settled last, in epoch ms."""
    for page in _walked(store, 0, to_ms(store.time()) + 1):
        scores = dict(page)
        for refund_id, fields in read(store, scores).items():
            if _succeeded(fields):
                yield scores[refund_id], fields


def turns(moves: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, datetime]]:
    """Yield when a refund succeeded, and when it was reversed, by its history."""
    stood = False
    for move in moves:
        stands = move["to"] == Stage.SETTLED and move["status"] == Status.SUCCEEDED
        if stands != stood:
            yield SUCCEEDED if stands else REVERSED, from_ms(move["at"])
        stood = stands


def succeeded_at(store: Store, refund_ids: Iterable[str]) -> dict[str, datetime | None]:
    """Return when each refund last became succeeded, by its history; None if it never did."""
    found: dict[str, datetime | None] = {}
    for chunk in _chunks(list(refund_ids)):
        for refund_id, moves in _histories(store, chunk).items():
            times = [at for kind, at in turns(moves) if kind == SUCCEEDED]
            found[refund_id] = times[-1] if times else None
    return found


def ids_settled_again(store: Store, since: datetime | None = None) -> Iterator[str]:
    """Yield the ids of refunds that changed after they had settled, all or since a time."""
    least = "-inf" if since is None else str(to_ms(since))
    for name in ("settled-again", "reversed"):
        with redis_errors(store.address):
            ids: Any = store.redis.zrangebyscore(store.key(name), least, "+inf")
        yield from ids


def read(store: Store, refund_ids: Iterable[str]) -> dict[str, Fields]:
    """Return the fields of records, without those that do not exist."""
    ids = list(refund_ids)
    found: dict[str, Fields] = {}
    for chunk in _chunks(ids):
        with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
            for refund_id in chunk:
                pipeline.hmget(store.key(f"refund:{refund_id}"), *FIELDS)
            rows = pipeline.execute()
        for refund_id, row in zip(chunk, rows, strict=True):
            if row[0] is not None:
                found[refund_id] = dict(zip(FIELDS, row, strict=True))
    return found


def _succeeded(fields: Fields) -> bool:
    return fields["stage"] == Stage.SETTLED and fields["status"] == Status.SUCCEEDED


def _walked(store: Store, start: int, until: int) -> Iterator[list[tuple[str, int]]]:
    """Yield the succeeded refunds from one time up to another, page by page.

    A page begins at the last time of the page before, so that no step grows with the walk.
    """
    at, skipped = start, 0
    while True:
        with redis_errors(store.address):
            page: Any = store.redis.zrangebyscore(
                store.key("index:succeeded"), at, f"({until}", skipped, PAGE, withscores=True
            )
        rows = [(refund_id, int(score)) for refund_id, score in page]
        yield rows
        if len(rows) < PAGE:
            return
        last = rows[-1][1]
        same = sum(score == last for _, score in rows)
        skipped, at = (skipped + same if last == at else same), last


def _histories(store: Store, refund_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for refund_id in refund_ids:
            pipeline.lrange(store.key(f"history:{refund_id}"), 0, -1)
        replies = pipeline.execute()
    return {
        refund_id: Moves().read(entries)
        for refund_id, entries in zip(refund_ids, replies, strict=True)
    }


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), PAGE):
        yield ids[start : start + PAGE]
