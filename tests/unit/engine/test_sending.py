"""From a message to a saved verdict.

What is asked of the provider, and what then stands in the records.
"""

from __future__ import annotations

import random
import time
from datetime import timedelta
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import BLIND, HOUR, MAYBE, NOW, SECOND, TRUST, VERIFY, refund_payload
from tests.unit.engine.shop import (
    BY_ID,
    ID,
    MILLISECOND,
    PAID,
    POST,
    TOTALS,
    Shop,
    error,
    freeze_before_save,
    long_in_doubt,
    opened,
    says,
    totals,
)
from worker.engine.service import Service
from worker.model.answers import TryVerdict
from worker.model.refund import Lane, Stage, Status
from worker.model.request import idempotency_key
from worker.provider.lease_clock import since_boot
from worker.store import claims


async def test_accepted_refund_is_sent_once_and_settled(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, shop.later(1234 * MILLISECOND, says()))
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [POST]
        assert shop.provider.keys == [idempotency_key(ID, 1)]
        refund = await shop.stored()
        assert (refund.stage, refund.status, refund.attempts) == (
            Stage.SETTLED,
            Status.SUCCEEDED,
            1,
        )
        assert refund.updated_at == NOW + 1234 * MILLISECOND
        last = (await shop.history())[-1]
        assert {
            "attempt": 1,
            "seen": "done",
            "ms": 1234,
            "http_status": 200,
        }.items() <= last.items()
        assert "tries" not in last
        assert [outcome.verdict for outcome in shop.attempts] == [TryVerdict.DONE]


async def frozen(shop: Shop, span: timedelta, *, until_saved: bool) -> str:
    """Send a refund, and freeze the worker with the provider's "succeeded" in hand."""
    await shop.accept()
    if until_saved:
        freeze_before_save(shop, span)
        shop.provider.will(POST, says())
    else:
        shop.provider.will(POST, shop.later(span, says()))
    shop.wake_nobody()
    return await shop.handle()


@pytest.mark.parametrize("until_saved", [True, False])
@pytest.mark.parametrize("status", ["failed", "succeeded"])
async def test_success_that_a_frozen_worker_held_for_long_is_read_again_before_it_counts(
    async_redis: redis.asyncio.Redis, status: str, *, until_saved: bool
) -> None:
    async with opened(async_redis, BLIND) as shop:
        assert await frozen(shop, 2000 * SECOND, until_saved=until_saved) == "processing"
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (Status.PENDING, "re_1")
        assert (refund.provider_status, refund.processing_since) == ("succeeded", shop.now)
        assert (await shop.history())[-1]["label"] == "late_success"
        shop.provider.will("GET /v1/refunds/re_1", says(200, refund_payload(status=status)))
        assert (await shop.handle()).startswith(status)
        refund = await shop.stored()
        assert (refund.status, refund.provider_refund_id) == (status, "re_1")
        assert refund.evidence == "lookup"
        assert shop.provider.asked == [POST, "GET /v1/refunds/re_1"]


@pytest.mark.parametrize("lapsed", [True, False])
async def test_success_that_a_replay_long_afterwards_repeats_is_read_again_before_it_counts(
    async_redis: redis.asyncio.Redis, *, lapsed: bool
) -> None:
    async with opened(async_redis, TRUST) as shop:
        if lapsed:
            await shop.accept()
            await shop.store.run(claims.claim(ID, "send", token="t", lease=TRUST.lease))
            shop.provider.will(POST, says())
            shop.pass_time(HOUR)
        else:
            await long_in_doubt(shop)
        shop.provider.asked.clear()
        shop.wake_nobody()
        # The provider kept its first reply with the key. What it made has failed since.
        shop.provider.will(BY_ID, says(200, refund_payload(status="failed")))
        assert await shop.handle() == "processing"
        assert (await shop.handle()).startswith("failed")
        assert shop.provider.asked == [POST, BY_ID]


