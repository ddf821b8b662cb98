"""Reads which workers run, whether the provider answers them, and how fast they may call it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from worker.model.times import from_ms
from worker.monitoring.snapshot import ALIVE_MS
from worker.store.connection import redis_errors
from worker.store.store import Store

MOST: Final = 100
_RECOVERED_A_SECOND: Final = 0.02
"""The share of the rate that comes back each second after a 429: see `lua/_begin.lua`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerState:
    """A worker process: when it was last heard of, and whether the provider answers it."""

    name: str
    seen_at: datetime
    is_answered: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """The latest workers, and the part of the rate limit that is used after a 429."""

    workers: tuple[WorkerState, ...]
    pace: float


def read_fleet(store: Store, now_ms: int) -> Fleet:
    """Return the workers that are alive, by name. Raises `StoreUnavailable`."""
    alive = now_ms - ALIVE_MS
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.zrange(
            store.key("workers"),
            alive,
            "+inf",
            byscore=True,
            withscores=True,
            offset=0,
            num=MOST,
        )
        pipeline.zrange(store.key("outages"), alive, "+inf", byscore=True)
        pipeline.hmget(store.key("gate"), "pace", "paced_at")
        seen, unanswered, paces = pipeline.execute()
    out = frozenset(unanswered)
    workers = sorted(
        (
            WorkerState(name=name, seen_at=from_ms(int(at)), is_answered=name not in out)
            for name, at in seen
        ),
        key=lambda each: each.name,
    )
    return Fleet(workers=tuple(workers), pace=_pace(paces, now_ms))


def _pace(stored: Any, now_ms: int) -> float:
    pace, since = stored
    if pace is None or since is None:
        return 1.0
    recovered = max(0.0, now_ms - float(since)) / 1000 * _RECOVERED_A_SECOND
    return min(1.0, float(pace) + recovered)
