"""What a webhook named is read before a person's decision is carried out."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, VERIFY, refund_payload
from tests.unit.engine.decided import (
    due_again,
    given_up,
    has_no_decision,
    in_review_for_a_name,
    insisted,
)
from tests.unit.engine.rereads import NAMED, hint, posts
from tests.unit.engine.shop import (
    BY_ID,
    POST,
    error,
    opened,
    says,
)
from worker.model.refund import Stage
from worker.rules.rechecks import WAITS


async def test_refund_that_a_webhook_named_is_taken_if_it_is_readable_by_then(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.handle() == "succeeded"
        refund = await shop.stored()
        assert (posts(shop), refund.provider_refund_id) == (0, "re_9")
        assert has_no_decision(refund)


async def test_refund_is_sent_after_the_last_read_in_vain_of_what_a_webhook_named(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(POST, says())
        for wait in WAITS:
            await shop.handle()
            assert posts(shop) == 0
            shop.pass_time(wait)
        assert await shop.handle() == "succeeded"
        refund = await shop.stored()
        # It may be a second one of ours, so it is read again now.
        assert (posts(shop), refund.candidates) == (1, ("re_9",))
        assert has_no_decision(refund)
        entries = [entry["label"] for entry in await shop.history()]
        assert entries[-3:] == ["operator_says_absent", "send", "succeeded"]


async def test_doubted_refund_is_sent_after_the_third_read_in_vain_of_what_a_webhook_named(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("cut"))
        await shop.handle()
        sent = posts(shop)
        await hint(shop)
        await shop.set(stage="review")
        await insisted(shop)
        shop.provider.will(NAMED, error(500))
        shop.provider.will(POST, says())
        shop.provider.will(BY_ID, says())
        for _ in range(2):
            await shop.handle()
            assert posts(shop) == sent
            await due_again(shop)
        assert await shop.handle() == "processing"
        refund = await shop.stored()
        assert (posts(shop), shop.provider.asked.count(NAMED)) == (sent + 1, 3)
        assert refund.hinted is None


async def test_name_that_was_read_in_vain_before_a_send_on_a_word_is_read_before_the_next_one(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("cut"))
        await shop.handle()
        sent = posts(shop)
        await hint(shop)
        await shop.set(stage="review")
        await insisted(shop)
        shop.provider.will(NAMED, error(500))
        shop.provider.will(POST, error(429), says())
        for _ in range(3):
            await shop.handle()
            await due_again(shop)
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.WAITING, sent + 1)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.handle() == "in review (conflict)"
        assert posts(shop) == sent + 1


async def test_name_that_was_read_in_vain_before_a_first_send_is_read_before_the_next_one(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(POST, error(429), says())
        for wait in (*WAITS, timedelta(0)):
            await shop.handle()
            shop.pass_time(wait)
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.WAITING, 1)
        await due_again(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.handle() == "succeeded"
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_9", 1)


@pytest.mark.parametrize("says_failed", [False, True])
async def test_name_that_was_read_in_vain_is_read_before_what_a_person_decides_of_the_doubt(
    async_redis: redis.asyncio.Redis, *, says_failed: bool
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(POST, httpx.ReadError("cut"), says())
        for wait in (*WAITS, timedelta(0)):
            # The provider answers about other refunds.
            shop.service.breaker.answered()
            await shop.handle()
            shop.pass_time(wait)
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 1)
        if says_failed:
            await given_up(shop, unverified=True)
        else:
            await insisted(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        await shop.handle()
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_9", 1)


async def test_refund_that_a_webhook_names_after_the_decision_is_not_sent_unread(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(NAMED, error(404))
        await hint(shop, "re_10")
        shop.provider.will("GET /v1/refunds/re_10", error(500))
        for wait in WAITS:
            assert await shop.handle() == "waiting (hint_unreadable)"
            shop.pass_time(wait)
        assert await shop.handle() == "in review (hint_unreadable)"
        assert posts(shop) == 0
        assert has_no_decision(await shop.stored())


async def test_doubted_refund_that_is_named_after_the_decision_is_not_sent_unread(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("cut"))
        await shop.handle()
        sent = posts(shop)
        await shop.set(stage="review")
        await insisted(shop)
        await hint(shop)
        shop.provider.will(NAMED, error(500))
        for _ in range(3):
            await shop.handle()
            await due_again(shop)
        refund = await shop.stored()
        assert (refund.stage, posts(shop)) == (Stage.REVIEW, sent)
        assert has_no_decision(refund)
