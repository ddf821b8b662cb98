"""A handling asks the records and the provider for what it needs, in that order, and for nothing
besides.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, HOUR, NOW, PAYMENT, SECOND, TRUST, VERIFY, refund_payload
from tests.unit.engine.shop import (
    ID,
    LIST,
    MILLISECOND,
    PAID,
    POST,
    TOTALS,
    Shop,
    error,
    listing,
    opened,
    says,
    totals,
    until,
)
from worker.engine.rate_gate import CallPermits
from worker.engine.service import Snapshot
from worker.errors import StoreUnavailable
from worker.model.refund import Lane, Stage, Status
from worker.rules.attempts import Rules
from worker.store import scripts

READ = "GET /v1/refunds/re_1"


async def handled(shop: Shop, refund_id: str = ID) -> list[str]:
    """What one handling asked of the records; what it wakes is left alone."""
    shop.service._wake = lambda *_: None  # type: ignore[method-assign]
    shop.store.asked.clear()
    await shop.handle(refund_id)
    return shop.store.asked


async def test_plain_refund_costs_a_claim_and_a_save(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        assert await handled(shop) == ["claim", "save"]
        assert await handled(shop) == ["claim"]


async def test_refund_whose_totals_are_read_first_costs_a_load_too(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, httpx.ReadError("reset"))
        assert await handled(shop) == ["load", "claim", "save"]
        assert await handled(shop) == ["load"]


async def test_refund_with_a_currency_is_claimed_again_once_it_was_checked(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says())
        assert await handled(shop) == ["claim", "load", "claim", "save"]


async def test_refund_of_another_currency_is_failed_and_not_looked_at_again(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(PAID, totals(0, currency="eur"))
        assert await handled(shop) == ["claim", "load", "save"]


async def test_refund_without_a_currency_needs_no_payment_read_where_no_totals_are_wanted(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        loaded = await shop.service._load(ID)
        assert isinstance(loaded, Snapshot)
        permits = CallPermits(lambda: shop.gate.go_on(Lane.SINGLE))
        assert (
            str(await shop.service._send(loaded.refund, loaded, Lane.SINGLE, permits))
            == "succeeded"
        )
        assert shop.provider.asked == [POST]
        assert shop.gate.passed == []


async def in_doubt(shop: Shop) -> None:
    await shop.accept()
    shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")), says())
    await shop.handle()
    assert (await shop.stored()).stage is Stage.IN_DOUBT
    shop.pass_time(HOUR)


async def test_look_costs_a_refused_claim_the_siblings_and_a_save(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        # The first look shows it absent, the second proves it so and sends it again.
        assert await handled(shop) == ["claim", "siblings", "payment", "save"]
        assert shop.gate.passed == ["waited as refunds", "waited as refunds", "went on as refunds"]
        shop.pass_time(HOUR)
        assert await handled(shop) == ["claim", "siblings", "payment", "save", "claim", "save"]
        assert shop.gate.passed[3:] == [
            "waited as refunds",
            "went on as refunds",
            "went on as refunds",
        ]
        assert (await shop.history())[-3]["reason"] == "not in the payment's list"


async def test_look_that_finds_the_refund_ends_there(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.provider.will(LIST, listing(refund_payload()))
        assert await handled(shop) == ["claim", "siblings", "save"]


async def test_resend_whose_verdict_was_overtaken_ends_there(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        await shop.handle()
        shop.pass_time(HOUR)
        await shop.store.flag("paused", once=True)
        assert await handled(shop) == ["claim", "siblings", "payment", "save", "claim"]
        assert shop.provider.asked.count(POST) == 1


# One permit, one request

WAITED, WENT_ON = "waited as refunds", "went on as refunds"


def one_each(shop: Shop) -> None:
    """The first request under the permit that the handling waited for, each further one under its
    own.
    """
    assert shop.gate.passed == [WAITED] + [WENT_ON] * (len(shop.provider.asked) - 1)


def anew(shop: Shop) -> None:
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
        await in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        await shop.handle()
        shop.pass_time(HOUR)
        anew(shop)
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
        await in_doubt(shop)
        anew(shop)
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
        await in_doubt(shop)
        anew(shop)
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
            await shop.store.run(scripts.block_gate(HOUR))
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


# Everything in its lane


async def test_refund_goes_through_the_gate_in_its_own_lane(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept(lane=Lane.BULK)
        shop.provider.will(POST, says())
        await shop.handle(lane=Lane.BULK)
        assert shop.gate.passed == ["waited as refunds.bulk"]


async def test_poll_costs_a_refused_claim_and_a_save(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says(200, refund_payload(status="pending")))
        await shop.handle()
        shop.pass_time(HOUR)
        shop.provider.will(READ, httpx.ReadError("reset"))
        assert await handled(shop) == ["claim", "save"]
        assert (await shop.stored()).stage is Stage.PROCESSING
        assert shop.provider.asked == [POST, READ]


async def test_refund_for_a_person_costs_a_refused_claim_and_a_save(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        await shop.store.run(scripts.claim(ID, "send", token="t", lease=SECOND))
        shop.pass_time(HOUR)
        # Lapsed, and nothing may be read back: a person is next.
        assert await handled(shop) == ["claim", "save", "load"]
        assert (await shop.stored()).stage is Stage.REVIEW


async def test_doubt_of_which_nothing_may_be_read_back_costs_a_refused_claim_and_a_save(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_doubt(shop)
        async with opened(async_redis, BLIND) as blind:
            blind.store.now = shop.now
            assert await handled(blind) == ["claim", "save"]


async def test_lapse_that_another_worker_has_saved_is_left_to_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        await shop.store.run(scripts.claim(ID, "send", token="t", lease=SECOND))
        shop.pass_time(HOUR)
        run = shop.store.run

        async def overtaken(call: Any) -> Any:
            if call.script is scripts.SAVE:
                await shop.set(version="99")
            return await run(call)

        shop.store.run = overtaken  # type: ignore[method-assign]
        assert await handled(shop) == ["claim", "save"]


# What a handling says of a claim


async def test_claim_for_a_replay_says_how_long_the_window_is(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await in_doubt(shop)
        await handled(shop)
        window = TRUST.key_window - TRUST.request_timeout - 3 * SECOND
        assert shop.store.handed["claim"][6] == window // MILLISECOND
        assert (await shop.stored()).status is Status.SUCCEEDED


@pytest.mark.parametrize("reason", ["paused", "stage", "early"])
async def test_refused_claim_rings_no_alarm(
    async_redis: redis.asyncio.Redis, log: list[Any], reason: str
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        if reason == "paused":
            await shop.store.flag("paused", once=True)
        else:
            shop.provider.will(POST, says() if reason == "stage" else error(401))
            await shop.handle()
            await shop.store.unflag("credentials_refused_at")
            log.clear()
        await handled(shop)
    assert not {line["event"] for line in log} & {"refund_unknown", "stored_request_missing"}


async def test_second_attempt_has_further_tries_as_long_as_the_window_is_open(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        shop.provider.will(POST, error(429), error(500, kind="api_error"), says())
        await shop.handle()
        shop.pass_time(HOUR)
        await shop.handle()
        assert shop.provider.asked == [POST] * 3
        assert (await shop.history())[-1]["tries"] == 2


async def test_second_attempt_after_the_window_has_one_try(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        shop.provider.will(POST, error(429), error(500, kind="api_error"), says())
        await shop.handle()
        shop.pass_time(TRUST.key_window)
        await shop.handle()
        assert shop.provider.asked == [POST] * 2


async def test_doubt_begins_when_the_attempt_has_ended(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.doubt_since, refund.quiet_at) == (NOW + 30 * SECOND, NOW + 30 * SECOND)


async def test_end_of_an_attempt_is_told_with_its_number_its_sight_and_its_whole_milliseconds(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, shop.later(1234 * MILLISECOND, says()))
        await shop.handle()
    (line,) = [line for line in log if line["event"] == "refund_settled"]
    assert {"attempt": 1, "seen": "done", "ms": 1234, "http_status": 200}.items() <= line.items()
    assert isinstance(line["ms"], int)


# What must be saved is saved


async def test_reply_to_an_attempt_is_saved_however_often_redis_is_away(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        shop.store.failing = ["save"]
        await shop.handle()
        assert (await shop.stored()).status is Status.SUCCEEDED
        assert shop.store.asked == ["create", "claim", "save", "save"]


async def test_doubt_about_a_reply_with_anothers_refund_is_saved_however_often_redis_is_away(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept("order-1", payment_intent="pi_1")
        await shop.accept("order-2", payment_intent="pi_2")
        careless = refund_payload(id="re_first")
        del careless["payment_intent"], careless["metadata"]
        shop.provider.will(POST, says(200, careless))
        await shop.handle("order-1")
        run, saves = shop.store.run, 0

        async def away_after_the_first(call: Any) -> Any:
            nonlocal saves
            saves += call.script is scripts.SAVE
            if call.script is scripts.SAVE and saves == 2:
                raise StoreUnavailable("redis is away")
            return await run(call)

        shop.store.run = away_after_the_first  # type: ignore[method-assign]
        assert await shop.handle("order-2") == "in doubt"
        assert ((await shop.stored("order-2")).stage, saves) == (Stage.IN_DOUBT, 3)


@pytest.mark.parametrize(
    ("rules", "reading"), [(VERIFY, LIST), (VERIFY, READ)], ids=["look", "poll"]
)
async def test_proof_that_was_read_is_saved_however_often_redis_is_away(
    async_redis: redis.asyncio.Redis, rules: Rules, reading: str
) -> None:
    async with opened(async_redis, rules) as shop:
        if reading == LIST:
            await in_doubt(shop)
            shop.provider.will(LIST, listing(refund_payload()))
        else:
            await shop.accept()
            shop.provider.will(POST, says(200, refund_payload(status="pending")))
            await shop.handle()
            shop.provider.will(READ, says())
        shop.pass_time(HOUR)
        shop.store.failing = ["save"]
        await shop.handle()
        assert (await shop.stored()).status is Status.SUCCEEDED


async def test_look_that_proves_nothing_is_not_worth_waiting_for_redis(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.store.failing = ["save"]
        before = await shop.stored()
        await shop.handle()
        assert await shop.stored() == before
    assert "refund_deferred" in [line["event"] for line in log]
