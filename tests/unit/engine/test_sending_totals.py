"""What is read of the payment before a refund is sent."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import NOW, PAYMENT, SECOND, VERIFY
from tests.unit.engine.shop import (
    PAID,
    POST,
    TOTALS,
    error,
    opened,
    says,
    totals,
)
from worker.model.refund import Baseline, Stage, Status


async def test_totals_are_read_before_the_first_send_and_kept_with_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(100))
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.handle()
        assert shop.provider.asked == [PAID, POST]
        assert (await shop.stored()).baseline == Baseline(
            refunded=100, currency="usd", remaining=900, shown_by=PAYMENT
        )


async def test_totals_are_read_again_where_another_refund_of_the_payment_has_moved(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()

        async def overtaken(_: httpx.Request) -> httpx.Response:
            await async_redis.hincrby(f"refunds:payment:{PAYMENT}", "seq", 1)
            return totals(100)

        shop.provider.will(PAID, overtaken, totals(300))
        shop.provider.will(POST, httpx.ReadError("reset"))
        assert await shop.handle() == "in doubt"
        assert shop.provider.asked == [PAID, PAID, POST]
        baseline = (await shop.stored()).baseline
        assert baseline is not None
        assert baseline.refunded == 300


async def test_payment_that_moves_all_the_time_is_left_to_the_next_sweep(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()

        async def overtaken(_: httpx.Request) -> httpx.Response:
            await async_redis.hincrby(f"refunds:payment:{PAYMENT}", "seq", 1)
            return totals(100)

        shop.provider.will(PAID, overtaken)
        assert await shop.handle() == "queued"
        assert shop.provider.asked == [PAID] * 4
        assert (await shop.stored()).stage is Stage.QUEUED


async def test_payment_that_cannot_be_read_is_asked_for_again_later_and_nothing_is_sent(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, error(503, kind="api_error"))
        assert await shop.handle() == "queued (payment unreadable)"
        refund = await shop.stored()
        assert (shop.provider.asked, refund.stage, refund.status, refund.looks) == (
            [PAID],
            Stage.QUEUED,
            Status.PENDING,
            1,
        )
        assert refund.next_check_at == NOW + 3.75 * SECOND
        assert "refund_postponed" in [line["event"] for line in log]
        shop.pass_time(10 * SECOND)
        await shop.handle()
        refund = await shop.stored()
        assert (refund.looks, refund.next_check_at) == (2, NOW + 17.5 * SECOND)


async def test_payment_that_cannot_be_read_is_left_to_whoever_sent_its_refund_meanwhile(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()

        async def overtaken(_: httpx.Request) -> httpx.Response:
            await shop.set(version="99")
            return error(503, kind="api_error")

        shop.provider.will(PAID, overtaken)
        assert await shop.handle() == "changed meanwhile"
        assert (shop.provider.asked, (await shop.stored()).looks) == ([PAID], 0)


@pytest.mark.parametrize(("told", "seconds"), [("60", 60), ("1", 3.75)])
async def test_payment_that_cannot_be_read_is_not_asked_for_sooner_than_told(
    async_redis: redis.asyncio.Redis, told: str, seconds: float
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, says(503, {}, **{"Retry-After": told}))
        await shop.handle()
        assert (await shop.stored()).next_check_at == NOW + seconds * SECOND


async def test_payment_that_cannot_be_read_is_asked_for_ever_rarer_up_to_ten_minutes(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        await shop.set(looks="20")
        shop.provider.will(PAID, error(503, kind="api_error"))
        await shop.handle()
        assert (await shop.stored()).next_check_at == NOW + 450 * SECOND


async def test_payment_that_the_provider_refuses_to_show_is_sent_for_and_the_refusal_kept(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, error(404, "resource_missing"))
        shop.provider.will(POST, error(404, "resource_missing"))
        assert await shop.handle() == "failed (resource_missing)"
        refund = await shop.stored()
        assert shop.provider.asked == [PAID, POST]
        assert (refund.status, refund.error_code) == (Status.FAILED, "resource_missing")


async def test_refused_credentials_met_before_a_send_stop_everyone(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, error(401))
        assert await shop.handle() == "queued (key refused)"
        assert shop.provider.asked == [PAID]
        assert "credentials_refused_at" in await shop.meta()


@pytest.mark.parametrize(("currency", "sent"), [("usd", True), ("USD", True), ("eur", False)])
async def test_stated_currency_is_checked_before_anything_is_sent(
    async_redis: redis.asyncio.Redis, currency: str, *, sent: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, totals(0, currency=currency))
        shop.provider.will(POST, says())
        assert await shop.handle() == ("succeeded" if sent else "failed (currency_mismatch)")
        refund = await shop.stored()
        assert shop.provider.asked == ([PAID, POST] if sent else [PAID])
        if sent:
            # Only where the totals are the proof are they kept.
            assert refund.status is Status.SUCCEEDED
        else:
            assert (refund.status, refund.error_code) == (Status.FAILED, "currency_mismatch")
            assert refund.error_message is not None
            assert "eur" in refund.error_message


async def test_nothing_is_sent_if_the_charge_of_the_payment_shows_a_currency_that_cannot_be_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(
            PAID, says(200, {"id": PAYMENT, "currency": "usd", "latest_charge": "ch_1"})
        )
        shop.provider.will(
            "GET /v1/charges/ch_1", says(200, {"id": "ch_1", "currency": "?", "amount_refunded": 0})
        )
        assert await shop.handle() == "queued (currency not confirmed)"
        assert shop.provider.asked == [PAID, "GET /v1/charges/ch_1"]
        assert "cannot be read" in ((await shop.stored()).error_message or "")


async def test_refund_without_a_currency_has_none_to_be_checked(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0, currency="eur"))
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.handle()
        assert shop.provider.asked == [PAID, POST]


async def test_baseline_is_kept_only_where_the_totals_are_the_proof(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.handle()
        assert (await shop.stored()).baseline is None
