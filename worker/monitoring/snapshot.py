"""Reads everything from Redis that one scrape needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.model.refund import Status
from worker.store.connection import redis_errors
from worker.store.flags import WEBHOOK_ENDPOINTS
from worker.store.records import CLOCK, records_ms
from worker.store.store import BUCKETS, Store

ALIVE_MS: Final = 30_000
"""Age of the oldest heartbeat that counts: a worker sends one every five seconds."""
SAMPLE: Final = 25
"""Refunds read from each end of a stage's index to find its oldest."""
LATEST_BATCHES: Final = 200
"""Batches whose state is read, the latest first."""

_SETTLED: Final = frozenset({Status.SUCCEEDED.value, Status.FAILED.value, Status.CANCELED.value})
_UNSETTLED: Final = tuple(bucket for bucket in BUCKETS if bucket not in _SETTLED)
_META: Final = (
    *("paused", "credentials_refused_at", "account_lost_at"),
    *(WEBHOOK_ENDPOINTS, "behind_since"),
)
_BATCH: Final = ("state", "paused_reason", "status:pending", "stage:review")
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}")

Counts = Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything one scrape reads from the records' server."""

    now_ms: int
    cards: Counts
    counters: Counts
    first_due_ms: int | None
    rejected: int
    contradicted: int
    """Records that contradict a refund at the provider, and that no person has resolved."""
    paused: bool
    credentials_refused: bool
    account_lost: bool
    behind: bool
    """Whether claims are stopped because the server has forgotten some."""
    webhooks_set_up: bool
    """Whether a webhook endpoint was registered with `refunds webhooks setup`."""
    gate_blocked_until_ms: int
    workers: int
    outages: int
    """Workers that send nothing because the provider does not answer them."""
    batches_running: int
    batches_paused_themselves: int
    """Batches that paused themselves while refunds of them are neither settled nor in review."""
    oldest_ms: Mapping[str, int]
    """When the oldest refund found in each unsettled bucket was accepted."""
    info: Mapping[str, Any]


def snapshot(store: Store) -> Snapshot:
    """Read what a scrape needs in two round trips; raises `StoreUnavailable`."""
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.hmget(store.key("clock"), *CLOCK)
        pipeline.hgetall(store.key("counters"))
        pipeline.zrange(store.key("due"), 0, 0, withscores=True)
        pipeline.llen(store.key("rejected"))
        pipeline.zcard(store.key("contradicted"))
        pipeline.hmget(store.key("meta"), *_META)
        pipeline.hget(store.key("gate"), "blocked_until")
        pipeline.zrange(store.key("batches"), 0, LATEST_BATCHES - 1, desc=True)
        pipeline.info()
        for bucket in BUCKETS:
            pipeline.zcard(store.key(f"index:{bucket}"))
        for bucket in _UNSETTLED:
            pipeline.zrange(store.key(f"index:{bucket}"), 0, SAMPLE - 1)
            pipeline.zrange(store.key(f"index:{bucket}"), 0, SAMPLE - 1, desc=True)
        (
            server_time,
            clock,
            counters,
            first,
            rejected,
            contradicted,
            flags,
            blocked,
            batches,
            info,
            *rest,
        ) = pipeline.execute()
    cards, ends = rest[: len(BUCKETS)], rest[len(BUCKETS) :]
    samples = {
        bucket: {*ends[2 * index], *ends[2 * index + 1]} for index, bucket in enumerate(_UNSETTLED)
    }
    now_ms = records_ms(server_time, clock)
    workers, outages, batch_counts, oldest = _second_trip(store, now_ms, batches, samples)
    return Snapshot(
        now_ms=now_ms,
        cards=dict(zip(BUCKETS, cards, strict=True)),
        counters={name: int(value) for name, value in counters.items() if _NUMBER.fullmatch(value)},
        first_due_ms=int(first[0][1]) if first else None,
        rejected=rejected,
        contradicted=contradicted,
        paused=flags[0] is not None,
        credentials_refused=flags[1] is not None,
        account_lost=flags[2] is not None,
        webhooks_set_up=flags[3] is not None,
        behind=flags[4] is not None,
        gate_blocked_until_ms=int(float(blocked or 0)),
        workers=workers,
        outages=outages,
        batches_running=batch_counts[0],
        batches_paused_themselves=batch_counts[1],
        oldest_ms=oldest,
        info=info,
    )


def _second_trip(
    store: Store, now_ms: int, batches: Iterable[str], samples: Mapping[str, Iterable[str]]
) -> tuple[int, int, tuple[int, int], dict[str, int]]:
    asked = [(bucket, refund_id) for bucket, ids in samples.items() for refund_id in ids]
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for name in ("workers", "outages"):
            pipeline.zcount(store.key(name), now_ms - ALIVE_MS, "+inf")
        for batch_id in batches:
            pipeline.hmget(store.key(f"batch:{batch_id}"), _BATCH)
        for _, refund_id in asked:
            pipeline.hget(store.key(f"refund:{refund_id}"), "created_at")
        workers, outages, *rest = pipeline.execute()
    states, created = rest[: len(rest) - len(asked)], rest[len(rest) - len(asked) :]
    running = sum(state == "running" and int(pending or 0) > 0 for state, _, pending, _ in states)
    # A batch that a person paused has no reason, and somebody knows of it.
    themselves = sum(
        state == "paused" and reason is not None and int(pending or 0) > int(review or 0)
        for state, reason, pending, review in states
    )
    oldest: dict[str, int] = {}
    for (bucket, _), accepted in zip(asked, created, strict=True):
        if accepted is not None:
            oldest[bucket] = min(int(accepted), oldest.get(bucket, now_ms))
    return workers, outages, (running, themselves), oldest
