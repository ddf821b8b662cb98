"""A reply that comes after a person has decided: nothing of it is lost, and somebody is told."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, HOUR, done_as, refund_payload
from tests.unit.engine.deciding import bring_to_review, decided, look
from tests.unit.engine.rereads import OWN, RETRIED, hint, retried_and_refused, retry, settle
from tests.unit.engine.shop import ID, POST, Shop, error, events, opened, says, until
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.rules import attempts, decisions, proofs
from worker.store import saves, scripts


async def given_up_under_way(shop: Shop) -> tuple[asyncio.Task[Any], asyncio.Event]:
    """A refund whose reply is still on its way, and that a person has given up meanwhile."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def late(_: httpx.Request) -> httpx.Response:
        asked.set()
        await answered.wait()
        return says()

    await shop.accept()
    shop.provider.will(POST, late)
    sending = asyncio.create_task(shop.handle())
    await asked.wait()
    shop.pass_time(HOUR)
    await shop.handle()
    assert (await shop.stored()).stage is Stage.REVIEW
    step = decisions.resolve_failed(await shop.stored(), "gone", by="ann", unverified=True)
    assert (await shop.store.run(saves.save(await shop.stored(), step))).result == "saved"
    await shop.handle()
    assert (await shop.stored()).status is Status.FAILED
    return sending, answered


async def test_proof_that_comes_after_a_person_gave_up_is_kept_and_somebody_is_told(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis, BLIND) as shop:
        sending, answered = await given_up_under_way(shop)
        before: Any = await async_redis.xlen("refunds:events")
        answered.set()
        await sending
        refund = await shop.stored()
        assert (refund.status, refund.error_code, refund.evidence) == (
            Status.FAILED,
            "gone",
            "operator",
        )
        assert (refund.contradicted_by, refund.retriable) == ("re_1", Retriable.NO)
        last = (await shop.history())[-1]
        assert (last["label"], last["source"], last["provider_refund_id"]) == (
            "contradicted",
            "reply",
            "re_1",
        )
        assert "recorded as failed, but the provider shows re_1" in last["alarm"]
        assert await async_redis.xlen("refunds:events") == before + 1
        assert await async_redis.zrange("refunds:contradicted", 0, -1) == [ID]
        assert await async_redis.hget("refunds:counters", "contradicted") == "1"
        assert await async_redis.hget("refunds:counters", "failed:other") == "1"
        assert await async_redis.get("refunds:owner:re_1") == ID
        assert events(log, alarm=True).count("proof_against_settled") == 1
        assert events(log, alarm=True)[-1] == "refund_needs_attention"


async def test_resend_that_makes_the_refund_that_a_late_reply_had_shown_contradicts_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        asked: list[asyncio.Event] = []

        async def late(_: httpx.Request) -> httpx.Response:
            asked.append(answered := asyncio.Event())
            await answered.wait()
            # The provider honours the key.
            return says(200, refund_payload(status="pending"))

        await shop.accept()
        shop.provider.will(POST, late)
        first = asyncio.create_task(shop.handle())
        await until(lambda: len(asked) == 1)
        shop.pass_time(HOUR)
        await shop.handle()
        step = decisions.resolve_resend(await shop.stored(), by="ann", unverified=True)
        assert (await shop.store.run(saves.save(await shop.stored(), step))).result == "saved"
        second = asyncio.create_task(shop.handle())
        await until(lambda: len(asked) == 2)
        asked[0].set()
        await first
        assert (await shop.stored()).contradicted_by == "re_1"
        asked[1].set()
        await second
        refund = await shop.stored()
        assert (refund.stage, refund.provider_refund_id) == (Stage.PROCESSING, "re_1")
        assert refund.contradicted_by is None
        assert await async_redis.zrange("refunds:contradicted", 0, -1) == []


