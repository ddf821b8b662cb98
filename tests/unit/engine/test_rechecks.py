"""Rechecks by a worker: what webhooks name is read before a send, and settled refunds again.

Every call to the provider is counted.
"""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
import redis.asyncio
from structlog.testing import capture_logs

from tests.factories import BLIND, HOUR, TRUST, VERIFY, refund_payload
from tests.unit.engine.rereads import (
    NAMED,
    OWN,
    failed_and_retried,
    hint,
    posts,
    retried_and_refused,
    retry,
    settle,
)
from tests.unit.engine.shop import ID, LIST, PAID, POST, Shop, error, listing, opened, says, totals
from worker.model.refund import Lane, Stage, Status
from worker.rules import decisions
from worker.rules.attempts import Rules
from worker.rules.rechecks import WAITS
from worker.store import saves, sweeps

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize("rules", [VERIFY, TRUST, BLIND])
async def test_refund_that_a_lost_claim_had_sent_is_taken_and_not_sent_again(
    async_redis: redis.asyncio.Redis, rules: Rules
) -> None:
    async with opened(async_redis, rules) as shop:
        await shop.accept()
        await hint(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.handle() == "succeeded"
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id, refund.evidence) == (
            Status.SUCCEEDED,
            "re_9",
            "lookup",
        )
        assert shop.provider.asked == [NAMED]
        assert (refund.hinted, refund.hints_used) == (None, None)
        assert (await shop.history())[-1]["seen"] == "webhook"


