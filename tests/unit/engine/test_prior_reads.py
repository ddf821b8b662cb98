"""What the provider's answer about a retry's earlier refund says of the provider as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, MINUTE, PAYMENT, SECOND, TRUST, VERIFY, found, refund_payload
from tests.unit.engine.rereads import NAMED, OWN, RETRIED, failed_and_retried, hint, posts, retry
from tests.unit.engine.shop import (
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
    listing,
    opened,
    says,
    totals,
)
from worker.model.refund import Lane, Refund, Stage, Status
from worker.rules.attempts import VERDICT_LIFE, after_lapse
from worker.rules.proofs import done
from worker.store import claims, saves, scripts

FAILED = says(200, refund_payload(status="failed"))
SENT = says(200, refund_payload(id="re_2", metadata={"refund_id": ID, "refund_generation": "2"}))


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


async def test_retry_is_sent_after_a_read_of_its_payment_that_took_long(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        shop.provider.will(PAID, totals(0))
        await failed_and_retried(shop)
        # Longer than the earlier refund's answer counts: it is read after that, and so is fresh.
        shop.provider.will(PAID, shop.later(VERDICT_LIFE + SECOND, totals(0)))
        shop.provider.will(OWN, FAILED)
        shop.provider.will(POST, SENT)
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [PAID, OWN, POST]


async def test_retry_decided_during_the_first_look_is_sent_after_its_earlier_refund_was_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, replace(VERIFY, first_look=True)) as shop:
        await shop.accept()

        async def failed_and_retried_meanwhile(_: httpx.Request) -> httpx.Response:
            call = claims.claim(ID, "send", token="another", lease=MINUTE, replay_window=HOUR)
            refund = (await shop.store.run(call)).refund
            step = done(refund, found(id="re_1", status="failed"), "reply", shop.now)
            assert (await shop.store.run(saves.save(refund, step))).result == "saved"
            await retry(shop)
            return listing()

        shop.provider.will(LIST, failed_and_retried_meanwhile, listing())
        shop.provider.will(PAID, totals(0))
        shop.provider.will(OWN, FAILED)
        shop.provider.will(POST, SENT)
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [LIST, PAID, OWN, LIST, PAID, OWN, POST]


async def retry_in_doubt(shop: Shop) -> None:
    """A retry whose reply was lost, an hour ago."""
    await failed_and_retried(shop)
    shop.provider.will(OWN, FAILED)
    shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")))
    await shop.handle()
    assert (await shop.stored()).stage is Stage.IN_DOUBT
    shop.pass_time(HOUR)
    shop.provider.asked.clear()
    shop.store.asked.clear()


async def test_replay_whose_earlier_refund_cannot_be_read_is_not_claimed(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await retry_in_doubt(shop)
        shop.provider.will(OWN, error(503, kind="api_error"))
        assert await shop.handle() == "in doubt (payment unreadable)"
        # The one claim is that of a refund not yet looked at, and was refused.
        assert shop.store.asked == ["claim", "save"]
        assert shop.provider.asked == [OWN]


@pytest.mark.parametrize("in_doubt", [False, True], ids=["retry", "replay of a retry"])
async def test_refund_that_a_webhook_names_before_it_is_sent_is_read_at_once_instead(
    async_redis: redis.asyncio.Redis, *, in_doubt: bool
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await (retry_in_doubt(shop) if in_doubt else failed_and_retried(shop))
        shop.provider.asked.clear()

        async def named_meanwhile(_: httpx.Request) -> httpx.Response:
            await hint(shop)
            return FAILED

        mine = {"refund_id": ID, "refund_generation": "2"}
        shop.provider.will(OWN, named_meanwhile)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", metadata=mine)))
        await shop.handle()
        assert shop.provider.asked[:2] == [OWN, NAMED]
        assert posts(shop) == 0


async def test_replay_of_a_refund_that_was_retried_meanwhile_reads_its_earlier_refund(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop, opened(async_redis, TRUST) as other:
        await shop.accept()
        shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")), SENT)
        await shop.handle()
        shop.pass_time(HOUR)
        shop.provider.will(OWN, FAILED)
        other.store.now = shop.now
        run = shop.store.run

        async def overtaken(call: Any) -> Any:
            if call.script is scripts.CLAIM and call.arguments[1] == "replay":
                shop.store.run = run  # type: ignore[method-assign]  # for one call
                # It was found failed, and sent once more by another worker, whose reply was lost.
                refund = await other.stored()
                step = done(refund, found(id="re_1", status="failed"), "lookup", other.now)
                assert (await other.store.run(saves.save(refund, step))).result == "saved"
                await retry(other)
                other.provider.will(OWN, FAILED)
                other.provider.will(POST, httpx.ReadError("reset"))
                assert await other.handle() == "in doubt"
                due = (await other.stored()).next_check_at
                assert due is not None
                shop.pass_time(due - shop.now)
            return await run(call)

        shop.provider.asked.clear()
        shop.store.run = overtaken  # type: ignore[method-assign]  # for one call
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [OWN, POST]


async def test_retry_proven_absent_waits_if_its_earlier_refund_cannot_be_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retry_in_doubt(shop)
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        assert await shop.handle() == "in doubt"
        shop.pass_time(VERIFY.settle)
        shop.provider.asked.clear()
        shop.provider.will(OWN, error(503, kind="api_error"))
        assert await shop.handle() == "in doubt (payment unreadable)"
        assert shop.provider.asked == [LIST, PAID, OWN]
        assert (await shop.history())[-1]["label"] == "absent"


async def test_earlier_refund_is_read_again_if_the_rate_held_a_replay_back_for_long(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await retry_in_doubt(shop)
        go_on = shop.gate.go_on

        async def for_long(lane: Lane) -> None:
            shop.gate.go_on = go_on  # type: ignore[method-assign]  # for one call
            await go_on(lane)
            shop.pass_time(VERDICT_LIFE + SECOND)
            # Meanwhile the provider has done the earlier refund after all.
            shop.provider.will(OWN, says())

        shop.gate.go_on = for_long  # type: ignore[method-assign]  # for one call
        assert await shop.handle() == "in review (conflict)"
        assert shop.provider.asked == [OWN, OWN]


async def claimed_by_another(shop: Shop) -> Refund:
    """Claim the retry for another worker, which has just read its earlier refund."""
    call = claims.claim(
        ID, "send", token="another", lease=MINUTE, replay_window=HOUR, prior_read_at=shop.now
    )
    refund: Refund = (await shop.store.run(call)).refund
    return refund


async def test_earlier_refund_that_failed_during_the_first_look_is_read_before_the_next_retry(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, replace(VERIFY, first_look=True)) as shop:
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        await failed_and_retried(shop)
        shop.provider.will(OWN, FAILED)

        async def failed_and_retried_once_more(_: httpx.Request) -> httpx.Response:
            refund = await claimed_by_another(shop)
            step = done(refund, found(id="re_2", status="failed"), "reply", shop.now)
            assert (await shop.store.run(saves.save(refund, step))).result == "saved"
            await retry(shop)
            # Later the provider has done it after all.
            shop.pass_time(VERDICT_LIFE + SECOND)
            shop.provider.will(RETRIED, SENT)
            return listing()

        shop.provider.will(LIST, failed_and_retried_once_more, listing())
        shop.provider.will(POST, says())
        shop.provider.asked.clear()
        await shop.handle()
        assert (RETRIED in shop.provider.asked, posts(shop)) == (True, 0)
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_2")


async def test_earlier_refund_that_failed_before_a_replay_is_read_before_the_next_one(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await retry_in_doubt(shop)

        async def failed_and_retried_once_more(_: httpx.Request) -> httpx.Response:
            refund = await shop.stored()
            step = done(refund, found(id="re_2", status="failed"), "lookup", shop.now)
            assert (await shop.store.run(saves.save(refund, step))).result == "saved"
            await retry(shop)
            refund = await claimed_by_another(shop)
            lapsed = after_lapse(refund, TRUST, shop.now, 0.5)
            assert (await shop.store.run(saves.save(refund, lapsed))).result == "saved"
            # Later the provider has done it after all.
            shop.provider.will(OWN, FAILED)
            shop.provider.will(RETRIED, SENT)
            return FAILED

        shop.provider.will(OWN, failed_and_retried_once_more)
        shop.provider.will(POST, says())
        assert await shop.handle() == "in review (conflict)"
        assert shop.provider.asked == [OWN, OWN, RETRIED]
