"""Finds imports that stopped part way: some of their rows were never accepted."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from worker.batches.record import Batch, decoded
from worker.model.times import from_ms
from worker.store.connection import redis_errors
from worker.store.store import Store

LATEST: Final = 200
"""How many of the latest batches are looked at."""
_QUIET: Final = timedelta(minutes=2)
"""An import that accepts no refund for so long has stopped."""


def interrupted_imports(store: Store, now: datetime) -> list[Batch]:
    """Return the latest batches whose import stopped before its last row, newest first."""
    with redis_errors(store.address):
        names: Any = store.redis.zrange(store.key("batches"), 0, LATEST - 1, desc=True)
        with store.redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(store.key(f"batch:{name}"), "created_at", "imported_at", "state")
            states = pipeline.execute()
        partly = [
            name
            for name, (began, imported, state) in zip(names, states, strict=True)
            if began is not None and imported is None and state != "canceled"
        ]
        with store.redis.pipeline(transaction=False) as pipeline:
            for name in partly:
                pipeline.hgetall(store.key(f"batch:{name}"))
                pipeline.lrange(store.key(f"batch-refunds:{name}"), -1, -1)
            found = pipeline.execute()
    return [
        batch
        for name, stored, latest in zip(partly, found[::2], found[1::2], strict=True)
        # Its record may have expired, or its import ended, meanwhile.
        if stored
        and (batch := decoded(name, stored)).imported_at is None
        and now - _last_accepted(store, batch, latest) > _QUIET
    ]


def _last_accepted(store: Store, batch: Batch, latest: list[str]) -> datetime:
    with redis_errors(store.address):
        accepted: Any = (
            store.redis.hget(store.key(f"refund:{latest[0]}"), "created_at") if latest else None
        )
    times = [batch.created_at, from_ms(int(accepted)) if accepted is not None else None]
    return max(each for each in times if each is not None)
