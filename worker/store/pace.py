"""How many refunds settled in each of the latest minutes, by status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.model.refund import Status
from worker.store.connection import redis_errors
from worker.store.store import Store

MINUTE_MS: Final = 60_000
SETTLED_STATUSES: Final = (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Minute:
    """A minute that begins at `start_ms`, with its settled refunds by status."""

    start_ms: int
    settled: Mapping[str, int]


def settled_by_minute(store: Store, now_ms: int, minutes: int) -> list[Minute]:
    """Return the latest minutes, oldest first; the last one is not over.

    The cost does not grow with the number of refunds.
    """
    last = now_ms - now_ms % MINUTE_MS
    starts = [last - MINUTE_MS * back for back in reversed(range(minutes))]
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for start in starts:
            for status in SETTLED_STATUSES:
                pipeline.zcount(store.key(f"index:{status.value}"), start, f"({start + MINUTE_MS}")
        counts = iter(pipeline.execute())
    return [
        Minute(
            start_ms=start, settled={status.value: int(next(counts)) for status in SETTLED_STATUSES}
        )
        for start in starts
    ]