async def test_success_of_a_prompt_replay_settles_the_refund(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")), says())
        await shop.handle()
        shop.pass_time(90 * SECOND)
        assert await shop.handle() == "succeeded"


async def test_claim_is_not_sent_by_a_machine_that_was_suspended_with_it(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        run = shop.store.run

        async def suspended(call: Any) -> Any:
            reply = await run(call)
            if call.script.name == "claim":
                shop.suspend(HOUR)
            return reply

        monkeypatch.setattr(shop.store, "run", suspended)
        await shop.handle()
        assert shop.provider.asked == []
        assert (await shop.stored()).stage is Stage.WAITING


async def test_late_success_is_polled_at_once(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis, BLIND) as shop:
        again: list[Any] = []
        shop.service._recorder._handle_again = lambda *facts: again.append(facts)
        await frozen(shop, 2000 * SECOND, until_saved=True)
        assert again == [(ID, Lane.SINGLE, timedelta(0))]


async def test_late_success_is_saved_though_redis_is_away_meanwhile(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.recorder._PAUSE", 0.0)
    async with opened(async_redis, BLIND) as shop:
        shop.store.away_at_save = 2
        assert await frozen(shop, 2000 * SECOND, until_saved=True) == "processing"
        assert shop.store.asked.count("save") == 3
        assert (await shop.stored()).provider_refund_id == "re_1"


async def test_success_saved_before_its_claim_is_long_over_settles_the_refund(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        assert await frozen(shop, 165 * SECOND, until_saved=True) == "succeeded"


async def test_late_success_with_another_payments_refund_is_a_doubt(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await async_redis.set("refunds:owner:re_1", "order-0")
        assert (await frozen(shop, 2000 * SECOND, until_saved=True)).startswith("in review")
        refund = await shop.stored()
        assert (refund.error_code, refund.provider_refund_id) == ("owned_elsewhere", None)


async def test_reply_with_another_payments_refund_is_a_doubt_and_settles_one_record(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        for number in (1, 2):
            await shop.accept(f"order-{number}", payment_intent=f"pi_{number}")
        # Neither the payment nor our metadata stands in it: nothing in the reply itself
        # contradicts.
        careless = refund_payload(id="re_first")
        del careless["payment_intent"], careless["metadata"]
        shop.provider.will(POST, says(200, careless))
        await shop.handle("order-1")
        assert await shop.handle("order-2") == "in doubt"
        first, second = await shop.stored("order-1"), await shop.stored("order-2")
        assert (first.status, first.provider_refund_id) == (Status.SUCCEEDED, "re_first")
        assert (second.stage, second.error_code, second.provider_refund_id) == (
            Stage.IN_DOUBT,
            "owned_elsewhere",
            None,
        )
        assert second.error_message is not None
        assert "order-1" in second.error_message
        last = (await shop.history("order-2"))[-1]
        assert {
            "to": "in_doubt",
            "attempt": 1,
            "seen": "may_have_happened",
            "http_status": 200,
        }.items() <= last.items()


async def test_attempt_of_several_tries_says_so(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()
        shop.provider.will(POST, error(500, kind="api_error"), says())
        await shop.handle()
        assert shop.provider.asked == [POST, POST]
        last = (await shop.history())[-1]
        assert (last["tries"], last["http_status"], last["to"]) == (2, 200, "settled")
    assert "further_try_left_out" not in [line["event"] for line in log]


async def test_attempt_without_a_reply_has_no_status_to_show(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ReadError("reset"))
        assert await shop.handle() == "in doubt"
        assert (await shop.stored()).stage is Stage.IN_DOUBT
        assert "http_status" not in (await shop.history())[-1]


async def test_refund_that_is_not_known_is_said_once_and_nothing_is_sent(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        assert await shop.handle("nobody") == "unknown id"
        assert shop.provider.asked == []
    assert [line["event"] for line in log if line.get("refund_id") == "nobody"].count(
        "refund_unknown"
    ) == 1


async def test_refund_that_is_not_known_is_said_once_where_totals_are_read_first(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        assert await shop.handle("nobody") == "unknown id"
        assert shop.provider.asked == []
    assert [line["event"] for line in log if line.get("refund_id") == "nobody"] == [
        "refund_unknown"
    ]


@pytest.mark.parametrize("stage", ["settled", "review"])
async def test_refund_that_needs_nothing_is_left_alone(
    async_redis: redis.asyncio.Redis, stage: str
) -> None:
    async with opened(async_redis, BLIND) as shop:
        await shop.accept()
        shop.provider.will(POST, says() if stage == "settled" else httpx.ReadError("reset"))
        await shop.handle()
        before = await shop.stored()
        assert before.stage.value == stage
        shop.pass_time(HOUR)
        assert await shop.handle() == (
            "succeeded" if stage == "settled" else "in review (no_reply)"
        )
        assert (shop.provider.asked, await shop.stored()) == ([POST], before)


async def test_waiting_refund_is_sent_again_when_its_time_has_come_and_not_before(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, error(401), says())
        assert await shop.handle() == "waiting (key refused)"
        waiting = await shop.stored()
        assert waiting.stage is Stage.WAITING
        assert waiting.next_check_at is not None
        await shop.store.unflag("credentials_refused_at")
        shop.pass_time(waiting.next_check_at - shop.now - MILLISECOND)
        assert await shop.handle() == "waiting (key refused)"
        assert shop.provider.asked == [POST]
        shop.pass_time(MILLISECOND)
        assert await shop.handle() == "succeeded"
        assert shop.provider.asked == [POST, POST]
        assert shop.provider.bodies[0] == shop.provider.bodies[1]


async def test_token_lease_and_window_of_a_claim_are_those_of_the_rules(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, VERIFY) as shop:
        await shop.accept()
        seen: list[Any] = []

        async def look(_: httpx.Request) -> httpx.Response:
            stored: Any = await async_redis.hgetall(f"refunds:refund:{ID}")
            seen.append((stored["claim"], stored["next_check_at"]))
            return says()

        shop.provider.will(POST, look)
        await shop.handle()
        assert seen == [("token-1", str(int((NOW + VERIFY.lease).timestamp() * 1000)))]


async def test_claim_whose_reply_took_long_leaves_too_little_lease_to_send(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        token = shop.token

        def slow() -> str:
            # Between the question and its answer, as the worker's own clock counts.
            shop.seconds += 23
            return token()

        shop.service._actions._claimer._token = slow
        shop.provider.will(POST, says())
        assert await shop.handle() == "waiting (not_sent)"
        assert shop.provider.asked == []
        refund = await shop.stored()
        assert (refund.stage, refund.error_code) == (Stage.WAITING, "not_sent")


async def test_service_goes_by_the_clock_of_its_process_and_draws_what_nobody_can_guess(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        service = Service(
            shop.store,
            shop.gateway,
            rules=VERIFY,
            slots=shop.slots,
            gate=shop.gate,
            wall=lambda: NOW,
        )
        assert service._clock is time.monotonic
        # The others stand still while the machine is suspended, and the lease of a claim does not.
        assert service._lease_clock is since_boot
        actions = service._actions
        assert actions._jitter is random.random
        tokens = {actions._claimer._token() for _ in range(100)}
        assert {len(token) for token in tokens} == {16}
        assert len(tokens) == 100
        actions._runner._on_attempt(MAYBE)


async def test_reply_is_saved_though_redis_was_away_when_it_came(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.recorder._PAUSE", 0.0)
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        shop.store.failing = ["save", "save"]
        assert await shop.handle() == "succeeded"
        assert (await shop.stored()).status is Status.SUCCEEDED
        assert shop.store.asked.count("save") == 3


async def test_total_of_an_attempt_that_did_nothing_is_not_compared_with_after_the_next_one(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        await shop.accept()
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, error(429), httpx.ReadError("reset"))
        await shop.handle()
        # Somebody else makes a refund of the same amount, and the total cannot be read for a while.
        shop.pass_time(HOUR)
        shop.provider.will(PAID, totals(500, captured=False))
        assert await shop.handle() == "in doubt"
        shop.provider.will(PAID, totals(500))
        for _ in range(3):
            shop.pass_time(TOTALS.settle)
            await shop.handle()
        assert (await shop.stored()).status is Status.PENDING
