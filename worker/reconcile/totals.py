"""Sums up what succeeded and what was reversed in a window, by currency and by more if asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Final

from worker.errors import StoreUnavailable
from worker.model.currencies import KNOWN
from worker.model.times import to_ms
from worker.reconcile.settled import (
    SUCCEEDED,
    Settled,
    all_succeeded,
    ids_settled_again,
    settled_in,
)
from worker.reconcile.window import Window
from worker.store.connection import redis_errors
from worker.store.store import Store

GROUPS: Final = ("day", "batch", "reason")
_TRIES: Final = 3
_COUNTED: Final = "settled:succeeded"
_AMOUNT: Final = "amount:succeeded:"


@dataclass(kw_only=True, slots=True)
class Total:
    """Refunds of one kind, currency and group; `unknown` of them have no known amount."""

    kind: str
    currency: str | None
    group: tuple[str, ...]
    refunds: int = 0
    amount: int = 0
    unknown: int = 0

    @property
    def signed(self) -> int:
        """Return the amount, negative for reversals."""
        return self.amount if self.kind == SUCCEEDED else -self.amount

    def add(self, amount: int | None) -> None:
        """Add one refund."""
        self.refunds += 1
        self.amount += amount or 0
        self.unknown += amount is None


def totals(store: Store, window: Window, groups: Sequence[str], zone: tzinfo) -> list[Total]:
    """Return the totals of a window; the days are those of the zone. Raises `StoreUnavailable`.

    A reversal is a total of its own, in the window in which it happened.
    """
    for _ in range(_TRIES):
        began = store.time()
        found: dict[tuple[Any, ...], Total] = {}
        for settled in settled_in(store, window):
            group = tuple(_name(settled, each, zone) for each in groups)
            currency = settled.fields["currency"]
            key = (settled.kind, currency, group)
            total = found.get(key)
            if total is None:
                total = found[key] = Total(kind=settled.kind, currency=currency, group=group)
            total.add(settled.amount)
        if not any(ids_settled_again(store, began)):
            store.confirm()
            return sorted(found.values(), key=_order)
    raise StoreUnavailable(
        "refunds that had settled changed while they were summed up: run the command again"
    )


def _order(total: Total) -> tuple[Any, ...]:
    return (total.group, total.currency or "", total.kind != SUCCEEDED)


def _name(settled: Settled, group: str, zone: tzinfo) -> str:
    if group == "day":
        return settled.at.astimezone(zone).date().isoformat()
    return settled.fields["batch_id" if group == "batch" else "reason"] or ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A counter of the metrics, and what all records add up to."""

    name: str
    counter: int
    walked: int
    expired: bool
    """Whether records may have expired, which a counter does not notice."""

    @property
    def agrees(self) -> bool:
        """Return whether the two are equal; with expired records a counter may be higher."""
        return self.counter >= self.walked if self.expired else self.counter == self.walked


def check(store: Store) -> list[Compared]:
    """Compare the counters with a walk over all succeeded refunds. Raises `StoreUnavailable`."""
    for _ in range(_TRIES):
        before = _counters(store)
        walked, oldest = _walk_all(store)
        if _counters(store) == before:
            break
    else:
        raise StoreUnavailable(
            "refunds settled while they were counted: run 'refunds pause' first, or run the command"
            " again when fewer refunds settle"
        )
    expired = oldest is not None and to_ms(store.time()) - oldest >= store.retention_ms
    names = sorted({*walked, *before})
    return [
        Compared(
            name=name, counter=before.get(name, 0), walked=walked.get(name, 0), expired=expired
        )
        for name in names
    ]


def _counters(store: Store) -> dict[str, int]:
    with redis_errors(store.address):
        counters: Any = store.redis.hgetall(store.key("counters"))
    return {
        name: int(value)
        for name, value in counters.items()
        if name == _COUNTED or name.startswith(_AMOUNT)
    }


def _walk_all(store: Store) -> tuple[dict[str, int], int | None]:
    """Return the count and the amounts of all succeeded refunds, and when the first settled."""
    found: Counter[str] = Counter()
    oldest: int | None = None
    for at, fields in all_succeeded(store):
        oldest = at if oldest is None else min(at, oldest)
        found[_COUNTED] += 1
        if (amount := fields["amount"]) is not None:
            # As the script that counts them does.
            currency = fields["currency"]
            name = "unknown" if currency is None else currency if currency in KNOWN else "other"
            found[f"{_AMOUNT}{name}"] += int(amount)
    return dict(found), oldest
