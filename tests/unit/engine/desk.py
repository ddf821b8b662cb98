"""A recorder over real records, with what it asked to be looked at again."""

from __future__ import annotations

from typing import Any

import redis.asyncio

from tests.factories import NOW, SECOND, a_request
from tests.unit.engine.shop import ID
from worker.engine.recorder import Recorder
from worker.errors import StoreUnavailable
from worker.model.refund import Lane, Refund
from worker.store import claims, creations, reads, scripts
from worker.store.async_store import AsyncStore


class Flaky(AsyncStore):
    """Records that cannot be reached so many times, a clock that each try moves."""

    away = 0
    tries = 0
    seconds = 0.0

    async def run(self, command: Any) -> Any:
        if command.script is scripts.SAVE:
            self.tries += 1
            if self.tries <= self.away:
                raise StoreUnavailable("redis is away")
        return await super().run(command)


class Desk:
    """A recorder over records of its own, with what it asked to be looked at again."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.store = Flaky(client, durable=False)
        self.store.now = NOW
        self.again: list[Any] = []
        self.seconds = 0.0
        self.recorder = Recorder(
            self.store,
            clock=lambda: self.seconds,
            handle_again=lambda *facts: self.again.append(facts),
        )

    async def claimed(self, refund_id: str = ID, **fields: Any) -> Refund:
        await self.store.run(creations.create(a_request(refund_id, **fields), Lane.BULK))
        claim = await self.store.run(
            claims.claim(refund_id, "send", token=refund_id, lease=45 * SECOND)
        )
        refund: Refund | None = claim.refund
        assert refund is not None
        return refund

    async def stored(self, refund_id: str = ID) -> Refund:
        refund: Refund | None = (await self.store.run(reads.load(refund_id))).refund
        assert refund is not None
        return refund


def named(log: list[Any], event: str) -> list[Any]:
    return [line for line in log if line["event"] == event]
