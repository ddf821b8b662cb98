"""A handling asks the records and the provider for what it needs, in that order, and for nothing
besides.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, HOUR, NOW, SECOND, TRUST, VERIFY, refund_payload
from tests.unit.engine.shop import (
    ID,
    LIST,
    MILLISECOND,
    PAID,
    POST,
    TOTALS,
    error,
    handled,
    listing,
    long_in_doubt,
    opened,
    says,
    totals,
)
from worker.engine.actions import Snapshot
from worker.engine.rate_gate import CallPermits
from worker.errors import StoreUnavailable
from worker.model.refund import Lane, Stage, Status
from worker.rules.attempts import Rules
from worker.store import claims, scripts

READ = "GET /v1/refunds/re_1"


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
        loaded = await shop.service._actions._load(ID)
        assert isinstance(loaded, Snapshot)
        permits = CallPermits(lambda: shop.gate.go_on(Lane.SINGLE))
        assert (
            str(await shop.service._actions._send(loaded.refund, loaded, Lane.SINGLE, permits))
            == "succeeded"
        )
        assert shop.provider.asked == [POST]
        assert shop.gate.passed == []


async def test_look_costs_a_refused_claim_the_siblings_and_a_save(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await long_in_doubt(shop)
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
        await long_in_doubt(shop)
        shop.provider.will(LIST, listing(refund_payload()))
        assert await handled(shop) == ["claim", "siblings", "save"]


async def test_resend_whose_verdict_was_overtaken_ends_there(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await long_in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        await shop.handle()
        shop.pass_time(HOUR)
        await shop.store.flag("paused", once=True)
        assert await handled(shop) == ["claim", "siblings", "payment", "save", "claim"]
        assert shop.provider.asked.count(POST) == 1


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
        await shop.store.run(claims.claim(ID, "send", token="t", lease=SECOND))
        shop.pass_time(HOUR)
        # Lapsed, and nothing may be read back: a person is next.
        assert await handled(shop) == ["claim", "save", "load"]
        assert (await shop.stored()).stage is Stage.REVIEW


async def test_doubt_of_which_nothing_may_be_read_back_costs_a_refused_claim_and_a_save(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await long_in_doubt(shop)
        async with opened(async_redis, BLIND) as blind:
            blind.store.now = shop.now
            assert await handled(blind) == ["claim", "save"]


async def test_lapse_that_another_worker_has_saved_is_left_to_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        await shop.store.run(claims.claim(ID, "send", token="t", lease=SECOND))
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
        await long_in_doubt(shop)
        await handled(shop)
        window = TRUST.key_window - TRUST.request_timeout - 3 * SECOND
        assert shop.store.handed["claim"][6] == window // MILLISECOND
        assert (await shop.stored()).provider_status == "succeeded"


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
            await long_in_doubt(shop)
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
        await long_in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.store.failing = ["save"]
        before = await shop.stored()
        await shop.handle()
        assert await shop.stored() == before
    assert "refund_deferred" in [line["event"] for line in log]