async def test_proof_that_is_kept_already_changes_nothing(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, BLIND) as shop:
        sending, answered = await given_up_under_way(shop)
        answered.set()
        await sending
        before = await shop.stored()
        proof = attempts.after_attempt(before, done_as(), BLIND, shop.now, 0)
        await shop.service._recorder.save(before, proof, {}, insist=True)
        assert await shop.stored() == before


async def test_proof_is_kept_on_the_record_as_it_is_by_then(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        sending, answered = await given_up_under_way(shop)
        run, looked = shop.store.run, list[Any]()

        async def overtaken(call: Any) -> Any:
            result = await run(call)
            if call.script is scripts.LOAD and not looked:
                looked.append(call)
                await shop.set(version="99")
            return result

        shop.store.run = overtaken  # type: ignore[method-assign]
        answered.set()
        await sending
        refund = await shop.stored()
        assert (refund.contradicted_by, refund.version) == ("re_1", 100)


async def test_second_refund_of_one_that_is_pending_goes_to_a_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says(200, None))
        await shop.handle()
        await shop.set(stage="processing", status="pending", provider_status="pending")
        refund = await shop.stored()
        proof = attempts.after_attempt(refund, done_as("pending", id="re_2"), BLIND, shop.now, 0)
        await shop.service._recorder.save(refund, proof, {}, insist=True)
        refund = await shop.stored()
        assert (refund.stage, refund.contradicted_by, refund.provider_refund_id) == (
            Stage.REVIEW,
            "re_2",
            "re_1",
        )


async def test_proof_for_a_record_that_has_expired_is_told_and_no_more(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis, BLIND) as shop:
        sending, answered = await given_up_under_way(shop)
        run = shop.store.run

        async def expiring(call: Any) -> Any:
            if call.script is scripts.LOAD:
                await async_redis.delete(f"refunds:refund:{ID}")
            return await run(call)

        shop.store.run = expiring  # type: ignore[method-assign]
        answered.set()
        await sending
        assert events(log, alarm=True)[-1] == "proof_against_settled"


async def second_beside(shop: Shop) -> None:
    """A refund that succeeded as `re_1`, and beside which the provider shows `re_9`."""
    await settle(shop)
    refund = await shop.stored()
    seen = done_as("pending", id="re_9").found
    assert seen is not None
    await shop.service._recorder.contradict(refund, proofs.done(refund, seen, "lookup", shop.now))


async def resolved(shop: Shop, named: str) -> None:
    refund = await shop.stored()
    step = decisions.resolve_succeeded(refund, named, shop.now, by="ann")
    assert (await shop.store.run(saves.save(refund, step))).result == "saved"


@pytest.mark.parametrize(("named", "other"), [("re_9", "re_1"), ("re_1", "re_9")])
async def test_refund_whose_named_one_fails_is_not_sent_again_beside_the_other(
    async_redis: redis.asyncio.Redis, named: str, other: str
) -> None:
    async with opened(async_redis) as shop:
        await second_beside(shop)
        await resolved(shop, named)
        assert (await shop.stored()).contradicted_by == ("re_9" if named == "re_9" else None)
        await hint(shop, named, "failed")
        failed = refund_payload(id=named, status="failed")
        shop.provider.will(f"GET /v1/refunds/{named}", says(200, failed))
        shop.provider.will(f"GET /v1/refunds/{other}", says(200, refund_payload(id=other)))
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.set_aside_ids) == (Status.FAILED, other)
        assert decisions.retry_failed(refund) is None
        # The next read shows that the money has moved all the same.
        await async_redis.zadd("refunds:rechecks", {ID: 1})
        await shop.handle()
        assert (await shop.stored()).contradicted_by == other
        await resolved(shop, other)
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, other)
        assert shop.provider.asked.count(POST) == 0


