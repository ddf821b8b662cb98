"""Commands for a store, and what a server says that it was asked."""

from __future__ import annotations

import hashlib
from typing import Any

import redis
import redis.asyncio

from tests.factories import a_request
from worker.model.refund import Lane
from worker.store import creations, reads
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command, Script
from worker.store.store import Store


def accept(refund_id: str = "a", **fields: Any) -> Command[Any]:
    return creations.create(
        a_request(refund_id, **({"payment_intent": f"pi_{refund_id}"} | fields)), Lane.SINGLE
    )


def asked(client: redis.Redis) -> dict[str, int]:
    """How often each command was carried out since the statistics were reset."""
    statistics: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in statistics.items()}


def settings_read(client: redis.Redis) -> int:
    """How often CONFIG GET was carried out since then.

    Redis 6.2 counts it with the resetting itself.
    """
    statistics = asked(client)
    return (
        statistics.get("config|get", 0)
        if "config|resetstat" in statistics
        else statistics["config"] - 1
    )


def wish(records: Store | AsyncStore) -> bool | None:
    """Whether a store waits for the disk, None while it has not asked."""
    return records.wait_for_disk


class _Broken(Script):
    def __init__(self) -> None:
        super().__init__("load")
        self.name = "broken"
        self.text = "return redis.call('HGETALL')"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


BROKEN: Command[Any] = Command(script=_Broken(), arguments=[], read=lambda reply: reply)


LOAD: Command[Any] = reads.load("a")
