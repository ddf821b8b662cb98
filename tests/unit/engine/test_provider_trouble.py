"""What one answer says of the provider as a whole: a rate limit, refused credentials, an outage."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import HOUR, NOW, SECOND, TRUST, a_refund, done_as
from tests.unit.engine.shop import (
    ID,
    MILLISECOND,
    PAID,
    POST,
    PROBE,
    TOTALS,
    Shop,
    error,
    opened,
    says,
    totals,
    until,
)
from worker.engine import breaker
from worker.engine.breaker import Breaker
from worker.model.answers import NotSent
from worker.model.refund import Lane, Stage, Status
from worker.rules import attempts
from worker.rules.outcomes import classify
from worker.store import gate, saves


async def test_rate_limit_closes_the_gate_for_ever_longer_until_something_is_done(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        waits = []
        for number in range(3):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
            shop.provider.will(POST, error(429, "rate_limit", "rate_limit_error"))
            await shop.handle(f"r{number}")
            waits.append(await blocked_for(shop))
            shop.pass_time(waits[-1])
        assert waits == [SECOND, 2 * SECOND, 4 * SECOND]
        await shop.accept()
        shop.provider.will(POST, says())
        await shop.handle()
        shop.provider.will(POST, error(429, "rate_limit", "rate_limit_error"))
        await shop.accept("r9", payment_intent="pi_9")
        await shop.handle("r9")
        assert await blocked_for(shop) == SECOND
    assert [line["seconds"] for line in log if line["event"] == "rate_limited"] == [1, 2, 4, 1]


@pytest.mark.parametrize(("status", "failing"), [(429, "block_gate"), (401, "flag")])
async def test_answer_is_saved_where_the_others_could_not_be_told_of_it(
    async_redis: redis.asyncio.Redis, log: list[Any], status: int, failing: str
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.store.failing.append(failing)
        shop.provider.will(POST, error(status))
        await shop.handle()
        assert shop.store.failing == []
        assert (await shop.stored()).stage is Stage.WAITING
    assert "trouble_untold" in [line["event"] for line in log]


async def test_answer_is_saved_where_the_records_cannot_hold_what_it_says_of_the_others(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()

        async def broken(_: httpx.Request) -> httpx.Response:
            await shop.store.redis.set("refunds:gate", "no hash")
            return error(429)

        shop.provider.will(POST, broken)
        await shop.handle()
        assert (await shop.stored()).stage is Stage.WAITING
    assert "trouble_untold" in [line["event"] for line in log]


async def test_what_the_first_try_has_shown_is_saved_where_the_gate_is_broken(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()

        async def broken(_: httpx.Request) -> httpx.Response:
            await shop.store.redis.set("refunds:gate", "no hash")
            return error(500, kind="api_error")

        shop.provider.will(POST, broken, says())
        await shop.service._actions.run(ID, Lane.SINGLE)
        refund = await shop.stored()
        assert (refund.stage, refund.error_code) == (Stage.IN_DOUBT, "some_code")
        assert shop.provider.asked == [POST]


async def blocked_for(shop: Shop) -> timedelta:
    stored: Any = await shop.store.redis.hget("refunds:gate", "blocked_until")
    return timedelta(milliseconds=int(stored) - int(shop.now.timestamp() * 1000))


async def test_rate_limit_that_says_how_long_is_kept_to_and_never_longer_than_two_minutes_by_itself(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(
            POST, error(429, "rate_limit", "rate_limit_error", **{"Retry-After": "7"})
        )
        await shop.handle()
        assert await blocked_for(shop) == 7 * SECOND
        shop.pass_time(HOUR)
        shop.service.trouble._blocks = 50
        shop.provider.will(POST, error(429, "rate_limit", "rate_limit_error"))
        await shop.handle()
        assert await blocked_for(shop) == 120 * SECOND


@pytest.mark.parametrize(
    ("told", "blocked"), [("0", [1, 2, 4]), ("0.2", [1, 1, 1]), ("3", [3, 3, 3])]
)
async def test_rate_limit_closes_the_gate_for_a_second_at_least(
    async_redis: redis.asyncio.Redis, told: str, blocked: list[int]
) -> None:
    async with opened(async_redis) as shop:
        waits = []
        for number in range(3):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
            shop.provider.will(
                POST, error(429, "rate_limit", "rate_limit_error", **{"Retry-After": told})
            )
            await shop.handle(f"r{number}")
            waits.append(await blocked_for(shop))
            shop.pass_time(waits[-1])
        assert waits == [seconds * SECOND for seconds in blocked]


async def test_payment_that_is_always_busy_is_attempted_ever_later_and_holds_up_no_other(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        waits = []
        for number in range(10):
            shop.provider.will(POST, error(429, "lock_timeout", **{"Retry-After": "0"}))
            await shop.handle()
            held = await shop.stored()
            assert (held.stage, held.error_code, held.attempts) == (
                Stage.WAITING,
                "lock_timeout",
                number + 1,
            )
            assert held.next_check_at is not None
            waits.append(held.next_check_at - shop.now)
            assert not await shop.store.redis.exists("refunds:gate")
            shop.pass_time(waits[-1])
        assert waits[0] >= SECOND
        assert all(later >= 1.9 * earlier for earlier, later in pairwise(waits))
        shop.provider.will(POST, says())
        await shop.handle()
        assert (await shop.stored()).status is Status.SUCCEEDED


async def test_refused_credentials_are_said_once_and_stop_everyone_until_they_are_accepted(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    probe = "GET /v1/refunds/re_credentials_probe"
    async with opened(async_redis) as shop:
        assert await shop.service.trouble.probe_credentials() is True
        assert shop.provider.asked == []
        await shop.service.trouble.refuse_credentials()
        await shop.service.trouble.refuse_credentials()
        # Without what the provider said: it may repeat the customer's own data.
        assert [line for line in log if line["event"] == "credentials_refused"] == [
            {"event": "credentials_refused", "alarm": True, "log_level": "error"}
        ]
        shop.provider.will(probe, error(401), error(404), error(404))
        assert await shop.service.trouble.probe_credentials() is False
        assert "credentials_refused_at" in await shop.meta()
        assert await shop.service.trouble.probe_credentials() is True
        assert "credentials_refused_at" not in await shop.meta()
        assert shop.provider.asked == [probe, probe]


async def test_403_of_one_refund_alone_stops_nobody(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, error(403, "not_allowed"))
        shop.provider.will("GET /v1/refunds/re_credentials_probe", error(404))
        await shop.handle()
        assert (await shop.stored()).status is Status.FAILED
        assert "credentials_refused_at" not in await shop.meta()


async def test_outage_opens_the_breaker_and_an_answer_to_any_read_closes_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TOTALS) as shop:
        shop.provider.will(PAID, error(503, kind="api_error"))
        await shop.accept()
        for _ in range(8):
            assert not shop.service.breaker.is_open
            await shop.service._actions.run(ID, Lane.SINGLE)
            shop.pass_time(HOUR)
        assert shop.service.breaker.is_open
        shop.provider.will(PAID, totals(0))
        shop.provider.will(POST, httpx.ReadError("reset"))
        await shop.service._actions.run(ID, Lane.SINGLE)
        assert not shop.service.breaker.is_open


async def test_a_probe_that_fails_in_an_unforeseen_way_is_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PROBE", MILLISECOND)
    results: list[bool | Exception] = [True, RuntimeError("can't start new thread")]

    async def probe() -> bool:
        result = results.pop()
        if isinstance(result, Exception):
            raise result
        return result

    outage = Breaker(probe, jitter=lambda: 0.0)
    for _ in range(breaker.FAILURES):
        outage.record(classify(NotSent(reason="the provider could not be reached"), a_refund()))
    assert outage.resting
    async with asyncio.timeout(5):
        assert await outage.wait()
    outage.stop()
    assert "probe_failed" in [line["event"] for line in log]


@pytest.mark.parametrize(
    ("answer", "answers"), [(error(404), True), (error(401), True), (says(503, {}), False)]
)
async def test_provider_that_says_anything_of_the_key_is_back(
    async_redis: redis.asyncio.Redis, answer: httpx.Response, *, answers: bool
) -> None:
    async with opened(async_redis) as shop:
        shop.provider.will(PROBE, answer)
        assert await shop.service.trouble._provider_answers() is answers


async def test_row_of_rate_limits_is_ended_only_by_what_was_done(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        for number, answer in enumerate((error(429), error(400), error(429))):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
            shop.provider.will(POST, answer)
            await shop.handle(f"r{number}")
            left = await blocked_for(shop)
            shop.pass_time(HOUR)
        assert left == 2 * SECOND


async def test_attempts_further_tries_end_when_the_worker_stops_or_the_gate_closes(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        for number, end in enumerate((shop.service.stop, lambda: shop.gate.learn(HOUR))):
            shop.service.stopping = shop.service._recorder.stopping = False
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")

            def ended(_: httpx.Request, end: Any = end) -> httpx.Response:
                end()
                return error(500, kind="api_error")

            shop.provider.will(POST, ended)
            shop.provider.asked.clear()
            await shop.service._actions.run(f"r{number}", Lane.SINGLE)
            assert shop.provider.asked == [POST]


async def test_further_try_is_left_out_where_somebody_has_proven_the_refund_done_meanwhile(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    """A frozen worker woke and saved its late proof, and the replay's next try left all the same
    (seed 8679).
    """
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()

        async def proven(_: httpx.Request) -> httpx.Response:
            refund = await shop.stored()
            await shop.store.run(
                saves.save(
                    refund, attempts.after_attempt(refund, done_as("pending"), TRUST, NOW, 0)
                )
            )
            return error(500, kind="api_error")

        shop.provider.will(POST, proven, says())
        await shop.handle()
        assert shop.provider.asked == [POST]
        assert (await shop.stored()).stage is Stage.PROCESSING
    assert {
        "event": "further_try_left_out",
        "refund_id": ID,
        "reason": "overtaken",
    }.items() <= next(line for line in log if line["event"] == "further_try_left_out").items()


async def test_further_try_is_left_out_where_the_stop_button_was_pressed_meanwhile(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, TRUST) as shop:
        await shop.accept()

        async def paused(_: httpx.Request) -> httpx.Response:
            await shop.store.flag("paused", once=True)
            return error(500, kind="api_error")

        shop.provider.will(POST, paused, says())
        await shop.handle()
        assert shop.provider.asked == [POST]
        assert (await shop.stored()).stage is Stage.IN_DOUBT


@pytest.mark.parametrize(("script", "rate"), [("stands", 0.0), ("gate", 5.0)])
async def test_what_the_first_try_has_shown_is_saved_where_the_records_were_away_before_the_second(
    async_redis: redis.asyncio.Redis, script: str, rate: float
) -> None:
    async with opened(async_redis, TRUST, rate=rate) as shop:
        await shop.accept()

        def failing(_: httpx.Request) -> httpx.Response:
            shop.store.failing.append(script)
            return error(500, kind="api_error")

        shop.provider.will(POST, failing, says())
        await shop.service._actions.run(ID, Lane.SINGLE)
        assert shop.provider.asked == [POST]
        refund = await shop.stored()
        assert (refund.stage, refund.error_code) == (Stage.IN_DOUBT, "some_code")


async def test_refund_that_a_closed_gate_holds_back_is_taken_up_when_it_opens(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        await shop.store.run(gate.block_gate(2 * SECOND))
        again: list[Any] = []
        shop.service._actions._claimer._handle_again = lambda *facts: again.append(facts)
        await shop.service._actions.run(ID, Lane.SINGLE)
        assert again == [(ID, Lane.SINGLE, 2 * SECOND)]
        assert not await shop.gate.try_now(Lane.SINGLE)
        shop.seconds += 2
        assert await shop.gate.try_now(Lane.SINGLE)
        await shop.store.run(gate.block_gate(5 * SECOND))
        await shop.service._actions.run(ID, Lane.SINGLE)
        assert again[1:] == [(ID, Lane.SINGLE, 5 * SECOND)]
        again.pop()
        await shop.store.run(gate.block_gate(5 * SECOND + MILLISECOND))
        await shop.service._actions.run(ID, Lane.SINGLE)
        assert len(again) == 1
        await shop.store.run(gate.block_gate(HOUR))
        await shop.service._actions.run(ID, Lane.SINGLE)
        assert len(again) == 1


async def test_what_was_woken_beside_the_messages_is_waited_for(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        shop.service._wake(ID, Lane.SINGLE)
        await shop.service.drain()
        assert (await shop.stored()).status is Status.SUCCEEDED
        await until(lambda: not shop.service._extra)


async def test_trial_that_asked_the_provider_nothing_is_left_to_the_next(
    async_redis: redis.asyncio.Redis,
) -> None:
    """Refunds that need no call took one trial each, half a minute apart, and those behind them
    waited (seed 18465).
    """
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        breaker = shop.service.breaker
        breaker.is_open = breaker._trial = True
        assert await shop.handle("nobody") == "unknown id"
        assert (shop.provider.asked, breaker.is_open, breaker._trial) == ([], True, True)
        assert await shop.handle() == "succeeded"
        assert (shop.provider.asked, breaker.is_open) == ([POST], False)


async def test_one_that_gives_up_waiting_ends_no_trial_of_another(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        breaker = shop.service.breaker
        # Another refund holds the trial, and has not sent anything yet.
        breaker.is_open, breaker._trial = True, False
        ended = await shop.service.process([ID], Lane.SINGLE, seconds=0)
        assert [ending.begun for ending in ended] == [False]
        assert breaker._trial is False


async def test_trial_that_met_the_outage_is_over_and_offered_to_nobody(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, httpx.ConnectError("refused"))
        breaker = shop.service.breaker
        breaker.is_open = breaker._trial = True
        assert await shop.handle() == "in doubt"
        assert (breaker.is_open, breaker._trial) == (True, False)


async def test_refund_that_the_rate_holds_back_for_a_moment_is_handled_again_after_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        # Another worker has met a 429.
        await shop.store.run(gate.block_gate(MILLISECOND))
        woken: list[tuple[str, Lane]] = []
        # The service's own would begin the refund beside the test.
        shop.service._wake = lambda *facts: woken.append(facts)  # type: ignore[method-assign]
        assert await shop.handle() == "queued (rate limited)"
        await until(lambda: bool(woken))
        assert woken == [(ID, Lane.SINGLE)]
