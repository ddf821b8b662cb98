"""A worker on a server that forgot claims which were confirmed to this worker."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import redis
import redis.asyncio
import structlog.testing

from tests.unit.engine.shop import POST, opened, says
from worker.engine.positions import Positions
from worker.store.async_store import AsyncStore
from worker.store.recovery import recover
from worker.store.store import Store


async def test_nothing_is_sent_from_a_promoted_server_that_forgot_until_it_is_recovered(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis
) -> None:
    async with opened(async_redis) as shop:
        shop.store.wants_disk = True
        shop.provider.will(POST, says())
        await shop.accept()
        replica: dict[str, Any] = {key: sync_redis.dump(key) for key in sync_redis.scan_iter()}
        assert await shop.handle() == "succeeded"
        sync_redis.flushdb()
        for key, value in replica.items():
            sync_redis.restore(key, 0, value)
        with structlog.testing.capture_logs() as log:
            assert await shop.handle() == "queued (Redis has forgotten claims)"
            for _ in range(3):
                await shop.service.positions.check()
        assert shop.provider.asked == [POST]
        (alarm,) = [line for line in log if line["event"] == "records_behind"]
        assert alarm["alarm"] is True
        assert "refunds recover --since" in alarm["error"]
        store = Store(sync_redis)
        store.now = shop.now
        recover(store, shop.now - timedelta(hours=1), resubmitted_for=timedelta(0))
        sync_redis.hdel("refunds:meta", "paused")
        with structlog.testing.capture_logs() as log:
            for _ in range(2):
                await shop.service.positions.check()
        assert [line["event"] for line in log] == ["records_trusted_again"]
        assert (await shop.stored()).stage.value == "in_doubt"


async def test_highest_position_is_remembered_in_whatever_order_replies_come(
    async_redis: redis.asyncio.Redis,
) -> None:
    positions = Positions(AsyncStore(async_redis))
    for position in ("0-a:9:x", "0-a:10:y", "0-a:8:z", ""):
        positions.confirmed(position)
    assert positions.latest == "0-a:10:y"
    positions.confirmed("5-b:1:w")
    assert positions.latest == "5-b:1:w"


async def test_nothing_is_remembered_of_a_server_that_may_forget(
    async_redis: redis.asyncio.Redis,
) -> None:
    positions = Positions(AsyncStore(async_redis, durable=False))
    positions.confirmed("0-a:9:x")
    assert positions.latest == ""
    following = Positions(AsyncStore(async_redis, durable=False, replicas=1))
    following.confirmed("0-a:9:x")
    assert following.latest == "0-a:9:x"


async def test_check_of_a_server_that_forgot_nothing_says_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    positions = Positions(AsyncStore(async_redis))
    with structlog.testing.capture_logs() as log:
        for _ in range(2):
            await positions.check()
    assert log == []
