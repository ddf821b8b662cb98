"""A refund that may have happened: replayed, read back, polled, or handed to a person."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, HOUR, NOW, SECOND, TRUST, VERIFY, refund_payload
from tests.unit.engine.rereads import OWN
from tests.unit.engine.shop import (
    ID,
    LIST,
    MILLISECOND,
    PAID,
    POST,
    TOTALS,
    Shop,
    error,
    freeze_before_save,
    in_doubt,
    listing,
    opened,
    says,
    totals,
)
from worker.model.refund import Stage, Status
from worker.store import claims, scripts


async def test_replay_of_a_doubt_sends_the_same_bytes_under_the_same_key(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        # Past the lease, so that the attempt has no second try.
        shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")), says())
        await shop.handle()
        refund = await shop.stored()
        assert refund.stage is Stage.IN_DOUBT
        assert refund.next_check_at is not None
        shop.pass_time(refund.next_check_at - shop.now)
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [POST, POST]
        assert shop.provider.keys[0] == shop.provider.keys[1]
        assert shop.provider.bodies[0] == shop.provider.bodies[1]
        assert (await shop.stored()).status is Status.SUCCEEDED
        assert [entry["label"] for entry in await shop.history()] == [
            "accepted",
            "send",
            "no_reply",
            "replay",
            "succeeded",
        ]


async def test_replay_that_the_window_no_longer_allows_is_a_look_at_once(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")))
        shop.provider.will(LIST, listing(refund_payload()))
        await shop.handle()
        # The record says that the window is open, and the claim, a moment later, that it is not.
        window = TRUST.key_window - TRUST.request_timeout - 3 * SECOND
        shop.store.now = NOW + window - MILLISECOND
        run = shop.store.run

        async def late(call: Any) -> Any:
            if call.script is scripts.CLAIM and call.arguments[1] == "replay":
                shop.store.now = NOW + window + MILLISECOND
            return await run(call)

        shop.store.run = late  # type: ignore[method-assign]
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [POST, LIST]
        assert [entry["label"] for entry in await shop.history()] == [
            "accepted",
            "send",
            "no_reply",
            "succeeded",
        ]
        assert (await shop.stored()).status is Status.SUCCEEDED


async def test_lapsed_lease_is_looked_at_in_the_same_handling(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        await shop.store.run(claims.claim(ID, "send", token="dead", lease=VERIFY.lease))
        shop.pass_time(VERIFY.lease)
        shop.provider.will(LIST, listing(refund_payload()))
        # Not by what is woken beside it, which would look as well.
        shop.wake_nobody()
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [LIST]
        refund = await shop.stored()
        assert (refund.status, refund.evidence) == (Status.SUCCEEDED, "list")
        assert [entry["label"] for entry in await shop.history()] == [
            "accepted",
            "send",
            "lease_lapsed",
            "succeeded",
        ]
        assert (await shop.history())[2]["seen"] == "lease_lapsed"
        assert (await shop.history())[3]["look"] == "found"


async def test_doubt_that_nothing_may_be_read_back_of_is_handed_to_a_person(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.handle()
        shop.pass_time(HOUR)
        blind = Shop(async_redis, BLIND)
        blind.store.now = shop.now
        assert await blind.handle() == "in review (no_readback)"
        assert (await shop.stored()).stage is Stage.REVIEW
        assert (await shop.history())[-1]["label"] == "no_readback"
        assert [line["event"] for line in log].count("refund_needs_attention") == 1


async def prove_absent(shop: Shop) -> None:
    """Bring a refund to where the next look proves it absent."""
    await shop.accept()
    shop.provider.will(POST, httpx.ReadError("reset"), says())
    shop.provider.will(LIST, listing())
    shop.provider.will(PAID, totals(0))
    assert await shop.handle() == "in doubt"
    shop.pass_time(VERIFY.settle)
    assert await shop.handle() == "in doubt"
    assert (await shop.stored()).absent_at is not None
    shop.pass_time(VERIFY.settle)


async def test_refund_proven_absent_is_sent_again_at_once_with_the_same_key(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await prove_absent(shop)
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [POST, LIST, PAID, LIST, PAID, POST]
        assert shop.provider.keys[0] == shop.provider.keys[1]
        refund = await shop.stored()
        assert refund.status is Status.SUCCEEDED
        labels = [entry["label"] for entry in await shop.history()]
        assert labels == [
            "accepted",
            "send",
            "no_reply",
            "absent",
            "absence_proven",
            "resend",
            "succeeded",
        ]


async def test_resend_rests_on_the_very_version_that_was_proven_absent(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await prove_absent(shop)
        run = shop.store.run

        async def moved(call: Any) -> Any:
            if call.script is scripts.CLAIM:
                await shop.set(version="99")
            return await run(call)

        shop.store.run = moved  # type: ignore[method-assign]
        assert await shop.handle() == "in doubt"
        assert shop.provider.asked == [POST, LIST, PAID, LIST, PAID]


async def test_look_that_proves_nothing_sends_nothing(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("reset"))
        shop.provider.will(LIST, listing())
        shop.provider.will(PAID, totals(0))
        await shop.handle()
        for _ in range(2):
            shop.pass_time(VERIFY.settle)
            await shop.handle()
            if len(shop.provider.asked) == 3:
                refund = await shop.stored()
                assert (refund.stage, refund.absent_at, refund.proven_absent_at) == (
                    Stage.IN_DOUBT,
                    NOW + VERIFY.settle,
                    None,
                )
        assert shop.provider.asked == [POST, LIST, PAID, LIST, PAID, POST]


async def test_look_that_was_overtaken_sends_nothing(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await prove_absent(shop)

        async def overtaken(_: httpx.Request) -> httpx.Response:
            await shop.set(version="99")
            return listing()

        shop.provider.will(LIST, overtaken)
        assert await shop.handle() == "changed meanwhile"
        assert shop.provider.asked == [POST, LIST, PAID, LIST, PAID]


async def pend(shop: Shop) -> None:
    """Bring a refund to where the provider says that it is pending."""
    await shop.accept()
    shop.provider.will(POST, says(200, refund_payload(status="pending")))
    assert await shop.handle() == "processing"
    assert (await shop.stored()).stage is Stage.PROCESSING
    shop.pass_time(HOUR)


@pytest.mark.parametrize(("frozen", "counts"), [(120, True), (121, False)])
async def test_read_back_that_a_frozen_worker_held_for_long_is_polled_before_it_counts(
    async_redis: redis.asyncio.Redis, frozen: int, *, counts: bool
) -> None:
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.pass_time(HOUR)
        freeze_before_save(shop, frozen * SECOND)
        shop.provider.will(LIST, listing(refund_payload()))
        shop.wake_nobody()
        await shop.handle()
        refund = await shop.stored()
        if counts:
            assert (refund.status, refund.evidence) == (Status.SUCCEEDED, "list")
            return
        assert (refund.stage, refund.provider_refund_id) == (Stage.PROCESSING, "re_1")
        assert (refund.evidence, refund.next_check_at) == ("list", shop.now)
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        await shop.handle()
        assert (await shop.stored()).status is Status.FAILED


async def test_late_read_back_is_saved_though_redis_is_away_meanwhile(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.recorder._PAUSE", 0.0)
    async with opened(async_redis) as shop:
        await in_doubt(shop)
        shop.pass_time(HOUR)
        shop.provider.will(LIST, listing(refund_payload()))
        shop.wake_nobody()
        shop.store.asked.clear()
        freeze_before_save(shop, 121 * SECOND)
        shop.store.away_at_save = 2
        assert await shop.handle() == "processing"
        assert shop.store.asked.count("save") == 3
        assert (await shop.stored()).provider_refund_id == "re_1"


@pytest.mark.parametrize(("frozen", "counts"), [(120, True), (121, False)])
async def test_total_that_a_frozen_worker_held_for_long_is_read_again(
    async_redis: redis.asyncio.Redis, frozen: int, *, counts: bool
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        shop.provider.will(PAID, totals(0))
        await in_doubt(shop)
        shop.provider.will(PAID, totals(500))
        shop.pass_time(TOTALS.settle)
        await shop.handle()
        shop.pass_time(TOTALS.settle)
        before = await shop.stored()
        assert before.found_at is not None
        freeze_before_save(shop, frozen * SECOND)
        await shop.handle()
        refund = await shop.stored()
        assert (refund == before) is not counts
        assert (refund.status is Status.SUCCEEDED) is counts


@pytest.mark.parametrize(("frozen", "counts"), [(120, True), (121, False)])
async def test_poll_that_a_frozen_worker_held_for_long_is_made_again(
    async_redis: redis.asyncio.Redis, frozen: int, *, counts: bool
) -> None:
    async with opened(async_redis) as shop:
        await pend(shop)
        before = await shop.stored()
        freeze_before_save(shop, frozen * SECOND)
        # The answer itself may take its time.
        shop.provider.will(OWN, shop.later(15 * SECOND, says()))
        await shop.handle()
        if counts:
            assert (await shop.stored()).status is Status.SUCCEEDED
            return
        assert await shop.stored() == before
        shop.provider.will(OWN, says(200, refund_payload(status="failed")))
        await shop.handle()
        assert (await shop.stored()).status is Status.FAILED


async def test_pending_refund_is_asked_for_by_its_own_id_until_it_is_final(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await pend(shop)
        shop.provider.will(
            "GET /v1/refunds/re_1", says(200, refund_payload(status="pending")), says()
        )
        assert await shop.handle() == "processing"
        assert (await shop.stored()).next_check_at == NOW + HOUR + 1012.5 * SECOND
        shop.pass_time(HOUR)
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [POST, "GET /v1/refunds/re_1", "GET /v1/refunds/re_1"]
        assert (await shop.stored()).status is Status.SUCCEEDED
        assert (await shop.history())[-1]["seen"] == "http_200"


async def test_pending_refund_that_a_replica_does_not_know_yet_is_asked_for_again(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await pend(shop)
        shop.provider.will("GET /v1/refunds/re_1", error(404, "resource_missing"), says())
        await shop.handle()
        assert (await shop.stored()).stage is Stage.PROCESSING
        shop.pass_time(10 * SECOND)
        await shop.handle()
        assert (await shop.stored()).status is Status.SUCCEEDED


async def test_poll_without_an_answer_says_why(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await pend(shop)
        shop.provider.will("GET /v1/refunds/re_1", says(429, {}))
        await shop.handle()
        blocked: Any = await async_redis.hget("refunds:gate", "blocked_until")
        assert blocked is not None


async def test_processing_refund_without_the_providers_id_is_handed_to_a_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await pend(shop)
        await async_redis.hdel(f"refunds:refund:{ID}", "provider_refund_id")
        assert await shop.handle() == "in review (no_provider_id)"
        assert shop.provider.asked == [POST]
        assert (await shop.history())[-1]["label"] == "no_provider_id"


async def test_queued_refund_whose_request_is_gone_rings_an_alarm_and_is_not_sent(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        await async_redis.delete(f"refunds:body:{ID}")
        assert await shop.handle() == "queued (its stored request is gone)"
        assert shop.provider.asked == []
        assert (await shop.stored()).stage is Stage.QUEUED
    assert [line["alarm"] for line in log if line["event"] == "stored_request_missing"] == [True]


async def test_doubtful_refund_whose_request_is_gone_is_handed_to_a_person(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")))
        await shop.handle()
        await async_redis.delete(f"refunds:body:{ID}")
        shop.pass_time(HOUR)
        assert await shop.handle() == "in review (no_body)"
        assert shop.provider.asked == [POST]
        assert (await shop.stored()).stage is Stage.REVIEW
        assert (await shop.history())[-1]["label"] == "no_body"
