"""Disaster recovery: a Redis server restored from an old snapshot lacks what was sent since."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any, Final

from worker.model.refund import Stage
from worker.model.times import to_ms
from worker.rules import decisions
from worker.store import flags, saves
from worker.store.connection import redis_errors
from worker.store.store import PAGE, Store

BUCKETS: Final = (
    "sending",
    "in_doubt",
    "waiting",
    "queued",
    "queued.bulk",
    "processing",
    "review",
    "failed",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
    """A recovery's result: how many refunds are in doubt, and until when new ids begin in doubt."""

    doubted: int
    suspect_until: datetime


def recover(
    store: Store, since: datetime, *, resubmitted_for: timedelta, by: str = decisions.CALLER
) -> Recovered:
    """Put every refund that may have been sent since the snapshot in doubt.

    All claims are stopped meanwhile. An id that is submitted again within `resubmitted_for` also
    begins in doubt, because its record may have been lost after a send. Claims stay stopped until
    `refunds resume`. A server that has forgotten claims is trusted again. It is
    harmless to run this again.
    """
    store.require_durable()
    now = flags.now(store)
    until = now + resubmitted_for
    with redis_errors(store.address):
        store.redis.hset(
            store.key("meta"),
            mapping={
                "paused": str(to_ms(now)),
                "paused_by": f"{by} (recover)",
                "recovered_at": str(to_ms(now)),
                "suspect_since": str(to_ms(since)),
                "suspect_until": str(to_ms(until)),
            },
        )
        known: Any = store.redis.hget(store.key("meta"), "run")
    doubted = 0
    for page in _pages(store):
        left = page
        while left:
            steps = [
                (refund, step)
                for refund in store.get_many(left)
                if refund is not None and (step := decisions.recovered(refund, since, now))
            ]
            # Pages need not be durable one by one: everything is confirmed below, before the result
            # is reported.
            saved = store.run_many(
                [
                    saves.save(refund, step, {"since": to_ms(since), "by": by}, durable=False)
                    for refund, step in steps
                ]
            )
            doubted += sum(
                result.result == "saved" and step.to is Stage.IN_DOUBT
                for result, (_, step) in zip(saved, steps, strict=True)
            )
            # One that a worker has moved meanwhile, as by a read-back, is decided again.
            left = [
                refund.refund_id
                for result, (refund, _) in zip(saved, steps, strict=True)
                if result.result == "stale"
            ]
    _trust(store, max(to_ms(now), _recovered_ms(known) + 1))
    store.confirm()
    return Recovered(doubted=doubted, suspect_until=until)


def _recovered_ms(run: str | None) -> int:
    """Return when a run was made by a recovery, 0 if it was not."""
    found = (run or "").partition("-")[0]
    return int(found) if found.isdecimal() else 0


def _trust(store: Store, recovered_ms: int) -> None:
    """Begin a run of positions that every worker trusts, whatever it remembers of earlier ones."""
    meta = store.key("meta")
    run = f"{recovered_ms}-{secrets.token_hex(4)}"
    with redis_errors(store.address), store.redis.pipeline(transaction=True) as pipeline:
        pipeline.hset(meta, mapping={"run": run, "position": "0"})
        pipeline.delete(store.key("positions"))
        pipeline.hdel(meta, "behind_since")
        pipeline.execute()


def _pages(store: Store) -> Iterator[list[str]]:
    """Yield pages of the ids to recover.

    All ids are read first, because a move changes the index that is read.
    """
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for bucket in BUCKETS:
            # Whole, not by rank: the sweep of a running worker changes the order, and a page would
            # leave out a refund that may have been sent.
            pipeline.zrange(store.key(f"index:{bucket}"), 0, -1)
        found: Any = pipeline.execute()
    ids = iter(dict.fromkeys(chain.from_iterable(found)))
    while page := list(islice(ids, PAGE)):
        yield page
