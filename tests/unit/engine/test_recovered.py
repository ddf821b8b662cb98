"""A server was restored from a snapshot, and may have lost that a refund failed and was retried."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, TRUST, VERIFY, refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look
from tests.unit.engine.rereads import OWN, hint
from tests.unit.engine.shop import (
    GONE,
    ID,
    LIST,
    PAID,
    POST,
    TOTALS,
    Shop,
    listing,
    opened,
    says,
    totals,
)
from worker.errors import NotRetriable
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.times import to_ms
from worker.rules import decisions
from worker.store import saves

FAILED = refund_payload(status="failed", failure_reason="insufficient_funds")


async def recover(shop: Shop) -> Refund:
    refund = await shop.stored()
    shop.pass_time(timedelta(seconds=1))
    step = decisions.recovered(refund, shop.now - HOUR, shop.now)
    assert step is not None
    assert (await shop.store.run(saves.save(refund, step, {}))).result == "saved"
    return await shop.stored()


async def pending(shop: Shop) -> Refund:
    """A refund that the provider reported as pending."""
    await shop.accept()
    shop.provider.will(POST, says(200, refund_payload(status="pending")))
    await shop.handle()
    return await shop.stored()


async def test_refund_that_was_pending_in_the_snapshot_and_has_failed_is_not_retried(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        before = await pending(shop)
        refund = await recover(shop)
        assert (refund.stage, refund.version) == (Stage.PROCESSING, before.version)
        shop.provider.will(OWN, says(200, FAILED))
        refund = await look(shop)
        assert (refund.status, refund.retriable) == (Status.FAILED, Retriable.NO)
        with pytest.raises(NotRetriable, match="a retry of it may have been lost"):
            decisions.retry_one(refund, unknown=True)


async def test_refund_that_fails_in_a_poll_during_the_recovery_is_not_retried(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await pending(shop)

        async def meanwhile(_: httpx.Request) -> httpx.Response:
            await recover(shop)
            return says(200, FAILED)

        shop.provider.will(OWN, meanwhile)
        refund = await look(shop)
        assert (refund.status, refund.retriable) == (Status.FAILED, Retriable.NO)
        with pytest.raises(NotRetriable, match="a retry of it may have been lost"):
            decisions.retry_one(refund, unknown=True)


async def test_refund_that_was_not_sent_in_the_snapshot_and_has_failed_is_not_retried(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        await recover(shop)
        shop.provider.will(LIST, listing(FAILED))
        refund = await look(shop)
        assert (refund.status, refund.retriable) == (Status.FAILED, Retriable.NO)


async def test_failed_refund_that_a_webhook_names_says_nothing_of_a_lost_retry(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        await recover(shop)
        shop.provider.will(OWN, says(200, FAILED))
        await hint(shop, "re_1")
        refund = await look(shop)
        assert (refund.stage, refund.prior_refund_ids) == (Stage.REVIEW, "re_1")
        # The person's decision is compared with the list, which shows the retry.
        metadata = {"refund_id": ID, "refund_generation": "2"}
        shop.provider.will(LIST, listing(FAILED, refund_payload(id="re_2", metadata=metadata)))
        await decided(shop, decisions.resolve_failed(refund, "gone", by="ann"))
        shop.pass_time(HOUR)
        refund = await look(shop)
        assert (refund.stage, refund.status) == (Stage.REVIEW, Status.PENDING)


async def test_refund_that_a_list_proves_absent_since_the_snapshot_may_be_retried(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        await recover(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says(200, FAILED))
        refund = await look(shop, 3)
        assert (refund.status, refund.retriable) == (Status.FAILED, Retriable.YES)


async def test_refund_that_is_reversed_after_a_recovery_is_not_retried(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, says(200, refund_payload(status="pending")))
        await shop.handle()
        await recover(shop)
        shop.provider.will(OWN, says(200, refund_payload()), says(200, FAILED))
        assert (await look(shop)).status is Status.SUCCEEDED
        await shop.store.redis.zadd("refunds:rechecks", {ID: 1})
        refund = await look(shop)
        assert (refund.status, refund.retriable) == (Status.FAILED, Retriable.NO)


async def test_total_of_before_the_snapshot_says_nothing_of_a_refund_that_waits_for_a_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await bring_to_review(shop)
        await recover(shop)
        # The record of another refund of the payment was lost, and that one raised the total.
        shop.provider.will(PAID, totals(500))
        await decided(shop, decisions.resolve_resend(await shop.stored(), by="ann"))
        shop.pass_time(TOTALS.settle)
        assert (await look(shop, 2)).stage is Stage.REVIEW


async def test_total_of_before_the_snapshot_says_nothing_of_a_refund_that_was_pending(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says(200, refund_payload(status="pending")))
        await shop.handle()
        await recover(shop)
        shop.provider.will(OWN, GONE)
        for _ in range(20):
            if (refund := await look(shop)).stage is Stage.REVIEW:
                break
        assert refund.error_code == "refund_missing"
        shop.provider.will(PAID, totals(500))
        await decided(shop, decisions.resolve_resend(refund, by="ann"))
        shop.pass_time(TOTALS.settle)
        assert (await look(shop, 2)).stage is Stage.REVIEW


async def test_id_that_is_accepted_again_after_a_recovery_is_read_back_before_it_is_sent(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        since, until = to_ms(shop.now - HOUR), to_ms(shop.now + HOUR)
        await async_redis.hset(
            "refunds:meta", mapping={"suspect_since": since, "suspect_until": until}
        )
        await shop.accept()
        # The lost record was never executed as generation 1, and was retried under another key.
        metadata = {"refund_id": ID, "refund_generation": "2"}
        shop.provider.will(LIST, listing(refund_payload(id="re_2", metadata=metadata)))
        shop.provider.will(PAID, totals(500))
        shop.provider.will(POST, says(200, refund_payload()))
        refund = await look(shop)
        assert (POST in shop.provider.asked, refund.stage) == (False, Stage.IN_DOUBT)
