"""A look at the provider before the first send.

What these records do not know of is not sent again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, MINUTE, PAYMENT, SECOND, TRUST, VERIFY, refund_payload
from tests.unit.engine.rereads import OWN, failed_and_retried
from tests.unit.engine.shop import (
    GONE,
    ID,
    LIST,
    LOST,
    PAID,
    POST,
    Shop,
    error,
    events,
    listing,
    opened,
    says,
    totals,
)
from worker.model.refund import Retriable, Stage, Status
from worker.rules import decisions
from worker.rules.attempts import PARKED
from worker.store import claims, saves

FIRST = replace(VERIFY, first_look=True)


def posts(shop: Shop) -> int:
    return shop.provider.asked.count(POST)


async def look_for(shop: Shop, times: int) -> None:
    for _ in range(times):
        await shop.handle()
        shop.pass_time(FIRST.settle)


async def moves(shop: Shop) -> list[tuple[str, str]]:
    return [(entry["to"], entry["label"]) for entry in await shop.history()]


@pytest.mark.parametrize("rules", [FIRST, replace(TRUST, first_look=True)], ids=["verify", "trust"])
async def test_refund_that_its_payment_does_not_show_is_sent_after_one_look(
    async_redis: redis.asyncio.Redis, rules: Any
) -> None:
    async with opened(async_redis, rules) as shop:
        await shop.accept()
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says())
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [LIST, PAID, POST]
        # Each call under a permit of its own.
        assert shop.gate.passed == ["waited as refunds", "went on as refunds", "went on as refunds"]


async def test_nothing_is_read_first_unless_told_so(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        await shop.handle()
        assert shop.provider.asked == [POST]


@pytest.mark.parametrize("rules", [FIRST, replace(TRUST, first_look=True)], ids=["verify", "trust"])
@pytest.mark.parametrize("status", ["succeeded", "pending", "failed"])
async def test_refund_that_its_payment_shows_already_is_settled_as_found_and_not_sent(
    async_redis: redis.asyncio.Redis, rules: Any, status: str
) -> None:
    async with opened(async_redis, rules) as shop:
        await shop.accept()
        shop.provider.will(LIST, listing(refund_payload(status=status)))
        await shop.handle()
        refund = await shop.stored()
        expected = Status.PENDING if status == "pending" else Status(status)
        assert (refund.status, refund.provider_refund_id, refund.attempts) == (expected, "re_1", 0)
        assert posts(shop) == 0
        assert (await moves(shop))[1] == ("in_doubt", "first_look")


@pytest.mark.parametrize(
    "entry",
    [
        refund_payload(id="re_9", metadata={}),
        refund_payload(id="re_9", metadata={"refund_id": "another-shop-1"}),
        refund_payload(id="re_9", metadata={}, amount=None),
    ],
    ids=["unlabelled", "of another shop", "of no amount"],
)
@pytest.mark.parametrize("rules", [FIRST, replace(TRUST, first_look=True)], ids=["verify", "trust"])
async def test_refund_that_could_be_ours_and_is_not_explained_goes_to_a_person_and_nothing_is_sent(
    async_redis: redis.asyncio.Redis, entry: dict[str, Any], rules: Any
) -> None:
    async with opened(async_redis, rules) as shop:
        await shop.accept()
        shop.provider.will(LIST, listing(entry))
        shop.provider.will(PAID, totals(500))
        for _ in range(40):
            await shop.handle()
            shop.pass_time(HOUR / 2)
        refund = await shop.stored()
        assert (refund.stage, refund.status, refund.doubted, posts(shop)) == (
            Stage.REVIEW,
            Status.PENDING,
            True,
            0,
        )
        why = [
            (entry["look"], entry["reason"])
            for entry in await shop.history()
            if entry["label"] == "first_look"
        ]
        reason = "the list shows a refund that is not known here and could be this one"
        assert why == [("inconclusive", reason)]


async def test_refund_that_failed_and_was_sent_again_by_records_that_were_lost_goes_to_a_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        later = {"refund_id": ID, "refund_generation": "2"}
        shop.provider.will(
            LIST,
            listing(refund_payload(status="failed"), refund_payload(id="re_2", metadata=later)),
        )
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.error_code, posts(shop)) == (Stage.REVIEW, "conflict", 0)


async def test_refund_of_another_amount_explains_itself(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        shop.provider.will(LIST, listing(refund_payload(id="re_9", metadata={}, amount=1)))
        shop.provider.will(PAID, totals(1))
        shop.provider.will(POST, says())
        assert await shop.handle() == "succeeded"


async def test_refund_that_contradicts_ours_under_our_id_goes_to_a_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        shop.provider.will(LIST, listing(refund_payload(amount=1)))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.error_code, posts(shop)) == (Stage.REVIEW, "conflict", 0)


async def test_what_could_be_ours_and_is_gone_later_is_sent_after_two_looks_that_show_it_absent(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(LIST, listing(refund_payload(id="re_9", metadata={})))
        await shop.handle()
        doubtful = await shop.stored()
        assert (
            doubtful.stage,
            doubtful.retriable,
            doubtful.first_attempt_at,
            doubtful.quiet_at,
        ) == (
            Stage.IN_DOUBT,
            Retriable.NO,
            shop.now,
            shop.now,
        )
        shop.provider.will(LIST, listing())
        shop.provider.will(POST, says())
        shop.pass_time(FIRST.settle)
        await look_for(shop, 1)
        assert posts(shop) == 0
        await look_for(shop, 3)
        refund = await shop.stored()
        assert (refund.status, refund.attempts, posts(shop)) == (Status.SUCCEEDED, 1, 1)


@pytest.mark.parametrize(
    "payment", [GONE, says(200, {"id": "pi_other"})], ids=["missing", "another"]
)
async def test_payment_that_is_not_shown_proves_nothing_absent(
    async_redis: redis.asyncio.Redis, payment: httpx.Response
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, payment)
        for _ in range(40):
            await shop.handle()
            shop.pass_time(HOUR / 2)
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 0)


@pytest.mark.parametrize(
    "answer", [error(503, kind="api_error"), httpx.ReadError("reset")], ids=str
)
async def test_payment_that_nobody_answers_for_waits_unsent_and_in_no_doubt_however_long(
    async_redis: redis.asyncio.Redis, log: list[Any], answer: Any
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        shop.provider.will(LIST, answer)
        delays = []
        for _ in range(6):
            assert await shop.handle() == "queued (payment unreadable)"
            due = (await shop.stored()).next_check_at
            assert due is not None
            delays.append((due - shop.now).total_seconds())
            shop.service.breaker.answered()
            shop.pass_time(HOUR)
        assert delays == [3.75, 7.5, 15, 30, 60, 120]
        assert ((await shop.stored()).doubt_since, posts(shop)) == (None, 0)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says())
        assert await shop.handle() == "succeeded"
    assert events(log, refund_id=ID).count("refund_postponed") == 6


async def test_rate_limit_that_meets_a_first_look_is_waited_out(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        shop.provider.will(LIST, error(429, **{"Retry-After": "50"}))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.next_check_at) == (Stage.QUEUED, shop.now + 50 * SECOND)


async def test_payment_that_was_shown_once_and_is_missing_stops_everything(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        await shop.service.account.shown(PAYMENT)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, GONE)
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.next_check_at) == (Stage.QUEUED, shop.now + PARKED)
        assert LOST in await shop.meta()


async def test_refund_that_was_sent_before_is_not_looked_at_again(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, error(429, code="lock_timeout"), says())
        await shop.handle()
        shop.pass_time(HOUR)
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked.count(LIST) == 1


async def test_failed_refund_that_is_retried_is_not_taken_for_its_first_generation(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, says(200, refund_payload(status="failed")))
        await shop.handle()
        failed = await shop.stored()
        step = decisions.retry_failed(failed)
        assert step is not None
        await shop.store.run(saves.save(failed, step))
        metadata = {"refund_id": ID, "refund_generation": "2"}
        shop.provider.will(LIST, listing(refund_payload(status="failed")))
        shop.provider.will("GET /v1/refunds/re_1", says(200, refund_payload(status="failed")))
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=metadata)))
        assert await shop.handle() == "succeeded"
        assert posts(shop) == 2


async def test_currency_that_is_stated_is_checked_after_the_look(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept(currency="usd")
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0, currency="jpy"))
        shop.provider.will(POST, says())
        assert await shop.handle() == "failed (currency_mismatch)"
        assert shop.provider.asked == [LIST, PAID, PAID]


async def test_look_that_was_overtaken_sends_nothing(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, FIRST) as shop:
        await shop.accept()

        async def overtaken(_: httpx.Request) -> httpx.Response:
            await shop.store.run(
                claims.claim(ID, "send", token="another", lease=MINUTE, replay_window=HOUR)
            )
            return listing(refund_payload(id="re_9", metadata={}))

        shop.provider.will(LIST, overtaken)
        assert await shop.handle() == "changed meanwhile"
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.SENDING, 0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (says(), "succeeded"),
        (error(503, kind="api_error"), "queued (payment unreadable)"),
    ],
    ids=["done after all", "unreadable"],
)
async def test_retry_that_its_earlier_refund_holds_back_is_not_looked_for(
    async_redis: redis.asyncio.Redis, answer: httpx.Response, words: str
) -> None:
    async with opened(async_redis, FIRST) as shop:
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        await failed_and_retried(shop)
        shop.provider.asked.clear()
        shop.provider.will(OWN, answer)
        assert await shop.handle() == words
        assert shop.provider.asked == [OWN]
