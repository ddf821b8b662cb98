"""Rechecks and reads before a send whose worker was frozen with the provider's answer in hand.

What had succeeded may have failed by then, so it is read again before it counts.
"""

from __future__ import annotations

import pytest
import redis.asyncio

from tests.factories import SECOND, refund_payload
from tests.unit.engine.rereads import NAMED, OWN, failed_and_retried, hint, posts, settle
from tests.unit.engine.shop import (
    ID,
    Shop,
    error,
    freeze_before_save,
    opened,
    says,
)
from worker.model.refund import Lane, Stage, Status
from worker.rules import proofs
from worker.store import saves

FROZEN = pytest.mark.parametrize(("frozen", "counts"), [(120, True), (121, False)])


def freeze(shop: Shop, seconds: int) -> None:
    freeze_before_save(shop, seconds * SECOND)
    # Not by what is woken beside it, which would read it again at once.
    shop.wake_nobody()


async def ends_as_failed(shop: Shop, name: str = "re_9", generation: str = "1") -> None:
    """The refund is kept as pending, is polled, and ends as failed; nothing is sent."""
    refund = await shop.stored()
    assert (refund.stage, refund.status) == (Stage.PROCESSING, Status.PENDING)
    assert (refund.provider_refund_id, refund.provider_status) == (name, "succeeded")
    assert (refund.hinted, refund.next_check_at) == (None, shop.now)
    metadata = {"refund_id": ID, "refund_generation": generation}
    fallen = refund_payload(id=name, status="failed", metadata=metadata)
    shop.provider.will(f"GET /v1/refunds/{name}", says(200, fallen))
    await shop.handle()
    assert (await shop.stored()).status is Status.FAILED
    assert posts(shop) == 0


@FROZEN
@pytest.mark.parametrize("in_review", [False, True])
async def test_named_refund_that_was_read_long_ago_is_polled_before_it_counts(
    async_redis: redis.asyncio.Redis, frozen: int, *, counts: bool, in_review: bool
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        if in_review:
            step = proofs.to_review({}, "inconclusive", "so")
            await shop.store.run(saves.save(await shop.stored(), step))
        await hint(shop)
        freeze(shop, frozen)
        # The answer itself may take its time.
        answer = says(200, refund_payload(id="re_9"))
        shop.provider.will(NAMED, shop.later(15 * SECOND, answer))
        await shop.handle()
        if counts:
            assert (await shop.stored()).status is Status.SUCCEEDED
            return
        await ends_as_failed(shop)


@FROZEN
async def test_failed_refund_that_had_succeeded_long_ago_is_read_again(
    async_redis: redis.asyncio.Redis, frozen: int, *, counts: bool
) -> None:
    async with opened(async_redis) as shop:
        await settle(shop, "failed")
        before = await shop.stored()
        await hint(shop, "re_1", "succeeded")
        freeze(shop, frozen)
        shop.provider.will(OWN, shop.later(15 * SECOND, says()))
        await shop.handle(ID, Lane.BULK)
        refund = await shop.stored()
        assert (refund.status is Status.SUCCEEDED) is counts
        assert (refund == before) is not counts
        # What was not saved is read once more.
        assert await shop.store.redis.zcard("refunds:rechecks") == (0 if counts else 1)


@FROZEN
async def test_earlier_refund_that_was_read_long_ago_is_read_again_before_a_retry(
    async_redis: redis.asyncio.Redis, frozen: int, *, counts: bool
) -> None:
    async with opened(async_redis) as shop:
        await failed_and_retried(shop)
        before = await shop.stored()
        freeze(shop, frozen)
        shop.provider.will(OWN, shop.later(15 * SECOND, says()), error(500))
        await shop.handle()
        refund = await shop.stored()
        assert posts(shop) == 0
        assert (refund.status is Status.SUCCEEDED) is counts
        assert (refund == before) is not counts


@FROZEN
async def test_earlier_refund_that_a_webhook_named_is_polled_if_it_was_read_long_ago(
    async_redis: redis.asyncio.Redis, frozen: int, *, counts: bool
) -> None:
    async with opened(async_redis) as shop:
        await failed_and_retried(shop)
        await hint(shop)
        freeze(shop, frozen)
        first = refund_payload(id="re_9", metadata={"refund_id": ID, "refund_generation": "1"})
        shop.provider.will(NAMED, shop.later(15 * SECOND, says(200, first)))
        await shop.handle()
        if counts:
            assert (await shop.stored()).status is Status.SUCCEEDED
            return
        await ends_as_failed(shop)
