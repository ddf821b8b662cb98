"""Whose account it is: a key that no longer shows a payment of ours concludes nothing, and stops
everything once that is noticed.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, MINUTE, PAYMENT, SECOND, TRUST, VERIFY, refund_payload
from tests.unit.engine.rereads import NAMED, hint
from tests.unit.engine.shop import (
    BY_ID,
    GONE,
    ID,
    LIST,
    LOST,
    PAID,
    POST,
    PROBE,
    TOTALS,
    Shop,
    error,
    events,
    in_doubt,
    listing,
    opened,
    says,
    shown_once,
    totals,
)
from worker.engine.actions import Snapshot
from worker.engine.rate_gate import CallPermits
from worker.errors import ProviderMismatch
from worker.model.refund import Baseline, Lane, Stage, Status
from worker.rules import decisions
from worker.rules.rechecks import WAITS
from worker.store import saves


def asked(shop: Shop, what: str) -> int:
    return shop.provider.asked.count(what)


# A doubt under another key


@pytest.mark.parametrize(
    "paid",
    [GONE, error(403), says(200, {"id": "pi_other"}), says(200, {"id": None}), says(200, {})],
    ids=["missing", "forbidden", "another", "no id", "empty"],
)
async def test_empty_list_proves_no_absence_unless_the_payment_itself_is_shown(
    async_redis: redis.asyncio.Redis, paid: httpx.Response
) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, paid)
        shop.provider.will(PROBE, error(404))
        for _ in range(48):
            shop.pass_time(HOUR / 2)
            await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.status) == (Stage.REVIEW, Status.PENDING)
        assert asked(shop, POST) == 1
        assert LOST not in await shop.meta()


async def test_payment_that_cannot_be_read_now_leaves_the_doubt_to_a_later_look(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, error(503), error(503), totals(0))
        shop.provider.will(POST, says())
        for _ in range(4):
            shop.pass_time(VERIFY.settle)
            await shop.handle()
        assert ((await shop.stored()).status, asked(shop, POST)) == (Status.SUCCEEDED, 2)


async def test_list_that_is_missing_says_nothing_of_a_payment_that_is_shown(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.provider.will(LIST, GONE)
        shop.provider.will(PAID, totals(0))
        shop.pass_time(VERIFY.settle)
        assert await shop.handle() == "in doubt"
        assert LOST not in await shop.meta()


@pytest.mark.parametrize("listed", [listing(), GONE], ids=["empty list", "no list"])
async def test_payment_that_was_shown_once_and_is_missing_stops_everything_and_rings_an_alarm(
    async_redis: redis.asyncio.Redis, log: list[Any], listed: httpx.Response
) -> None:
    async with opened(async_redis) as shop:
        await shown_once(shop)
        shop.provider.will(LIST, listed)
        shop.provider.will(PAID, GONE)
        for _ in range(6):
            shop.pass_time(HOUR)
            assert await shop.handle() == "in doubt"
        await shop.accept("another", payment_intent="pi_2")
        assert await shop.handle("another") == "queued (account not confirmed)"
        assert asked(shop, POST) == 1
        meta = await shop.meta()
        assert (LOST in meta, meta["account_lost_payment"]) == (True, PAYMENT)
        doubtful = await shop.stored()
        assert (doubtful.stage, doubtful.looks) == (Stage.IN_DOUBT, 0)
    lost = [line for line in log if line["event"] == "account_lost"]
    assert [(line["alarm"], line["log_level"], line["payment_intent"]) for line in lost] == [
        (True, "critical", PAYMENT)
    ]


async def test_replica_that_lags_once_stops_nobody(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shown_once(shop)
        shop.provider.will(PAID, GONE, totals(0))
        shop.pass_time(VERIFY.settle)
        assert await shop.handle() == "in doubt"
        assert LOST not in await shop.meta()


@pytest.mark.parametrize("second", [error(503), httpx.ReadError("reset"), error(403)], ids=str)
async def test_payment_that_is_not_missing_the_second_time_stops_nobody(
    async_redis: redis.asyncio.Redis, second: Any
) -> None:
    async with opened(async_redis) as shop:
        await shown_once(shop)
        shop.provider.will(PAID, GONE, second)
        shop.pass_time(VERIFY.settle)
        await shop.handle()
        assert LOST not in await shop.meta()


async def test_everything_goes_on_by_itself_once_the_payment_is_shown_again(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        assert await shop.service.account.probe() is True
        await shown_once(shop)
        shop.provider.will(PAID, GONE)
        shop.pass_time(VERIFY.settle)
        await shop.handle()
        assert await shop.service.account.probe() is False
        shop.provider.will(PAID, totals(0))
        assert await shop.service.account.probe() is True
        assert not {LOST, "account_lost_payment"} & (await shop.meta()).keys()
        shop.provider.will(POST, says())
        shop.pass_time(HOUR)
        assert await shop.handle() == "succeeded"
        assert asked(shop, POST) == 2
    assert events(log, payment_intent=PAYMENT) == ["account_lost", "account_found_again"]


async def test_payment_that_a_person_calls_gone_stops_nothing_and_its_doubt_goes_to_a_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shown_once(shop)
        await async_redis.hset(f"refunds:payment:{PAYMENT}", "gone", "1")
        shop.provider.will(PAID, GONE)
        for _ in range(40):
            shop.pass_time(HOUR / 2)
            await shop.handle()
        assert LOST not in await shop.meta()
        assert ((await shop.stored()).stage, asked(shop, POST)) == (Stage.REVIEW, 1)


async def test_payment_that_is_shown_again_is_not_gone(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shown_once(shop)
        await async_redis.hset(f"refunds:payment:{PAYMENT}", "gone", "1")
        shop.pass_time(SECOND)
        await shop.service.account.shown(PAYMENT)
        assert await async_redis.hget(f"refunds:payment:{PAYMENT}", "gone") is None


async def test_name_that_another_account_does_not_know_is_read_before_the_next_send(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, error(429), says(200, refund_payload(id="re_2")))
        await shop.handle()
        shop.provider.will(PAID, GONE)
        shop.provider.will(NAMED, GONE)
        await hint(shop)
        for wait in (MINUTE, *WAITS, MINUTE):
            shop.pass_time(wait)
            await shop.handle()
        assert LOST in await shop.meta()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.service.account.probe()
        shop.pass_time(HOUR)
        await shop.handle()
        assert asked(shop, POST) == 1


async def test_persons_word_is_not_taken_while_the_account_is_in_question(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shown_once(shop)
        shop.provider.will(PAID, GONE)
        await shop.set(stage="review")
        refund = await shop.stored()
        step = decisions.resolve_resend(refund, unverified=True)
        await shop.store.run(saves.save(refund, step))
        for _ in range(6):
            shop.pass_time(HOUR)
            await shop.handle()
        assert ((await shop.stored()).stage, asked(shop, POST)) == (Stage.IN_DOUBT, 1)


@pytest.mark.parametrize(
    ("paid", "lost"), [(GONE, True), (totals(0), False)], ids=["missing", "shown"]
)
async def test_payment_that_was_shown_once_and_is_missing_to_a_post_stops_the_others(
    async_redis: redis.asyncio.Redis, paid: httpx.Response, *, lost: bool
) -> None:
    async with opened(async_redis) as shop:
        await shop.service.account.shown(PAYMENT)
        await shop.accept()
        shop.provider.will(POST, GONE)
        shop.provider.will(PAID, paid)
        assert await shop.handle() == "failed (resource_missing)"
        assert shop.gate.passed == ["waited as refunds", "went on as refunds"]
        assert (LOST in await shop.meta()) is lost
        await shop.accept("another", payment_intent="pi_2")
        shop.provider.will(POST, says())
        await shop.handle("another")
        assert asked(shop, POST) == (1 if lost else 2)


@pytest.mark.parametrize("answer", [error(400), error(404)], ids=str)
async def test_refusal_of_a_payment_that_was_never_shown_asks_for_nothing_more(
    async_redis: redis.asyncio.Redis, answer: httpx.Response
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, answer)
        await shop.handle()
        assert shop.provider.asked == [POST]


async def test_refusal_that_is_not_about_a_missing_payment_asks_for_nothing_more(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await async_redis.hset(f"refunds:payment:{PAYMENT}", "seen", "1")
        await shop.accept()
        shop.provider.will(POST, error(400, "charge_already_refunded"))
        await shop.handle()
        assert shop.provider.asked == [POST]


async def test_send_without_a_read_does_not_note_the_payment_as_shown(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        loaded = await shop.service._actions._load(ID)
        assert isinstance(loaded, Snapshot)
        shop.provider.will(POST, says())
        permits = CallPermits(lambda: shop.gate.go_on(Lane.SINGLE))
        await shop.service._actions._send(loaded.refund, loaded, Lane.SINGLE, permits)
        assert shop.provider.asked == [POST]
        assert await async_redis.hget(f"refunds:payment:{PAYMENT}", "seen") is None


async def test_failed_poll_repeats_no_metadata(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept(metadata={"customer": "Ada Lovelace"})
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says(200, refund_payload(status="pending")))
        await shop.handle()
        shop.pass_time(MINUTE)
        shop.provider.will(
            BY_ID, says(200, refund_payload(status="failed", failure_reason="Ada Lovelace"))
        )
        await shop.handle()
        record = await async_redis.hgetall(f"refunds:refund:{ID}")
        assert record["status"] == "failed"
        assert "Ada" not in str(
            {name: value for name, value in record.items() if name != "metadata"}
        )
        assert "Ada" not in str([await shop.history(), log])


# Totals


async def test_totals_of_a_payment_that_was_shown_once_and_is_missing_stop_everything(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        shop.provider.will(PAID, totals(0))
        await in_doubt(shop)
        assert (await shop.stored()).baseline == Baseline(
            refunded=0, currency="usd", remaining=1000, shown_by=PAYMENT
        )
        shop.provider.will(PAID, GONE)
        for _ in range(10):
            shop.pass_time(HOUR)
            await shop.handle()
        assert LOST in await shop.meta()
        assert ((await shop.stored()).stage, asked(shop, POST)) == (Stage.IN_DOUBT, 1)


async def test_totals_that_are_shown_are_noted_with_the_payment(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        shop.provider.will(PAID, totals(0))
        await in_doubt(shop)
        await async_redis.hdel(f"refunds:payment:{PAYMENT}", "seen")
        shop.pass_time(VERIFY.settle)
        await shop.handle()
        assert await async_redis.hget(f"refunds:payment:{PAYMENT}", "seen") == "1"


async def test_totals_of_another_payment_do_not_note_ours_as_shown(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        shop.provider.will(PAID, totals(0))
        await in_doubt(shop)
        await async_redis.hdel(f"refunds:payment:{PAYMENT}", "seen")
        shop.provider.will(PAID, totals(0, id="pi_of_another"))
        shop.pass_time(VERIFY.settle)
        await shop.handle()
        assert await async_redis.hget(f"refunds:payment:{PAYMENT}", "seen") is None


async def test_payment_that_is_missing_before_a_further_send_stops_everything(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, error(429), says())
        await shop.handle()
        shop.provider.will(PAID, GONE)
        shop.pass_time(HOUR)
        assert await shop.handle() == "waiting (account not confirmed)"
        refund = await shop.stored()
        assert (refund.stage, refund.next_check_at, asked(shop, POST)) == (
            Stage.WAITING,
            shop.now + 15 * SECOND,
            1,
        )
        assert LOST in await shop.meta()


# Polls


async def pend(shop: Shop) -> None:
    await shop.accept()
    shop.provider.will(PAID, totals(0))
    shop.provider.will(POST, says(200, refund_payload(status="pending")))
    await shop.handle()
    shop.pass_time(MINUTE)


async def test_pending_refund_that_is_missing_together_with_its_payment_stops_everything(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await pend(shop)
        shop.provider.will(BY_ID, GONE)
        shop.provider.will(PAID, GONE)
        await shop.handle()
        assert LOST not in await shop.meta()
        for _ in range(30):
            shop.pass_time(HOUR)
            await shop.handle()
        assert LOST in await shop.meta()
        assert (await shop.stored()).stage is Stage.PROCESSING
        shop.provider.will(BY_ID, says())
        shop.pass_time(HOUR)
        await shop.handle()
        assert (await shop.stored()).status is Status.SUCCEEDED


async def test_each_call_about_a_missing_payment_takes_a_permit_of_the_rate(
    async_redis: redis.asyncio.Redis,
) -> None:
    async def handled(shop: Shop, *calls: str) -> None:
        shop.provider.asked.clear()
        shop.gate.passed.clear()
        await shop.handle()
        assert shop.provider.asked == [*calls]
        assert shop.gate.passed == ["waited as refunds"] + ["went on as refunds"] * (len(calls) - 1)

    async with opened(async_redis, TOTALS) as shop:
        await pend(shop)
        shop.provider.will(BY_ID, GONE)
        shop.provider.will(PAID, GONE)
        await handled(shop, BY_ID)
        shop.pass_time(HOUR)
        await handled(shop, BY_ID, PAID, PAID)


async def test_another_key_is_confirmed_by_three_refunds_at_most(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        for number in range(5):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
            made = refund_payload(
                id=f"re_{number}",
                payment_intent=f"pi_{number}",
                metadata={"refund_id": f"r{number}"},
            )
            shop.provider.will(POST, says(200, made))
            assert await shop.handle(f"r{number}") == "succeeded"
            shop.provider.will(f"GET /v1/refunds/re_{number}", GONE)
            shop.provider.will(f"GET /v1/payment_intents/pi_{number}", GONE)
        shop.provider.asked.clear()
        with pytest.raises(ProviderMismatch):
            await shop.service.account._ask_witnesses(rotated=True)
        read = [call for call in shop.provider.asked if call.startswith("GET /v1/refunds/")]
        assert len(read) == 3


async def test_worker_that_ends_asks_no_more_about_a_payment_that_is_missing_to_a_post(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.service.account.shown(PAYMENT)
        await shop.accept()

        def ending(_: httpx.Request) -> httpx.Response:
            shop.service.stop()
            shop.gate.learn(HOUR)
            return GONE

        shop.provider.will(POST, ending)
        assert await shop.handle() == "failed (resource_missing)"
        assert LOST not in await shop.meta()


async def test_pending_refund_that_is_missing_while_its_payment_is_shown_goes_to_a_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await pend(shop)
        shop.provider.will(BY_ID, GONE)
        for _ in range(3):
            await shop.handle()
            shop.pass_time(HOUR)
        assert (await shop.stored()).stage is Stage.REVIEW
        assert LOST not in await shop.meta()


async def test_what_is_missing_while_everything_is_stopped_says_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await pend(shop)
        await shop.store.flag(LOST, once=True)
        shop.provider.will(BY_ID, GONE)
        shop.provider.will(PAID, GONE)
        for _ in range(5):
            await shop.handle()
            shop.pass_time(HOUR)
        assert (await shop.stored()).stage is Stage.PROCESSING
        assert (await shop.stored()).next_check_at == shop.now - HOUR + MINUTE
