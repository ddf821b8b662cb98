"""Counters of a process, added to Redis every few seconds, so that metrics cover all processes.

Fields of the hash `counters`. Times are whole microseconds, and every name comes from a bounded
set:

    attempt:<seen>              attempts by result (`Seen`)
    answer:<code>               attempts by the code of their answer; `other` if it is not
                                in `codes.CODES`
    call:<operation>:<class>    calls to the provider by class of answer (`2xx` … `5xx`,
                                `not_sent`, `no_reply`)
    call_le:<operation>:<bound> calls that took at most this many seconds, and more than the
                                bound before; `+Inf` beyond
    call_us:<operation>         time spent in calls
    recheck:<result>            rechecks by result (`engine.rechecker.RESULTS`)
    gate_us                     time that refunds waited for the rate limit
    webhook:<result>            webhooks received, by what became of them
    http:<operation>:<status>   requests to the HTTP API by method and path (`openapi.json`), and by
                                the status of the answer

The set `outages` holds the workers whose outage breaker is open, by their last heartbeat.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Final

from redis import exceptions
from redis.asyncio.client import Pipeline

from worker.model.answers import Outcome
from worker.rules import codes
from worker.store import record_time
from worker.store.async_store import AsyncStore
from worker.store.connection import redis_errors

BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0)
"""Upper bounds of the latency histogram in seconds; the last one exceeds any sensible timeout."""
INFINITE: Final = "+Inf"
WEBHOOK_RESULTS: Final = (
    "hinted",
    "payment",
    "unknown",
    "ignored",
    "forged",
    "stale",
    "malformed",
)
"""What may become of a webhook."""
_CANNOT_COUNT: Final = ("overflow", "not an integer")
_MICROS: Final = 1_000_000


class Counters:
    """The counts of one process, kept until they are flushed. For one event loop."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._gate_us = 0

    def call(self, operation: str, outcome_class: str, seconds: float) -> None:
        """Count one call to the provider; the signature of the gateway's observer."""
        index = bisect_left(BOUNDS, seconds)
        bound = str(BOUNDS[index]) if index < len(BOUNDS) else INFINITE
        self._counts[f"call:{operation}:{outcome_class}"] += 1
        self._counts[f"call_le:{operation}:{bound}"] += 1
        self._counts[f"call_us:{operation}"] += round(seconds * _MICROS)

    def attempt(self, outcome: Outcome) -> None:
        """Count one attempt by its result and by the code of its answer."""
        self._counts[f"attempt:{outcome.verdict.value}"] += 1
        self._counts[f"answer:{codes.counted(outcome.code)}"] += 1

    def recheck(self, result: str) -> None:
        """Count one recheck by its result."""
        self._counts[f"recheck:{result}"] += 1

    def gate_waited(self, total_seconds: float) -> None:
        """Count the time that refunds waited at the rate gate.

        The argument is its total since the start.
        """
        total = round(total_seconds * _MICROS)
        self._counts["gate_us"] += total - self._gate_us
        self._gate_us = total

    def webhook(self, result: str) -> None:
        """Count one webhook by what became of it."""
        self._counts[f"webhook:{result}"] += 1

    def request(self, operation: str, status: int) -> None:
        """Count one request to the HTTP API."""
        self._counts[f"http:{operation}:{status}"] += 1

    async def flush(self, store: AsyncStore, *, worker: str, provider_away: bool) -> None:
        """Add the counts since the last flush to the hash.

        Raises `StoreUnavailable` and then keeps the counts.

        `provider_away` says whether the worker's outage breaker is open. If only the reply was
        lost, the same counts are added twice, which is acceptable because they are metrics and not
        accounts.
        """
        now = await store.run(record_time.clock())

        def outage(pipeline: Pipeline) -> None:
            if provider_away:
                pipeline.zadd(store.key("outages"), {worker: now})
            else:
                pipeline.zrem(store.key("outages"), worker)

        await self._flush(store, outage)

    async def flush_counts(self, store: AsyncStore) -> None:
        """Add the counts of a process that calls no provider; as `flush` in all else."""
        if self._counts:
            await self._flush(store, lambda _: None)

    async def _flush(self, store: AsyncStore, first: Callable[[Pipeline], None]) -> None:
        counts, self._counts = self._counts, Counter()
        try:
            with redis_errors(store.address):
                async with store.redis.pipeline(transaction=True) as pipeline:
                    first(pipeline)
                    for field, count in counts.items():
                        if count:
                            pipeline.hincrby(store.key("counters"), field, count)
                    # A counter at its maximum keeps its value, and must not prevent the others from
                    # being added.
                    results = await pipeline.execute(raise_on_error=False)
                for result in results:
                    _check(result)
        except BaseException:
            self._counts.update(counts)
            raise


def _check(result: object) -> None:
    """Raise the error that prevented a count, unless the counter's own value is the cause."""
    if isinstance(result, exceptions.ResponseError) and any(
        word in str(result) for word in _CANNOT_COUNT
    ):
        return
    if isinstance(result, BaseException):
        raise result
