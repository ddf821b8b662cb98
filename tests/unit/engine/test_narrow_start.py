"""A file whose every row fails alike: what it costs with a full worker, or several."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import httpx
import pytest
import redis.asyncio

from tests.factories import refund_payload
from tests.unit.engine.shop import POST, error, opened, says
from worker.model.refund import Lane, Status
from worker.store import scripts


@pytest.mark.parametrize("workers", [1, 3])
async def test_wrong_account_costs_less_than_thirty_rows_of_a_file(
    async_redis: redis.asyncio.Redis, workers: int
) -> None:
    async with AsyncExitStack() as stack:
        shops = [
            await stack.enter_async_context(opened(async_redis, slots=64)) for _ in range(workers)
        ]
        ids = [f"row-{number}" for number in range(60 * workers)]
        for refund_id in ids:
            await shops[0].accept(
                refund_id, Lane.BULK, batch_id="b1", payment_intent=f"pi_{refund_id}"
            )
        await async_redis.hset("refunds:batch:b1", "state", "running")

        async def refuse(_: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0.01)
            return error(402, "balance_insufficient", "card_error")

        for shop in shops:
            shop.provider.will(POST, refuse)
        await asyncio.gather(
            *(
                shop.service.process(ids[n::workers], Lane.BULK, seconds=30)
                for n, shop in enumerate(shops)
            )
        )
        for shop in shops:
            await shop.service.drain()
        failed = [
            refund_id
            for refund_id in ids
            if (await shops[0].stored(refund_id)).status is Status.FAILED
        ]
        assert 20 <= len(failed) < 30
        assert sum(len(shop.provider.asked) for shop in shops) == len(failed)
        assert await async_redis.hget("refunds:batch:b1", "state") == "paused"


async def test_healthy_file_goes_through_without_a_sweep(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, slots=64) as shop:
        ids = [f"row-{number}" for number in range(200)]
        for refund_id in ids:
            await shop.accept(refund_id, Lane.BULK, batch_id="b1", payment_intent=f"pi_{refund_id}")

        def take(_: httpx.Request) -> httpx.Response:
            number = len(shop.provider.asked)
            payload = refund_payload(id=f"re_{number}", payment_intent=None)
            del payload["payment_intent"], payload["metadata"]
            return says(200, payload)

        shop.provider.will(POST, take)
        await shop.service.process(ids, Lane.BULK, seconds=30)
        await shop.service.drain()
        assert {(await shop.stored(refund_id)).status for refund_id in ids} == {Status.SUCCEEDED}
        assert "sweep" not in shop.store.asked
        # Held back, a row asks once in vain and is woken once.
        assert shop.store.asked.count(scripts.CLAIM.name) <= 2 * len(ids)
