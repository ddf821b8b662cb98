"""Commands of many coroutines that leave for Redis together, as the worker's own do."""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio

from worker.store.async_store import TRIPS
from worker.store.scripts import Argument


class Gathered:
    """Commands asked for while the worker's number of pipelines is under way leave together in the
    next.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._waiting: list[tuple[tuple[Argument, ...], asyncio.Future[Any]]] = []
        self._flushers: set[asyncio.Task[None] | None] = set()

    async def run(self, *command: Argument) -> Any:
        """Run one command and return its raw reply."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if len(self._flushers) < TRIPS:
            self._flushers.add(asyncio.create_task(self._flush()))
        return await future

    async def _flush(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            async with self._redis.pipeline(transaction=False) as pipeline:
                for command, _ in group:
                    pipeline.execute_command(*command)
                replies = await pipeline.execute()
            for (_, future), reply in zip(group, replies, strict=True):
                future.set_result(reply)
        self._flushers.discard(asyncio.current_task())
