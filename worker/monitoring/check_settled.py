"""Checks of settled refunds: whether they are read again, and their metadata erased, in time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from worker.model.times import to_ms
from worker.monitoring.checks import Check, lasting, ok, warn
from worker.settings import Settings
from worker.store.connection import redis_errors
from worker.store.erasure import FINAL
from worker.store.store import Store
from worker.store.watch_state import read_watch

LATE: Final = timedelta(days=1)
"""How late the watch, or the erasure of metadata, may be before the check warns."""


def after_the_end(settings: Settings, store: Store, now: datetime) -> Iterator[Check]:
    """Yield the checks of settled refunds; `now` is the records' time."""
    yield _watch(settings, store, now)
    yield from _erasure(settings, store, now)


def _watch(settings: Settings, store: Store, now: datetime) -> Check:
    """Report how far the watch is with reading settled refunds again."""
    if not settings.watch_rungs:
        return warn(
            "watch",
            "off: a refund that the provider fails after it succeeded is not noticed",
            "export REFUNDS_WATCH=1d,7d,30d,60d for every worker and restart",
        )
    lag = read_watch(store, settings.watch_rungs, now).lag
    if lag <= LATE:
        return ok("watch", f"settled refunds are read again after {settings.watch}")
    text = f"settled refunds should have been read again {lasting(lag.total_seconds())} ago"
    return warn("watch", text, "refunds watch status")


def _erasure(settings: Settings, store: Store, now: datetime) -> Iterator[Check]:
    """Report how far the workers are with erasing metadata, if `REFUNDS_METADATA_DAYS` is set."""
    if settings.metadata_days is None:
        return
    until = to_ms(now - timedelta(days=settings.metadata_days))
    with redis_errors(store.address):
        cursors: Any = store.redis.hmget(store.key("watch"), [f"erased:{name}" for name in FINAL])
        with store.redis.pipeline(transaction=False) as pipeline:
            for name, cursor in zip(FINAL, cursors, strict=True):
                pipeline.zrange(
                    store.key(f"index:{name}"),
                    f"({cursor or 0}",
                    until,
                    byscore=True,
                    offset=0,
                    num=1,
                    withscores=True,
                )
            firsts = [score for page in pipeline.execute() for _, score in page]
    days = f"{settings.metadata_days:g} d"
    lag = timedelta(milliseconds=until - min(firsts)) if firsts else timedelta(0)
    if lag <= LATE:
        yield ok("metadata", f"erased {days} after a refund settled")
        return
    text = (
        f"to be erased {days} after a refund settled, and the workers are"
        f" {lasting(lag.total_seconds())} behind"
    )
    fix = f"export REFUNDS_METADATA_DAYS={settings.metadata_days:g} for every worker and restart"
    yield warn("metadata", text, fix)
