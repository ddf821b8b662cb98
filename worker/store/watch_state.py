"""Reads how far the watch of settled refunds has come, and sets it back to read older ones.

The hash `watch` has one cursor for each rung and status: the time of settling up to which refunds
were added to `rechecks`. See `lua/watch.lua`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any, Final

from worker.model.refund import Status
from worker.model.times import from_ms, to_ms
from worker.store.connection import redis_errors
from worker.store.rechecks import FAILED_RUNGS
from worker.store.store import Store

_ms: Final = timedelta(milliseconds=1)
_DAY: Final = timedelta(days=1)
_PAGE: Final = 500
_STATUSES: Final = (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """A time since settling at which refunds of one status are read again.

    `cursor` is the time of settling up to which they were, None if the watch has not begun here.
    `lag` is how long the first refund after the cursor has been due. `a_day` is the number of reads
    that become due within a day. It is 0 for canceled refunds: only those that had failed before
    are read, and they are not counted.
    """

    after: timedelta
    status: Status
    cursor: datetime | None
    lag: timedelta
    a_day: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchState:
    """The state of the watch. `blind` counts reads left out for want of a provider refund id."""

    started_at: datetime | None
    rungs: tuple[Rung, ...]
    blind: int
    waiting: int
    """Refunds to be read again, whether for the watch or for a webhook."""
    reversed: int
    """Refunds that the provider has changed from succeeded to failed."""

    @property
    def lag(self) -> timedelta:
        """Return the largest lag of a rung."""
        return max((rung.lag for rung in self.rungs), default=timedelta(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class SetBack:
    """A cursor that a backfill sets back, and how many refunds are read again because of it."""

    after: timedelta
    status: Status
    cursor: datetime
    refunds: int


def rung_name(after: timedelta) -> str:
    """Return a rung as `REFUNDS_WATCH` names it, such as `7d` or `36h`."""
    days, rest = divmod(after, _DAY)
    return f"{after // timedelta(hours=1)}h" if rest else f"{days}d"


def read_watch(store: Store, rungs: Sequence[timedelta], at: datetime) -> WatchState:
    """Read the state of the watch with these rungs at the records' time, now.

    Raises `StoreUnavailable`.
    """
    walked = _walked(rungs)
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(store.key("watch"))
        pipeline.zcard(store.key("rechecks"))
        pipeline.zcard(store.key("reversed"))
        stored, waiting, reversals = pipeline.execute()
    now = to_ms(at)
    cursors = [_number(stored.get(_field(after, status))) for after, status in walked]
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for (after, status), cursor in zip(walked, cursors, strict=True):
            index, till = store.key(f"index:{status}"), now - after // _ms
            first = f"({till if cursor is None else cursor}"
            pipeline.zrange(index, first, till, byscore=True, offset=0, num=1, withscores=True)
            pipeline.zcount(index, f"({till}", till + _DAY // _ms)
        replies: list[Any] = pipeline.execute()
    found = [
        Rung(
            after=after,
            status=status,
            cursor=None if cursor is None else from_ms(cursor),
            lag=max(0, now - after // _ms - int(first[0][1])) * _ms if first else timedelta(0),
            a_day=0 if status is Status.CANCELED else a_day,
        )
        for (after, status), cursor, first, a_day in zip(
            walked, cursors, replies[::2], replies[1::2], strict=True
        )
    ]
    started = _number(stored.get("started_at"))
    return WatchState(
        started_at=None if started is None else from_ms(started),
        rungs=tuple(found),
        blind=_number(stored.get("blind")) or 0,
        waiting=waiting,
        reversed=reversals,
    )


def backfill(
    store: Store, rungs: Sequence[timedelta], since: datetime, now: datetime
) -> list[SetBack]:
    """Set cursors back, so that refunds that settled since then are read again; return which.

    Each refund is read once, on the last rung that it has passed. A cursor never moves forward.
    `now` is the records' time. Raises `StoreUnavailable`, `NotDurable`.
    """
    state = read_watch(store, rungs, now)
    moved: list[SetBack] = []
    for status in _STATUSES:
        own = [rung for rung in state.rungs if rung.status is status]
        for rung, longer in zip_longest(own, own[1:]):
            # What has passed the next rung too is read there.
            start = since - _ms if longer is None else max(since - _ms, now - longer.after)
            before = rung.cursor or now - rung.after
            if start >= before:
                continue
            count = _to_be_read(store, status, start, before)
            with redis_errors(store.address):
                store.redis.hset(store.key("watch"), _field(rung.after, status), to_ms(start))
            moved.append(SetBack(after=rung.after, status=status, cursor=start, refunds=count))
    # Also if nothing moved: another backfill may have set the cursors back a moment ago.
    store.confirm()
    return moved


def _to_be_read(store: Store, status: Status, start: datetime, until: datetime) -> int:
    """Return how many refunds settled after `start`, and not after `until`, that the watch reads.

    Of canceled ones these are those whose earlier generation had failed.
    """
    index, first, last = store.key(f"index:{status}"), f"({to_ms(start)}", to_ms(until)
    if status is not Status.CANCELED:
        with redis_errors(store.address):
            count: Any = store.redis.zcount(index, first, last)
        return int(count)
    found = done = 0
    while True:
        with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
            page: Any = store.redis.zrange(index, first, last, byscore=True, offset=done, num=_PAGE)
            for refund_id in page:
                pipeline.hexists(store.key(f"refund:{refund_id}"), "prior_refund_ids")
            replies: list[bool] = pipeline.execute()
        found += sum(replies)
        done += len(page)
        if len(page) < _PAGE:
            return found


def _walked(rungs: Sequence[timedelta]) -> list[tuple[timedelta, Status]]:
    """Return the rungs with the statuses that the watch reads on each."""
    return [
        (after, status)
        for status in _STATUSES
        for after in (rungs if status is Status.SUCCEEDED else rungs[:FAILED_RUNGS])
    ]


def _field(after: timedelta, status: Status) -> str:
    return f"{status}:{after // _ms}"


def _number(text: str | None) -> int | None:
    return None if text is None else int(float(text))
