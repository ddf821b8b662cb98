"""A person decides about a refund that the provider showed as pending: that one is read first.

Every POST is counted.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis.asyncio

from tests.factories import HOUR, VERIFY, refund_payload
from tests.unit.engine.decided import (
    decided,
    due_again,
    given_up,
    insisted,
    named,
    pending_and_in_review,
)
from tests.unit.engine.rereads import NAMED, OWN, posts, retry
from tests.unit.engine.shop import (
    ID,
    PAID,
    POST,
    error,
    opened,
    says,
    totals,
)
from worker.errors import NotCancelable
from worker.model.refund import Stage
from worker.model.times import to_ms
from worker.rules import decisions
from worker.rules.attempts import MAX_PROCESSING, Rules


@pytest.mark.parametrize("unverified", [False, True])
@pytest.mark.parametrize("says_failed", [False, True])
@pytest.mark.parametrize("as_stored_before", [False, True])
async def test_pending_refund_is_read_whatever_a_person_decides_because_of_another_one(
    async_redis: redis.asyncio.Redis, *, as_stored_before: bool, says_failed: bool, unverified: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await pending_and_in_review(shop)
        assert (await shop.stored()).doubt_since is not None
        if as_stored_before:
            await shop.store.redis.hdel(f"refunds:refund:{ID}", "doubt_since", "doubted")
        if says_failed:
            await given_up(shop, unverified=unverified)
        else:
            refund = await shop.stored()
            await decided(shop, decisions.resolve_resend(refund, by="ann", unverified=unverified))
        shop.provider.will(OWN, says(200, refund_payload(status="pending")), says())
        assert await shop.handle() == "processing"
        shop.pass_time(HOUR)
        assert await shop.handle() == "succeeded"
        assert posts(shop) == 1


async def test_pending_refund_is_read_before_a_send_although_a_person_mistyped_its_id(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, replace(VERIFY, readback="none")) as shop:
        await pending_and_in_review(shop)
        await named(shop, "re_1x")
        shop.provider.will("GET /v1/refunds/re_1x", error(404))
        shop.provider.will(PAID, totals(0))
        for _ in range(3):
            await shop.handle()
            shop.pass_time(HOUR)
        refund = await shop.stored()
        assert (refund.stage, refund.error_code) == (Stage.REVIEW, "refund_missing")
        await insisted(shop)
        shop.pass_time(HOUR)
        assert await shop.handle() == "in review (conflict)"
        assert posts(shop) == 1


async def test_pending_refund_is_read_before_a_retry_of_the_one_that_a_person_named(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await pending_and_in_review(shop)
        await named(shop, "re_7")
        failed = refund_payload(id="re_7", status="failed", metadata={})
        shop.provider.will("GET /v1/refunds/re_7", says(200, failed))
        assert (await shop.handle()).startswith("failed")
        await retry(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", payment_intent="pi_other")))
        assert await shop.handle() == "processing"
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_1", 1)


async def test_pending_refund_is_read_before_a_send_although_a_person_named_it_in_vain(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, replace(VERIFY, readback="none")) as shop:
        await pending_and_in_review(shop)
        await named(shop, "re_1")
        shop.provider.will(OWN, says(200, refund_payload(status="settling")))
        assert await shop.handle() == "in review (unknown_status)"
        await insisted(shop)
        shop.pass_time(HOUR)
        assert (await shop.handle()).startswith("in review")
        assert posts(shop) == 1


async def test_pending_refund_that_a_person_named_can_still_be_given_up_once_it_is_stuck(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, replace(VERIFY, readback="none")) as shop:
        await pending_and_in_review(shop)
        await named(shop, "re_1")
        assert await shop.handle() == "processing"
        shop.pass_time(MAX_PROCESSING)
        assert await shop.handle() == "in review (pending_too_long)"
        await given_up(shop, unverified=True)
        assert await shop.handle() == "failed (gone)"
        assert posts(shop) == 1


@pytest.mark.parametrize("mode", [VERIFY, replace(VERIFY, idempotency="trust", readback="list")])
async def test_pending_refund_that_an_older_version_was_to_send_again_goes_to_a_person(
    async_redis: redis.asyncio.Redis, mode: Rules
) -> None:
    """Sending was paused, and the record has no doubt and no id any more."""
    async with opened(async_redis, mode) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, error(429), says(200, refund_payload(status="pending")))
        await shop.handle()
        since = (await shop.stored()).updated_at
        await shop.set(processing_since=str(to_ms(since)))
        with pytest.raises(NotCancelable):
            decisions.cancel(await shop.stored())
        await due_again(shop)
        assert await shop.handle() == "in review (was_pending)"
        assert posts(shop) == 1
        assert (await shop.stored()).doubt_since is not None
