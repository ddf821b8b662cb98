"""Each request of a handling takes one permit of the rate, in the refund's own lane."""

from __future__ import annotations

import asyncio

import httpx
import redis.asyncio

from tests.factories import HOUR, PAYMENT, SECOND, TRUST, refund_payload
from tests.unit.engine.rereads import OWN, failed_and_retried
from tests.unit.engine.shop import (
    ID,
    LIST,
    PAID,
    POST,
    TOTALS,
    Shop,
    handled,
    listing,
    long_in_doubt,
    opened,
    says,
    totals,
    until,
)
from worker.model.refund import Lane, Stage
from worker.store import gate

WAITED, WENT_ON = "waited as refunds", "went on as refunds"


def one_each(shop: Shop) -> None:
    """The first request under the permit that the handling waited for, each further one under its
    own.
    """
    assert shop.gate.passed == [WAITED] + [WENT_ON] * (len(shop.provider.asked) - 1)


def forget_calls(shop: Shop) -> None:
    shop.gate.passed.clear()
    shop.provider.asked.clear()


async def test_plain_refund_takes_one_permit(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        await handled(shop)
        assert shop.provider.asked == [POST]
        one_each(shop)


async def test_resend_takes_a_permit_of_its_own(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await long_in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        await shop.handle()
        shop.pass_time(HOUR)
        forget_calls(shop)
        await handled(shop)
        assert shop.provider.asked == [LIST, PAID, POST]
        one_each(shop)


async def test_send_after_a_read_takes_a_permit_of_its_own(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, httpx.ReadError("reset"))
        await handled(shop)
        assert shop.provider.asked == [PAID, POST]
        one_each(shop)


async def test_charge_behind_a_payment_takes_a_permit_of_its_own(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(
            PAID, says(200, {"id": PAYMENT, "currency": "usd", "latest_charge": "ch_1"})
        )
        charge = {
            "id": "ch_1",
            "payment_intent": PAYMENT,
            "currency": "usd",
            "amount": 1000,
            "amount_refunded": 0,
        }
        shop.provider.will("GET /v1/charges/ch_1", says(200, charge))
        shop.provider.will(POST, httpx.ReadError("reset"))
        await handled(shop)
        assert shop.provider.asked == [PAID, "GET /v1/charges/ch_1", POST]
        one_each(shop)


async def test_permit_that_a_refused_claim_left_serves_the_next_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, httpx.ReadError("reset"))
        payment = f"refunds:payment:{PAYMENT}"
        await shop.store.redis.hset(payment, "seq", "1")

        async def overtaken(_: httpx.Request) -> httpx.Response:
            # Another refund of the payment is sent while the totals are read.
            await shop.store.redis.hincrby(payment, "seq", 1)
            return totals(0)

        shop.provider.will(PAID, overtaken, totals(0))
        assert await handled(shop) == ["load", "claim", "load", "claim", "save"]
        assert shop.provider.asked == [PAID, PAID, POST]
        one_each(shop)


async def test_each_page_of_a_list_takes_a_permit_of_its_own(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await long_in_doubt(shop)
        forget_calls(shop)
        pages = [refund_payload(id=f"re_{number}", metadata={}) for number in range(3)]
        shop.provider.will(
            LIST,
            *(says(200, {"data": [page], "has_more": page is not pages[-1]}) for page in pages),
        )
        await handled(shop)
        assert shop.provider.asked == [LIST] * 3
        one_each(shop)


async def test_each_other_refund_that_is_read_again_takes_a_permit_of_its_own(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        shop.provider.will(PAID, totals(0))
        for number in range(2, 4):
            mine = {"refund_id": f"r{number}", "refund_generation": "1"}
            await shop.accept(f"r{number}")
            shop.provider.will(POST, says(200, refund_payload(id=f"re_{number}", metadata=mine)))
            shop.provider.will(
                f"GET /v1/refunds/re_{number}", says(200, refund_payload(id=f"re_{number}"))
            )
            await shop.handle(f"r{number}")
        await long_in_doubt(shop)
        forget_calls(shop)
        await handled(shop)
        assert sorted(shop.provider.asked) == [
            "GET /v1/payment_intents/" + PAYMENT,
            *(f"GET /v1/refunds/re_{n}" for n in (2, 3)),
        ]
        one_each(shop)


async def test_read_that_waits_for_a_permit_is_given_back_by_a_worker_that_is_told_to_end(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()

        async def limited(_: httpx.Request) -> httpx.Response:
            # Another worker has met a 429 meanwhile.
            await shop.store.run(gate.block_gate(HOUR))
            shop.gate.learn(HOUR)
            return totals(0)

        shop.provider.will(PAID, limited)
        message = asyncio.create_task(shop.service.process([ID], Lane.SINGLE, seconds=30))
        await until(lambda: shop.gate.passed == [WAITED, WENT_ON])
        shop.service.stop()
        assert list(map(str, await asyncio.wait_for(message, 5))) == [
            "given back (worker stopping)"
        ]
        assert (shop.provider.asked, (await shop.stored()).stage) == ([PAID], Stage.QUEUED)


async def test_refund_goes_through_the_gate_in_its_own_lane(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(lane=Lane.BULK)
        shop.provider.will(POST, says())
        await shop.handle(lane=Lane.BULK)
        assert shop.gate.passed == ["waited as refunds.bulk"]


async def test_replay_after_a_read_takes_a_permit_of_its_own(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")))
        await shop.handle()
        assert (await shop.stored()).stage is Stage.IN_DOUBT
        shop.pass_time(HOUR)
        forget_calls(shop)
        await handled(shop)
        assert shop.provider.asked == [OWN, POST]
        one_each(shop)
