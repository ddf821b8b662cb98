"""What the provider's answer about a retry's earlier refund says of the provider as a whole."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, PAYMENT, TRUST, VERIFY, found, refund_payload
from tests.unit.engine.rereads import OWN, failed_and_retried, posts
from tests.unit.engine.shop import GONE, ID, LOST, PAID, POST, PROBE, error, opened, says, totals
from worker.model.refund import Lane, Stage, Status
from worker.rules.attempts import done
from worker.store import saves

FAILED = says(200, refund_payload(status="failed"))


async def test_outage_opens_the_breaker_and_an_answer_closes_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, error(503, kind="api_error"))
        for _ in range(8):
            assert not shop.service.breaker.is_open
            await shop.service._actions.run(ID, Lane.SINGLE)
            shop.pass_time(HOUR)
        assert shop.service.breaker.is_open
        shop.provider.will(OWN, FAILED)
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.service._actions.run(ID, Lane.SINGLE)
        assert not shop.service.breaker.is_open


@pytest.mark.parametrize(
    ("answer", "code", "words", "refused"),
    [
        (error(503, kind="api_error"), "some_code", "payment unreadable", False),
        (error(401), "credentials_refused", "key refused", True),
    ],
    ids=["outage", "refused key"],
)
async def test_retry_waits_with_the_reason_that_its_earlier_refund_cannot_be_read(
    async_redis: redis.asyncio.Redis,
    log: list[Any],
    answer: httpx.Response,
    code: str,
    words: str,
    *,
    refused: bool,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, answer)
        assert await shop.handle() == f"queued ({words})"
        assert ("credentials_refused_at" in await shop.meta(), posts(shop)) == (refused, 0)
    (line,) = [line for line in log if line["event"] == "refund_postponed"]
    assert (line["refund_id"], line["reason"], line["code"]) == (ID, code, code)


@pytest.mark.parametrize(
    ("paid", "lost"), [(GONE, True), (totals(0), False)], ids=["missing", "shown"]
)
async def test_payment_that_is_missing_with_the_earlier_refund_stops_everything(
    async_redis: redis.asyncio.Redis, paid: httpx.Response, *, lost: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        await shop.service.account.shown(PAYMENT)
        shop.provider.will(OWN, GONE)
        shop.provider.will(PAID, paid)
        shop.provider.will(PROBE, GONE)
        await shop.handle()
        assert ((LOST in await shop.meta()), posts(shop)) == (lost, 0)
        # A refund that is gone beside a payment that is there is for a person.
        assert (await shop.stored()).stage is (Stage.QUEUED if lost else Stage.REVIEW)


async def test_history_names_the_earlier_refund_that_holds_a_retry_back(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, says(200, refund_payload(amount=7)))
        assert await shop.handle() == "in review (prior_contradicts)"
        assert (await shop.history())[-1]["prior"] == "re_1"


async def test_earlier_refund_that_was_done_is_kept_beside_a_retry_that_was_found_meanwhile(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, FAILED)
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.handle()
        assert (await shop.stored()).stage is Stage.IN_DOUBT
        sent = posts(shop)

        async def found_meanwhile(_: httpx.Request) -> httpx.Response:
            refund = await shop.stored()
            step = done(refund, found(id="re_2", generation="2"), "lookup", shop.now)
            assert (await shop.store.run(saves.save(refund, step))).result == "saved"
            return says(200, refund_payload())

        shop.provider.will(OWN, found_meanwhile)
        shop.pass_time(HOUR)
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id, refund.contradicted_by) == (
            Status.SUCCEEDED,
            "re_2",
            "re_1",
        )
        assert posts(shop) == sent
