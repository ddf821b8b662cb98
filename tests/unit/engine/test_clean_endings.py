"""A settled record says how the refund ended, and nothing of what was thought of it before."""

from __future__ import annotations

import pytest
import redis.asyncio

from tests.factories import BLIND, VERIFY, found, refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look
from tests.unit.engine.rereads import OWN, settle
from tests.unit.engine.shop import ID, LIST, POST, Shop, error, listing, opened, says
from worker.model.refund import Refund, Stage, Status
from worker.rules import decisions, proofs

OF_A_FAILURE = ("error_code", "error_message", "failure_reason", "retriable", "reversed_at")


def left_of_a_failure(refund: Refund) -> list[str]:
    """The fields of a failure that the record still shows."""
    return [name for name in OF_A_FAILURE if getattr(refund, name) is not None]


async def second_one_named(shop: Shop) -> Refund:
    """A failed refund for which the provider shows a second one, which a person names."""
    refund = await shop.stored()
    assert (refund.status, refund.failure_reason) == (Status.FAILED, "unknown")
    proof = proofs.done(refund, found(id="re_2"), "reply", shop.now)
    await shop.service._recorder.contradict(refund, proof)
    step = decisions.resolve_succeeded(await shop.stored(), "re_2", shop.now, by="ann")
    await decided(shop, step)
    shop.provider.will("GET /v1/refunds/re_2", says(200, refund_payload(id="re_2")))
    return await look(shop)


async def test_refund_whose_second_one_counts_shows_nothing_of_the_first_that_failed(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await settle(shop, "failed")
        refund = await second_one_named(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_2")
        assert left_of_a_failure(refund) == []


async def test_refund_whose_second_one_counts_is_not_listed_as_reversed_any_more(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await settle(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        await async_redis.zadd("refunds:rechecks", {ID: 1})
        await shop.handle()
        assert await async_redis.zrange("refunds:reversed", 0, -1) == [ID]
        refund = await second_one_named(shop)
        assert (refund.status, left_of_a_failure(refund)) == (Status.SUCCEEDED, [])
        assert await async_redis.zrange("refunds:reversed", 0, -1) == []


@pytest.mark.parametrize("by", ["caller", "batch"])
async def test_canceled_refund_shows_nothing_of_the_attempt_before(
    async_redis: redis.asyncio.Redis, by: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        shop.provider.will(POST, error(429))
        refund = await look(shop)
        assert (refund.stage, refund.error_code) == (Stage.WAITING, "rate_limited")
        if by == "batch":
            await shop.set(batch_id="b1")
            await async_redis.hset("refunds:batch:b1", "state", "canceled")
            await look(shop)
        else:
            await decided(shop, decisions.cancel(refund))
        refund = await shop.stored()
        assert (refund.status, left_of_a_failure(refund)) == (Status.CANCELED, [])


async def test_refund_that_a_person_names_shows_nothing_of_the_doubt(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await bring_to_review(shop)
        step = decisions.resolve_succeeded(await shop.stored(), "re_1", shop.now, by="ann")
        await decided(shop, step)
        shop.provider.will(OWN, says())
        shop.provider.will(LIST, listing())
        refund = await look(shop)
        assert (refund.status, left_of_a_failure(refund)) == (Status.SUCCEEDED, [])
