"""A provider's refund that belongs to one record is never saved for another."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import redis.asyncio

from tests.factories import HOUR, NOW, SECOND, VERIFY, found, refund_payload
from tests.unit.engine.desk import Desk, named
from tests.unit.engine.rereads import NAMED, hint, posts
from tests.unit.engine.shop import ID, POST, error, opened, says
from worker.model.refund import Refund, Stage, Status
from worker.model.steps import Step
from worker.rules import decisions, proofs


async def owned_elsewhere(desk: Desk) -> None:
    """Let another refund own `re_1`."""
    other = await desk.claimed("b")
    await desk.recorder.save(other, proofs.done(other, found(), "reply", NOW), {})


async def test_reply_with_a_refund_that_belongs_to_another_record_saves_nothing_and_alarms(
    desk: Desk, log: list[Any]
) -> None:
    await owned_elsewhere(desk)
    refund = await desk.claimed()
    saved, _ = await desk.recorder.save(refund, proofs.done(refund, found(), "reply", NOW), {})
    assert (saved.result, saved.other) == ("owned", "b")
    # What the attempt leads to is for its own rules: it may have happened.
    assert await desk.stored() == refund
    (line,) = named(log, "provider_refund_claimed_twice")
    assert (line["refund_id"], line["owner"]) == (ID, "b")


async def test_doubt_whose_proof_belongs_to_another_record_leads_to_a_person(
    desk: Desk, log: list[Any]
) -> None:
    await owned_elsewhere(desk)
    refund = await doubtful(desk)
    _, ending = await desk.recorder.save(refund, proofs.done(refund, found(), "list", NOW), {})
    assert str(ending) == "in review (owned_elsewhere)"
    stored = await desk.stored()
    assert (stored.stage, stored.error_code, stored.doubt_since) == (
        Stage.REVIEW,
        "owned_elsewhere",
        NOW - SECOND,
    )
    assert stored.error_message is not None
    assert "re_1" in stored.error_message
    assert "refund b" in stored.error_message
    assert named(log, "refund_needs_attention") != []


async def test_unsent_refund_whose_proof_belongs_to_another_record_is_not_sent(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        await hint(shop)
        await shop.store.redis.set("refunds:owner:re_9", "b")
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.handle() == "in review (owned_elsewhere)"
        refund = await shop.stored()
        assert (refund.provider_refund_id, refund.doubt_since) == (None, NOW)
        assert "refund b" in str(refund.error_message)
        assert await shop.handle() == "in review (owned_elsewhere)"
        assert posts(shop) == 0


async def test_waiting_refund_whose_proof_belongs_to_another_record_is_not_sent_again(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, error(429))
        await shop.handle()
        assert (await shop.stored()).stage is Stage.WAITING
        shop.pass_time(HOUR)
        await hint(shop)
        await shop.store.redis.set("refunds:owner:re_9", "b")
        shop.provider.will(NAMED, says(200, refund_payload(id="re_9")))
        assert await shop.handle() == "in review (owned_elsewhere)"
        assert posts(shop) == 1


async def doubtful(desk: Desk) -> Refund:
    refund = await desk.claimed()
    doubted = Step(
        to=Stage.IN_DOUBT,
        status=Status.PENDING,
        label="x",
        changes={"doubt_since": NOW - SECOND},
        delay=timedelta(minutes=1),
    )
    await desk.recorder.save(refund, doubted, {})
    return await desk.stored()


async def test_pending_refund_whose_proof_belongs_to_another_is_handed_to_a_person(
    desk: Desk,
) -> None:
    await owned_elsewhere(desk)
    refund = await desk.claimed()
    await desk.recorder.save(
        refund, proofs.done(refund, found(id="re_9", status="pending"), "reply", NOW), {}
    )
    pending = await desk.stored()
    assert pending.stage is Stage.PROCESSING
    named = Step(
        to=Stage.PROCESSING,
        status=Status.PENDING,
        label="pending",
        changes={"provider_refund_id": "re_1"},
        delay=timedelta(minutes=1),
        quiet=True,
    )
    saved, ending = await desk.recorder.save(pending, named, {})
    assert (saved.result, str(ending)) == ("owned", "in review (owned_elsewhere)")
    stored = await desk.stored()
    assert (stored.stage, stored.doubt_since) == (Stage.REVIEW, pending.updated_at)
    # The id that the provider gave for this refund is kept.
    assert (stored.provider_refund_id, stored.processing_since) == ("re_9", NOW)


async def test_refund_of_another_record_that_a_person_named_is_not_kept(
    desk: Desk, async_redis: redis.asyncio.Redis
) -> None:
    await owned_elsewhere(desk)
    await async_redis.persist("refunds:owner:re_1")
    await doubtful(desk)
    word: dict[Any, Any] = {
        "provider_refund_id": "re_1",
        "operator_says": "failed",
        "operator_unverified": "1",
        "operator_code": "x",
    }
    await async_redis.hset(f"refunds:refund:{ID}", mapping=word)
    named = await desk.stored()
    await desk.recorder.save(named, proofs.done(named, found(), "lookup", NOW), {})
    ended = await desk.stored()
    assert (ended.status, ended.provider_refund_id) == (Status.FAILED, None)
    # The other's key is the other's to end.
    assert await async_redis.get("refunds:owner:re_1") == "b"
    assert await async_redis.ttl("refunds:owner:re_1") == -1


async def test_named_refund_that_is_anothers_leaves_neither_its_id_nor_its_age_behind(
    desk: Desk,
) -> None:
    doubted = await doubtful(desk)
    await desk.recorder.save(doubted, proofs.to_review({}, "x", "y"), {})
    reviewed = await desk.stored()
    await desk.recorder.save(reviewed, decisions.resolve_succeeded(reviewed, "re_1", NOW), {})
    named = await desk.stored()
    assert (named.provider_refund_id, named.processing_since) == ("re_1", NOW)
    await owned_elsewhere(desk)
    await desk.recorder.save(named, proofs.done(named, found(), "operator", NOW), {})
    stored = await desk.stored()
    assert (stored.stage, stored.provider_refund_id, stored.processing_since) == (
        Stage.REVIEW,
        None,
        None,
    )


async def test_refund_in_review_stays_there_where_its_proof_belongs_to_another(desk: Desk) -> None:
    await owned_elsewhere(desk)
    refund = await desk.claimed()
    await desk.recorder.save(refund, proofs.to_review({}, "x", "y"), {})
    before = await desk.stored()
    await desk.recorder.save(before, proofs.done(before, found(), "reply", NOW), {})
    assert await desk.stored() == before
