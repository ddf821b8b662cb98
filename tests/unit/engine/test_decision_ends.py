"""How long a person's decision counts."""

from __future__ import annotations

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, VERIFY, refund_payload
from tests.unit.engine.decided import (
    SECOND_GENERATION,
    due_again,
    has_no_decision,
    insisted,
    retried_and_in_review,
)
from tests.unit.engine.rereads import NAMED, OWN, hint, posts
from tests.unit.engine.shop import (
    LIST,
    POST,
    Shop,
    error,
    opened,
    says,
)
from worker.model.refund import Refund, Stage, Status
from worker.rules.rechecks import WAITS


async def retry_sent_on_a_word(shop: Shop, answer: httpx.Response | Exception) -> Refund:
    """A retry whose earlier refund is unknown, sent because a person insisted, and the answer."""
    await retried_and_in_review(shop, error(404))
    await insisted(shop)
    success = says(200, refund_payload(id="re_2", metadata=SECOND_GENERATION))
    shop.provider.will(POST, answer, success)
    await shop.handle()
    return await shop.stored()


@pytest.mark.parametrize("status", [429, 401])
async def test_decision_counts_until_a_send_may_have_left(
    async_redis: redis.asyncio.Redis, status: int
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        refund = await retry_sent_on_a_word(shop, error(status))
        assert (refund.stage, refund.operator_by, posts(shop)) == (Stage.WAITING, "ann", 1)
        await async_redis.hdel("refunds:meta", "credentials_refused_at")
        await due_again(shop)
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_2")
        assert has_no_decision(refund)


async def test_decision_is_over_once_a_send_may_have_left(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, VERIFY) as shop:
        refund = await retry_sent_on_a_word(shop, httpx.ReadError("cut"))
        assert (refund.stage, posts(shop)) == (Stage.IN_DOUBT, 1)
        assert has_no_decision(refund)


async def test_decision_is_over_once_a_lease_lapses(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, VERIFY) as shop:
        refund = await retry_sent_on_a_word(shop, error(429))
        shop.pass_time(HOUR)
        await shop.set(stage="sending")
        shop.provider.will(LIST, error(500))
        await shop.handle()
        refund = await shop.stored()
        assert refund.stage is Stage.IN_DOUBT
        assert has_no_decision(refund)


async def test_decision_is_over_once_the_earlier_refund_is_shown_as_done(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retry_sent_on_a_word(shop, error(429))
        shop.provider.will(OWN, says())
        await due_again(shop)
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_1")
        assert (posts(shop), has_no_decision(refund)) == (1, True)


async def test_decision_does_not_count_for_what_a_webhook_names_after_a_refused_send(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retry_sent_on_a_word(shop, error(429))
        await hint(shop)
        shop.provider.will(NAMED, error(404))
        for _ in range(len(WAITS) + 2):
            shop.pass_time(HOUR)
            await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, posts(shop)) == (Stage.REVIEW, 1)
        assert has_no_decision(refund)


async def test_decision_is_over_once_the_budget_is_spent(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retry_sent_on_a_word(shop, error(429))
        shop.provider.will(POST, error(429))
        shop.pass_time(VERIFY.max_age)
        assert await shop.handle() == "in review (budget_spent)"
        assert has_no_decision(await shop.stored())
