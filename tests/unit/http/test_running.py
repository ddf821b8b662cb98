"""`refunds serve` in this process, on a real Redis whose settings change while it serves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import aiohttp
import pytest
import redis.asyncio

from worker.errors import SettingsError
from worker.http import running
from worker.sandbox.redis_server import running_server
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[str]:
    """Serve the webhooks, and yield the address of `/ready`."""
    said = asyncio.Queue[str]()
    settings = Settings.load(redis_url=url, webhook_secrets="whsec_4f1c0a8be7d64c2f9b35")
    server = asyncio.create_task(
        running.run(
            settings,
            parts=("webhooks",),
            host="127.0.0.1",
            port=0,
            grace_seconds=0,
            say=said.put_nowait,
        )
    )
    try:
        yield (await asyncio.wait_for(said.get(), 10)).removeprefix("listening at ") + "/ready"
    finally:
        server.cancel()
        with suppress(asyncio.CancelledError):
            await server


async def until(url: str, wanted: int) -> None:
    """Ask until the answer is the wanted one."""
    async with asyncio.timeout(10), aiohttp.ClientSession() as client:
        while True:
            async with client.get(url) as answer:
                if answer.status == wanted:
                    return
            await asyncio.sleep(0.02)


async def test_it_accepts_nothing_with_wrong_settings_of_the_broker(redis_url: str) -> None:
    settings = Settings.load(redis_url=redis_url, broker_url="sentinel://127.0.0.1:1/0")
    with pytest.raises(SettingsError, match="master's name"):
        await running.run(settings, parts=("api",), host="127.0.0.1", port=0)


async def test_it_is_not_ready_while_too_few_replicas_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "TICK_SECONDS", 0.05)
    monkeypatch.setenv("REFUNDS_REPLICAS", "1")
    with running_server() as primary, running_server() as replica:
        async with (
            redis.asyncio.Redis.from_url(primary.url) as admin,
            redis.asyncio.Redis.from_url(replica.url) as follower,
        ):
            await admin.config_set("repl-diskless-sync-delay", 0)
            await follower.replicaof("127.0.0.1", primary.port)
            while not await admin.wait(1, 100):
                await admin.set("follows", "1")
            async with serving(primary.url) as ready:
                await until(ready, 200)
                await follower.replicaof("NO", "ONE")
                await until(ready, 503)
                await follower.replicaof("127.0.0.1", primary.port)
                await until(ready, 200)


async def test_it_is_not_ready_while_redis_has_forgotten_claims() -> None:
    with running_server() as server:
        async with serving(server.url) as ready, redis.asyncio.Redis.from_url(server.url) as admin:
            await until(ready, 200)
            await admin.hset("refunds:meta", "behind_since", "1000")
            await until(ready, 503)


async def test_it_is_not_ready_while_redis_is_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "TICK_SECONDS", 0.05)
    with running_server() as server:
        async with serving(server.url) as ready, redis.asyncio.Redis.from_url(server.url) as admin:
            await until(ready, 200)
            await admin.config_set("appendonly", "no")
            await until(ready, 503)
            await admin.config_set("appendonly", "yes")
            await until(ready, 200)