async def test_what_a_person_has_ended_is_no_alarm_again_at_the_next_read(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        await retried_and_refused(shop, "succeeded")
        shop.provider.will("GET /v1/refunds/re_1", says(200, refund_payload()))
        await shop.handle()
        assert (await shop.stored()).contradicted_by == "re_1"
        await resolved(shop, "re_2")
        log.clear()
        await async_redis.zadd("refunds:rechecks", {ID: 1})
        assert await shop.handle() == "succeeded"
        assert (await shop.stored()).contradicted_by is None
        assert events(log, alarm=True) == []


# A generation that a restored server has lost


async def named_later(shop: Shop, status: str) -> Refund:
    """A record that lost its retry, after a person has named what the retry made."""
    await settle(shop, "failed")
    metadata = {"refund_id": ID, "refund_generation": "2"}
    later = refund_payload(id="re_2", metadata=metadata)
    shop.provider.will(OWN, says(200, refund_payload(status="failed")))
    shop.provider.will(RETRIED, says(200, later), says(200, later | {"status": status}))
    await hint(shop, "re_2")
    await shop.handle()
    refund = await shop.stored()
    assert refund.contradicted_by == "re_2"
    await decided(shop, decisions.resolve_succeeded(refund, "re_2", shop.now, by="ann"))
    return await look(shop)


async def test_retry_that_was_lost_is_found_to_be_reversed_like_any_other_refund(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        refund = await named_later(shop, "succeeded")
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_2")
        before = events(log, alarm=True).count("proof_against_settled")
        metadata = {"refund_id": ID, "refund_generation": "2"}
        failed = refund_payload(id="re_2", metadata=metadata, status="failed")
        shop.provider.will(RETRIED, says(200, failed))
        await async_redis.zadd("refunds:rechecks", {ID: 1})
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.reversed_at is None) == (Status.FAILED, False)
        assert events(log, alarm=True).count("proof_against_settled") == before
        # The next generation's key is that of the retry that was lost.
        assert refund.retriable is Retriable.NO


async def test_retry_that_was_lost_and_has_failed_is_not_sent_under_its_key_again(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        refund = await named_later(shop, "failed")
        assert (refund.status, refund.retriable) == (Status.FAILED, Retriable.NO)


async def test_retry_that_was_lost_and_is_pending_is_polled_to_its_end(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        refund = await named_later(shop, "pending")
        assert refund.stage is Stage.PROCESSING
        refund = await look(shop)
        assert (refund.stage, refund.provider_refund_id) == (Stage.PROCESSING, "re_2")


async def test_refund_in_doubt_ends_as_the_retry_that_was_lost_once_a_person_names_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        refund = await bring_to_review(shop)
        metadata = {"refund_id": ID, "refund_generation": "2"}
        shop.provider.will(RETRIED, says(200, refund_payload(id="re_2", metadata=metadata)))
        await decided(shop, decisions.resolve_succeeded(refund, "re_2", shop.now, by="ann"))
        refund = await look(shop)
        assert (refund.status, refund.provider_refund_id) == (Status.SUCCEEDED, "re_2")


# An earlier generation whose refund was not known


async def test_earlier_refund_that_a_person_names_while_it_is_pending_is_followed_to_its_end(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, error(402, "insufficient_funds"))
        await shop.handle()
        await retry(shop)
        await shop.handle()
        earlier = refund_payload(metadata={"refund_id": ID, "refund_generation": "1"})
        pending = says(200, earlier | {"status": "pending"})
        shop.provider.will(OWN, pending, pending, pending, says(200, earlier))
        await hint(shop, "re_1")
        await shop.handle()
        refund = await shop.stored()
        assert (refund.status, refund.contradicted_by) == (Status.FAILED, "re_1")
        await decided(shop, decisions.resolve_succeeded(refund, "re_1", shop.now, by="ann"))
        assert (await look(shop, 2)).stage is Stage.PROCESSING
        assert (await look(shop)).status is Status.SUCCEEDED
        shop.provider.will(OWN, says(200, earlier | {"status": "failed"}))
        await async_redis.zadd("refunds:rechecks", {ID: 1})
        await shop.handle()
        assert (await shop.stored()).reversed_at is not None
