"""A retry whose earlier refund is readable by the time a person's decision is carried out."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, VERIFY, refund_payload
from tests.unit.engine.decided import (
    ODD,
    SECOND_GENERATION,
    due_again,
    given_up,
    has_no_decision,
    in_review_for_a_name,
    insisted,
    retried_and_in_review,
)
from tests.unit.engine.rereads import NAMED, OWN, failed_and_retried, hint, posts
from tests.unit.engine.shop import (
    LIST,
    PAID,
    POST,
    error,
    listing,
    opened,
    says,
    totals,
)
from worker.errors import NotCancelable
from worker.model.refund import Stage, Status
from worker.rules import decisions
from worker.rules.rechecks import WAITS


@pytest.mark.parametrize("status", ["succeeded", "pending"])
async def test_retry_is_not_sent_if_its_earlier_refund_is_readable_by_then_and_was_done(
    async_redis: redis.asyncio.Redis, status: str
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, says(200, refund_payload(**ODD)))
        await insisted(shop)
        shop.provider.will(OWN, says(200, refund_payload(status=status)))
        await shop.handle()
        refund = await shop.stored()
        assert (posts(shop), refund.provider_refund_id) == (0, "re_1")
        assert refund.status == (Status.SUCCEEDED if status == "succeeded" else Status.PENDING)
        assert has_no_decision(refund)


async def test_retry_returns_to_review_if_its_earlier_refund_still_shows_other_money(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, says(200, refund_payload(**ODD)))
        await insisted(shop)
        assert await shop.handle() == "in review (prior_contradicts)"
        assert posts(shop) == 0
        assert has_no_decision(await shop.stored())


async def test_retry_is_sent_if_its_earlier_refund_failed_whatever_else_it_shows(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, says(200, refund_payload(status="failed", **ODD)))
        await insisted(shop)
        assert await shop.handle() == "succeeded"
        assert (posts(shop), shop.provider.asked.count(OWN)) == (1, 2)
        assert has_no_decision(await shop.stored())


async def test_retry_is_sent_if_its_earlier_refund_is_still_unknown(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, error(404))
        await insisted(shop)
        assert await shop.handle() == "succeeded"
        assert (posts(shop), shop.provider.asked.count(OWN)) == (1, 2)


@pytest.mark.parametrize("status", [401, 500])
async def test_retry_is_not_sent_while_its_earlier_refund_cannot_be_read(
    async_redis: redis.asyncio.Redis, status: int
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, says(200, refund_payload(**ODD)))
        await insisted(shop)
        shop.provider.will(OWN, error(status))
        for _ in range(5):
            await shop.handle()
            shop.pass_time(HOUR)
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.WAITING, 0)
        shop.pass_time(VERIFY.max_age)
        await shop.handle()
        # Neither a cancel nor a decision is accepted of one that waits.
        stage = Stage.WAITING if status == 401 else Stage.REVIEW
        assert ((await shop.stored()).stage, posts(shop)) == (stage, 0)


async def test_doubted_retry_goes_to_review_if_its_earlier_refund_was_done_after_all(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        shop.provider.will(POST, httpx.ReadError("cut"))
        await shop.handle()
        sent = posts(shop)
        await shop.set(stage="review")
        await insisted(shop)
        shop.provider.will(OWN, says())
        shop.provider.will(LIST, error(500))
        for _ in range(6):
            await shop.handle()
            shop.pass_time(HOUR)
        refund = await shop.stored()
        assert (refund.stage, refund.error_code) == (Stage.REVIEW, "conflict")
        assert posts(shop) == sent
        assert has_no_decision(refund)


async def test_first_look_that_cannot_be_made_returns_what_a_person_had_sent_to_the_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, replace(VERIFY, first_look=True)) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", payment_intent="pi_other")))
        shop.provider.will(LIST, error(500))
        await shop.handle()
        with pytest.raises(NotCancelable):
            decisions.cancel(await shop.stored())
        shop.pass_time(VERIFY.max_age)
        await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 0)
        assert "within the allowed age" in (await shop.history())[-1]["alarm"]


async def test_word_of_a_person_does_not_outweigh_what_the_first_look_finds(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, replace(VERIFY, first_look=True)) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", payment_intent="pi_other")))
        shop.provider.will(PAID, totals(500))
        shop.provider.will(LIST, listing(refund_payload(id="re_7", metadata={})))
        assert await shop.handle() == "in doubt"
        assert has_no_decision(await shop.stored())
        for _ in range(6):
            shop.pass_time(6 * HOUR)
            await shop.handle()
        assert ((await shop.stored()).stage, posts(shop)) == (Stage.REVIEW, 0)


async def test_retry_that_only_a_person_calls_absent_is_not_reported_as_unsent(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        shop.provider.will(POST, httpx.ReadError("cut"), error(429))
        await shop.handle()
        await shop.set(stage="review")
        await insisted(shop)
        shop.provider.will(LIST, error(500))
        for _ in range(3):
            await shop.handle()
            shop.pass_time(HOUR)
        refund = await shop.stored()
        assert (refund.stage, refund.evidence, posts(shop)) == (Stage.WAITING, "operator", 2)
        shop.provider.will(OWN, says())
        assert await shop.handle() == "in review (conflict)"
        assert posts(shop) == 2


async def test_contradiction_of_what_a_person_had_sent_again_is_not_ended_by_a_later_proof(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        later = refund_payload(id="re_9", metadata=SECOND_GENERATION)
        shop.provider.will(NAMED, says(200, later))
        assert await shop.handle() == "contradicts the record"
        assert (await shop.stored()).stage is Stage.REVIEW
        await hint(shop, "re_10")
        shop.provider.will("GET /v1/refunds/re_10", says(200, refund_payload(id="re_10")))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.provider_refund_id, refund.contradicted_by) == ("re_10", "re_9")
        assert has_no_decision(refund)
        assert posts(shop) == 0


@pytest.mark.parametrize(
    ("code", "stage"),
    [("charge_already_refunded", Stage.REVIEW), ("amount_too_small", Stage.SETTLED)],
)
async def test_refusal_that_may_be_the_echo_of_what_could_not_be_read_goes_to_a_person(
    async_redis: redis.asyncio.Redis, code: str, stage: Stage
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(POST, error(400, code))
        for wait in WAITS:
            await shop.handle()
            shop.pass_time(wait)
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.error_code, posts(shop)) == (stage, code, 1)
        assert has_no_decision(refund)


async def test_failure_of_a_send_says_nothing_of_what_could_not_be_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_review_for_a_name(shop)
        await insisted(shop)
        shop.provider.will(POST, error(429), says(200, refund_payload(status="failed")))
        for wait in WAITS:
            await shop.handle()
            shop.pass_time(wait)
        await shop.handle()
        assert (await shop.stored()).stage is Stage.WAITING
        await due_again(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", payment_intent="pi_other")))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.provider_refund_id, refund.prior_refund_ids) == (
            Stage.REVIEW,
            None,
            "re_1",
        )
        assert (posts(shop), refund.resends) == (2, 1)


@pytest.mark.parametrize("unverified", [True, False])
async def test_retry_is_given_up_once_its_earlier_refund_is_read_and_has_failed(
    async_redis: redis.asyncio.Redis, *, unverified: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, says(200, refund_payload(**ODD)))
        await given_up(shop, unverified=unverified)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        assert await shop.handle() == "failed (gone)"
        refund = await shop.stored()
        assert (refund.error_code, refund.evidence, posts(shop)) == ("gone", "operator", 0)
        assert has_no_decision(refund)


@pytest.mark.parametrize("unverified", [True, False])
async def test_retry_is_not_given_up_if_its_earlier_refund_was_done_after_all(
    async_redis: redis.asyncio.Redis, *, unverified: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, says(200, refund_payload(**ODD)))
        await given_up(shop, unverified=unverified)
        shop.provider.will(OWN, says())
        assert await shop.handle() == "succeeded"
        assert ((await shop.stored()).provider_refund_id, posts(shop)) == ("re_1", 0)


@pytest.mark.parametrize(
    ("unverified", "ending"), [(True, "failed (gone)"), (False, "in review (prior_missing)")]
)
async def test_retry_whose_earlier_refund_is_unknown_is_given_up_only_if_a_person_insists(
    async_redis: redis.asyncio.Redis, ending: str, *, unverified: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, error(404))
        await given_up(shop, unverified=unverified)
        assert await shop.handle() == ending
        assert posts(shop) == 0
        assert has_no_decision(await shop.stored())


async def test_retry_is_given_up_at_the_third_read_in_vain_if_a_person_insists(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, says(200, refund_payload(**ODD)))
        await given_up(shop, unverified=True)
        shop.provider.will(OWN, error(500))
        for _ in range(2):
            assert await shop.handle() == "waiting (payment unreadable)"
            await due_again(shop)
        assert await shop.handle() == "failed (gone)"
        assert posts(shop) == 0


@pytest.mark.parametrize(("status", "unverified"), [(500, False), (401, True)])
async def test_retry_that_is_given_up_waits_while_its_earlier_refund_cannot_be_read(
    async_redis: redis.asyncio.Redis, status: int, *, unverified: bool
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_in_review(shop, says(200, refund_payload(**ODD)))
        await given_up(shop, unverified=unverified)
        shop.provider.will(OWN, error(status))
        for _ in range(5):
            await shop.handle()
            shop.pass_time(HOUR)
        refund = await shop.stored()
        assert (refund.stage, refund.operator_says, posts(shop)) == (Stage.WAITING, "failed", 0)


@pytest.mark.parametrize(
    ("answer", "ending"),
    [(says(200, refund_payload(id="re_9")), "succeeded"), (error(404), "failed (gone)")],
    ids=["shown", "missing"],
)
async def test_refund_is_given_up_only_after_what_a_webhook_named_was_read(
    async_redis: redis.asyncio.Redis, answer: httpx.Response, ending: str
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await in_review_for_a_name(shop)
        await given_up(shop, unverified=False)
        shop.provider.will(NAMED, answer)
        for wait in WAITS:
            await shop.handle()
            shop.pass_time(wait)
        assert await shop.handle() == ending
        assert posts(shop) == 0


async def test_doubted_retry_is_not_given_up_if_its_earlier_refund_was_done_after_all(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        shop.provider.will(POST, httpx.ReadError("cut"))
        await shop.handle()
        await shop.set(stage="review")
        await given_up(shop, unverified=False)
        shop.provider.will(OWN, says())
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        for _ in range(3):
            await shop.handle()
            shop.pass_time(HOUR)
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_1")
