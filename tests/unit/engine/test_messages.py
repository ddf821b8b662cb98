"""The refunds of a message beside each other, what is given back of them, and what is woken beside
them.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest
import redis.asyncio

from tests.factories import MAYBE, NOW, SECOND, refund_payload
from tests.unit.engine.shop import ID, POST, opened, says, until
from worker.errors import StoreUnavailable
from worker.model.refund import Lane, Stage, Status


async def test_message_is_handled_whole_and_the_ids_that_were_not_begun_are_given_back(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, slots=1) as shop:
        for number in range(3):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
        begun = asyncio.Event()

        async def hang(_: httpx.Request) -> httpx.Response:
            begun.set()
            await asyncio.sleep(0.05)
            return says(200, refund_payload(payment_intent="pi_0", metadata={"refund_id": "r0"}))

        shop.provider.will(POST, hang)
        ended = await shop.service.process(["r0", "r1", "r2"], Lane.SINGLE, seconds=0.01)
        assert list(map(str, ended)) == ["succeeded", "given back", "given back"]
        assert begun.is_set()
        assert [(await shop.stored(f"r{number}")).stage for number in range(3)] == [
            Stage.SETTLED,
            Stage.QUEUED,
            Stage.QUEUED,
        ]
        # Given back: due now, and not only when the grace of a lost nudge is over.
        assert [(await shop.stored(f"r{number}")).next_check_at for number in (1, 2)] == [NOW, NOW]


async def test_message_of_which_all_was_begun_gives_nothing_back(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        assert list(map(str, await shop.service.process([ID], Lane.SINGLE, seconds=30))) == [
            "succeeded"
        ]
        assert "give_back" not in shop.store.asked


async def test_one_refunds_unforeseen_trouble_is_its_own(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        for number in range(2):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
        shop.provider.will(
            POST,
            lambda _: LookupError("unforeseen"),
            says(200, refund_payload(payment_intent="pi_1", metadata={"refund_id": "r1"})),
        )
        ended = await shop.service.process(["r0", "r1"], Lane.SINGLE, seconds=30)
        assert list(map(str, ended)) == ["handling failed (LookupError)", "succeeded"]
        assert "give_back" not in shop.store.asked
        assert (await shop.stored("r1")).stage is Stage.SETTLED
    (line,) = [line for line in log if line["event"] == "refund_handling_failed"]
    assert (line["refund_id"], line["alarm"]) == ("r0", True)


async def test_unforeseen_trouble_of_a_refund_woken_in_the_background_is_an_alarm_with_its_id(
    async_redis: redis.asyncio.Redis, log: list[Any]
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, lambda _: LookupError("unforeseen"))
        shop.service._handle_again(ID, Lane.SINGLE, timedelta(0))
        await shop.service.drain()
    (line,) = [line for line in log if line["event"] == "refund_handling_failed"]
    assert (line["refund_id"], line["alarm"]) == (ID, True)


async def test_refund_that_redis_could_not_be_asked_about_is_left_to_a_sweep(
    async_redis: redis.asyncio.Redis, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()

        async def away(_: Any) -> Any:
            raise StoreUnavailable("redis is away")

        monkeypatch.setattr("worker.engine.recorder._LET_GO_PAUSES", (0.0,))
        shop.store.run = away  # type: ignore[assignment, method-assign]
        assert await shop.handle() == "not known (Redis away)"
        ended = await shop.service.process([ID], Lane.SINGLE, seconds=30)
        assert list(map(str, ended)) == ["not known (Redis away)"]
        shop.service.stop()
        ended = await shop.service.process([ID], Lane.SINGLE, seconds=30)
        assert list(map(str, ended)) == ["given back (worker stopping)"]
    names = [line["event"] for line in log]
    assert (names.count("refund_deferred"), names.count("give_back_failed")) == (2, 1)


async def test_time_in_which_a_refund_may_begin_ends_when_it_has_begun(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()

        async def slow(_: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0.05)
            return says()

        shop.provider.will(POST, slow)
        assert await shop.handle(until=shop.clock() + 0.01) == "succeeded"
        assert (await shop.stored()).status is Status.SUCCEEDED


async def test_stopping_gives_back_what_waits_and_lets_what_was_begun_end(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, slots=1) as shop:
        for number in range(2):
            await shop.accept(f"r{number}", payment_intent=f"pi_{number}")
        go, begun = asyncio.Event(), asyncio.Event()

        async def hang(_: httpx.Request) -> httpx.Response:
            begun.set()
            await go.wait()
            return says(200, refund_payload(payment_intent="pi_0", metadata={"refund_id": "r0"}))

        shop.provider.will(POST, hang)
        message = asyncio.create_task(shop.service.process(["r0", "r1"], Lane.SINGLE, seconds=600))
        await begun.wait()
        other = asyncio.create_task(shop.handle("r1", until=shop.clock() + 600))
        await until(lambda: len(shop.service._waits) == 2)
        shop.service.stop()
        # While the first is still under way.
        assert await asyncio.wait_for(other, 5) == "given back (worker stopping)"
        waiting = asyncio.create_task(shop.handle("r1"))
        go.set()
        assert list(map(str, await message)) == ["succeeded", "given back (worker stopping)"]
        assert await waiting == "given back (worker stopping)"
        assert [(await shop.stored(f"r{number}")).stage for number in range(2)] == [
            Stage.SETTLED,
            Stage.QUEUED,
        ]
        assert shop.provider.asked == [POST]


async def test_stopping_ends_every_wait_though_the_time_of_one_has_come_in_that_very_moment(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, slots=1) as shop, shop.service.slots.hold(Lane.SINGLE):
        waiting = [
            asyncio.create_task(shop.handle(f"r{number}", until=shop.clock() + 600))
            for number in range(2)
        ]
        await until(lambda: len(shop.service._waits) == 2)
        next(iter(shop.service._waits)).reschedule(0)
        await asyncio.sleep(0)
        # Its time is over, and its task has not heard of it yet.
        assert sorted(wait.expired() for wait in shop.service._waits) == [False, True]
        shop.service.stop()
        assert (
            await asyncio.wait_for(asyncio.gather(*waiting), 5)
            == ["given back (worker stopping)"] * 2
        )


async def test_waits_that_are_over_are_forgotten(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        await shop.handle(until=shop.clock() + 30)
        assert shop.service._waits == set()
        async with AsyncExitStack() as taken:
            for _ in range(shop.slots.total):
                await taken.enter_async_context(shop.slots.hold(Lane.SINGLE))
            assert await shop.handle(until=shop.clock() - 1) == "given back"
        assert shop.service._waits == set()


async def test_refund_whose_payment_comes_free_is_sent_beside_the_message(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        for number in range(2):
            await shop.accept(f"r{number}")
        begun, go = asyncio.Event(), asyncio.Event()

        async def hang(_: httpx.Request) -> httpx.Response:
            begun.set()
            await go.wait()
            return says(200, refund_payload(metadata={"refund_id": "r0"}))

        shop.provider.will(
            POST, hang, says(200, refund_payload(id="re_2", metadata={"refund_id": "r1"}))
        )
        first = asyncio.create_task(shop.handle("r0"))
        await begun.wait()
        assert await shop.handle("r1") == "queued (another refund of the payment is in progress)"
        assert (await shop.stored("r1")).stage is Stage.QUEUED
        go.set()
        await first
        await shop.service.drain()
        assert shop.provider.asked == [POST, POST]
        assert (await shop.stored("r1")).status is Status.SUCCEEDED


async def test_look_that_is_due_within_seconds_is_taken_by_the_worker_that_scheduled_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        woken: list[Any] = []
        shop.service._wake = lambda *facts: woken.append(facts)  # type: ignore[method-assign]
        shop.service._handle_again("r1", Lane.BULK, timedelta(milliseconds=5))
        assert woken == []
        await asyncio.sleep(0.02)
        assert woken == [("r1", Lane.BULK)]
        shop.service._handle_again("r2", Lane.SINGLE, timedelta(0))
        assert woken == [("r1", Lane.BULK), ("r2", Lane.SINGLE)]


async def test_worker_that_has_too_many_beside_or_is_stopping_takes_none_more(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        shop.service.stop()
        shop.service._wake(ID, Lane.SINGLE)
        assert shop.service._extra == set()
        full = {asyncio.create_task(asyncio.sleep(0)) for _ in range(1000)}
        shop.service._extra |= full
        loop = asyncio.get_running_loop()
        before = len(loop._scheduled)  # type: ignore[attr-defined]
        shop.service._handle_again(ID, Lane.SINGLE, SECOND)
        assert len(loop._scheduled) == before  # type: ignore[attr-defined]
        shop.service._extra.discard(full.pop())
        shop.service._handle_again(ID, Lane.SINGLE, SECOND)
        assert len(loop._scheduled) == before + 1  # type: ignore[attr-defined]
        shop.service._extra.clear()
        await asyncio.gather(*full)


async def test_refund_that_waits_for_a_slot_begins_when_one_comes_free_in_time(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, slots=1) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        async with AsyncExitStack() as taken:
            await taken.enter_async_context(shop.slots.hold(Lane.SINGLE))
            waiting = asyncio.create_task(shop.handle(until=shop.clock() + 600))
            await until(lambda: len(shop.service._waits) == 1)
        assert await waiting == "succeeded"
        assert shop.provider.asked == [POST]


async def test_refund_whose_time_to_begin_is_over_waits_for_nothing(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis, slots=1) as shop, shop.slots.hold(Lane.SINGLE):
        waiting = asyncio.create_task(shop.handle(until=shop.clock() - 1))
        await asyncio.sleep(0)
        (wait,) = shop.service._waits
        ends = wait.when()
        assert ends is not None
        assert ends <= asyncio.get_running_loop().time()
        assert await waiting == "given back"


async def test_nothing_is_claimed_while_the_provider_is_away(
    async_redis: redis.asyncio.Redis,
) -> None:
    async with opened(async_redis) as shop:
        await shop.accept()
        shop.provider.will(POST, says())
        shop.service.breaker.is_open = True
        waiting = asyncio.create_task(shop.handle())
        await until(lambda: len(shop.service._waits) == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (shop.store.asked, shop.gate.passed) == (["create"], [])
        shop.service.breaker.answered()
        assert await waiting == "succeeded"
        assert shop.provider.asked == [POST]


async def test_draining_ends_the_probe_of_an_outage(async_redis: redis.asyncio.Redis) -> None:
    async with opened(async_redis) as shop:
        for _ in range(8):
            shop.service.breaker.record(MAYBE)
        probe = shop.service.breaker._probing
        assert probe is not None
        await shop.service.drain()
        await asyncio.gather(probe, return_exceptions=True)
        assert probe.cancelled()