async def test_refund_is_sent_once_what_was_named_proves_to_be_another_one(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        await hint(shop)
        other = refund_payload(id="re_9", metadata={"refund_id": "other"})
        shop.provider.will(NAMED, says(200, other))
        shop.provider.will(POST, says())
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [NAMED, POST]


async def test_unsent_refund_waits_for_a_named_one_that_is_not_shown_and_is_then_sent(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        await hint(shop)
        shop.provider.will(NAMED, error(404))
        shop.provider.will(POST, says())
        for wait in WAITS:
            assert await shop.handle() == "queued"
            assert posts(shop) == 0
            assert (await shop.stored()).next_check_at == shop.now + wait
            shop.pass_time(wait)
        assert await shop.handle() == "succeeded"
        assert posts(shop) == 1


async def test_unsent_refund_goes_to_a_person_if_the_named_one_cannot_be_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        await hint(shop)
        shop.provider.will(NAMED, error(500))
        for wait in WAITS:
            assert await shop.handle() == "queued"
            shop.pass_time(wait)
        assert await shop.handle() == "in review (hint_unreadable)"
        assert posts(shop) == 0
        # It is read on, and settles as the provider shows it.
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert [one.refund_id for one in await sweep(shop)] == [ID]
        assert await shop.handle() == "succeeded"
        assert posts(shop) == 0


async def sweep(shop: Shop) -> tuple[sweeps.Due, ...]:
    taken: tuple[sweeps.Due, ...] = await shop.store.run(sweeps.sweep(100, dry=frozenset(Lane)))
    return taken


@pytest.mark.parametrize("rules", [VERIFY, TRUST, BLIND])
async def test_doubt_is_over_with_the_refund_that_a_webhook_named(
    async_redis: redis.asyncio.Redis, rules: Rules
) -> None:
    async with opened(async_redis, rules) as shop:
        await shop.accept()
        shop.provider.will(POST, error(500))
        await shop.handle()
        sent = posts(shop)
        await hint(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.handle() == "succeeded"
        assert posts(shop) == sent
        assert (await shop.stored()).provider_refund_id == "re_9"


async def test_doubt_is_read_back_as_usual_once_what_was_named_is_not_ours(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, error(500))
        await shop.handle()
        await hint(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", metadata={})))
        shop.provider.will(LIST, listing(refund_payload()))
        shop.provider.will(PAID, totals(500))
        assert await shop.handle() == "succeeded"
        assert (await shop.stored()).provider_refund_id == "re_1"


async def test_unnamed_candidate_is_shown_to_the_person_who_reviews(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        shop.provider.will(POST, error(500))
        await shop.handle()
        assert (await shop.stored()).stage is Stage.REVIEW
        await hint(shop)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9", metadata={})))
        assert await shop.handle() == "in review (some_code)"
        refund = await shop.stored()
        assert (refund.possible_refund_id, refund.hinted) == ("re_9", None)
        assert await shop.store.redis.zcard("refunds:rechecks") == 0


async def test_early_event_leads_to_one_record_of_one_refund_whatever_the_reply(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()

        async def event_first(_: object) -> object:
            await hint(shop)
            return error(500)

        shop.provider.will(POST, event_first)  # type: ignore[arg-type]
        await shop.handle()
        assert (await shop.stored()).candidates == ("re_9",)
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.handle() == "succeeded"
        assert posts(shop) == 1


async def test_second_refund_with_our_id_is_a_contradiction_of_the_settled_record(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await settle(shop)
        await hint(shop)
        shop.provider.will(OWN, says())
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        with capture_logs() as lines:
            await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id, refund.contradicted_by) == (
            Status.SUCCEEDED,
            "re_1",
            "re_9",
        )
        assert any(line.get("alarm") for line in lines)


# Settled refunds


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_settled_refund_is_read_again_by_one_call_and_not_changed_if_that_agrees(
    async_redis: redis.asyncio.Redis, status: str
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await settle(shop, status)
        before = await shop.stored()
        await shop.store.redis.zadd("refunds:rechecks", {ID: 1})
        assert [(one.refund_id, one.stage) for one in await sweep(shop)] == [(ID, None)]
        shop.provider.will(OWN, says(200, refund_payload(status=status)))
        await shop.handle(ID, Lane.BULK)
        assert await shop.stored() == before
        assert shop.provider.asked == [OWN]
        assert await shop.store.redis.zcard("refunds:rechecks") == 0


async def test_reversed_refund_is_recorded_once_with_its_time_and_an_alarm(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await settle(shop)
        shop.pass_time(HOUR)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        for _ in range(18):
            await hint(shop, "re_1")
            await shop.handle(ID, Lane.BULK)
            shop.pass_time(MINUTE)
        refund = await shop.stored()
        assert (refund.status, refund.reversed_at) == (Status.FAILED, shop.now - 18 * MINUTE)
        labels = [entry["label"] for entry in await shop.history()]
        assert labels.count("reversed") == 1
        assert posts(shop) == 0


async def test_settled_refund_that_cannot_be_read_is_left_as_it_is_and_read_later(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await settle(shop)
        before = await shop.stored()
        await hint(shop, "re_1")
        shop.provider.will(OWN, error(500))
        await shop.handle(ID, Lane.BULK)
        assert await shop.stored() == before
        score = await shop.store.redis.zscore("refunds:rechecks", ID)
        assert score == (shop.now + MINUTE).timestamp() * 1000


async def test_recheck_that_contradicts_the_record_is_an_alarm_and_changes_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await settle(shop)
        before = await shop.stored()
        await hint(shop, "re_1")
        shop.provider.will(OWN, says(200, refund_payload(status="failed", amount=499)))
        with capture_logs() as lines:
            await shop.handle(ID, Lane.BULK)
        assert await shop.stored() == before
        assert [line["event"] for line in lines if line.get("alarm")] == ["proof_against_settled"]


async def test_nudge_of_a_settled_refund_without_a_recheck_reads_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await settle(shop)
        assert await shop.handle(ID, Lane.BULK) == "succeeded"
        assert shop.provider.asked == []


# Retries


async def test_retry_is_sent_after_its_earlier_refund_was_read_and_had_failed(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        metadata = {"refund_id": ID, "refund_generation": "2"}
        shop.provider.will(POST, says(200, refund_payload(id="re_2", metadata=metadata)))
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [OWN, POST]
        assert len(set(shop.provider.keys)) == 2


@pytest.mark.parametrize(("status", "end"), [("succeeded", "succeeded"), ("pending", "processing")])
async def test_retry_is_not_sent_if_its_earlier_refund_was_done_after_all(
    async_redis: redis.asyncio.Redis, status: str, end: str
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, says(200, refund_payload(status=status)))
        assert await shop.handle() == end
        assert posts(shop) == 0
        refund = await shop.stored()
        assert (refund.provider_refund_id, refund.generation) == ("re_1", 2)
        # It is polled and read again by that id, although that is of an earlier generation.
        shop.pass_time(HOUR)
        shop.provider.will(OWN, says())
        await hint(shop, "re_1")
        assert await shop.handle() == "succeeded"
        assert posts(shop) == 0


async def test_retry_waits_while_its_earlier_refund_cannot_be_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, error(500))
        assert await shop.handle() == "queued (payment unreadable)"
        assert posts(shop) == 0
        due = (await shop.stored()).next_check_at
        assert due is not None
        assert due > shop.now


async def test_retry_goes_to_a_person_if_its_earlier_refund_is_unknown(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, error(404))
        shop.provider.will(PAID, totals(0))
        assert await shop.handle() == "in review (prior_missing)"
        assert posts(shop) == 0


async def test_event_that_a_failed_refund_succeeded_holds_its_retry_back(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await settle(shop, "failed")
        await hint(shop)
        await retry(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        first = refund_payload(id="re_9", metadata={"refund_id": ID, "refund_generation": "1"})
        shop.provider.will(NAMED, says(200, first))
        assert await shop.handle() == "succeeded"
        assert posts(shop) == 0
        assert (await shop.stored()).provider_refund_id == "re_9"


async def test_replay_reads_the_earlier_refund_too(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, TRUST) as shop:
        await failed_and_retried(shop)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        shop.provider.will(POST, httpx.ReadError("cut"))
        await shop.handle()
        sent = posts(shop)
        shop.provider.will(OWN, says())
        due = (await shop.stored()).next_check_at
        assert due is not None
        shop.pass_time(due - shop.now)
        assert await shop.handle() == "in review (conflict)"
        assert posts(shop) == sent


@pytest.mark.parametrize("now", ["succeeded", "pending"])
@pytest.mark.parametrize("own", [None, "failed", "succeeded"])
async def test_earlier_refund_that_was_done_after_its_retry_is_a_contradiction_with_an_alarm(
    async_redis: redis.asyncio.Redis, own: str | None, now: str
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_refused(shop, own)
        before = await shop.stored()
        assert before.status == (own or "failed")
        shop.provider.will(OWN, says(200, refund_payload(status=now)))
        with capture_logs() as lines:
            await shop.handle(ID, Lane.BULK)
        refund = await shop.stored()
        assert (refund.status, refund.contradicted_by) == (before.status, "re_1")
        assert any(line.get("alarm") for line in lines)
        assert decisions.retry_failed(refund) is None
        assert shop.provider.asked == [*([] if own is None else ["GET /v1/refunds/re_2"]), OWN]
        # Once it is known, it is not read again.
        await shop.store.redis.zadd("refunds:rechecks", {ID: 1})
        shop.provider.asked.clear()
        await shop.handle(ID, Lane.BULK)
        assert OWN not in shop.provider.asked
        assert posts(shop) == 0


async def test_earlier_refund_that_has_still_failed_changes_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_refused(shop)
        before = await shop.stored()
        await shop.handle(ID, Lane.BULK)
        assert await shop.stored() == before
        assert shop.provider.asked == [OWN]
        assert await shop.store.redis.zcard("refunds:rechecks") == 0


async def test_earlier_refund_that_cannot_be_read_is_read_later(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_refused(shop)
        before = await shop.stored()
        shop.provider.will(OWN, error(500))
        await shop.handle(ID, Lane.BULK)
        assert await shop.stored() == before
        score = await shop.store.redis.zscore("refunds:rechecks", ID)
        assert score == (shop.now + MINUTE).timestamp() * 1000


async def test_second_event_about_an_earlier_refund_is_read_if_that_may_have_moved_money(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await retried_and_refused(shop, "succeeded")
        await hint(shop, "re_1")
        assert await shop.handle() == "succeeded"
        shop.pass_time(HOUR)
        shop.provider.will(OWN, says(200, refund_payload(status="succeeded")))
        await hint(shop, "re_1", "failed")
        assert await shop.handle() == "succeeded"
        assert (await shop.stored()).contradicted_by is None
        await hint(shop, "re_1", "succeeded")
        assert await shop.handle() == "contradicts the record"
        assert (await shop.stored()).contradicted_by == "re_1"


async def test_second_event_about_an_earlier_refund_reaches_a_retry_in_review(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)
        await hint(shop, "re_1")
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, error(400, "idempotency_error", "idempotency_error"))
        await shop.handle()
        assert (await shop.stored()).stage is Stage.REVIEW
        shop.provider.will(OWN, says(200, refund_payload(status="succeeded")))
        shop.pass_time(HOUR)
        await hint(shop, "re_1", "succeeded")
        await shop.handle()
        refund = await shop.stored()
        assert (refund.stage, refund.contradicted_by) == (Stage.REVIEW, "re_1")
        assert posts(shop) == 1


async def test_earlier_refund_that_was_done_is_kept_if_its_retry_is_canceled_as_it_is_read(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await failed_and_retried(shop)

        async def canceled(_: httpx.Request) -> httpx.Response:
            refund = await shop.stored()
            step = decisions.cancel(refund)
            assert (await shop.store.run(saves.save(refund, step))).result == "saved"
            return says(200, refund_payload())

        shop.provider.will(OWN, canceled)
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.contradicted_by) == (Status.CANCELED, "re_1")
        assert posts(shop) == 0
