"""One worker's side of the rate: who waits is let through at a moment of the schedule that all
workers share.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.factories import MINUTE
from worker.engine.rate_gate import RateGate
from worker.errors import StoreUnavailable
from worker.model.refund import Lane
from worker.store.async_store import AsyncStore
from worker.store.gate import Permits
from worker.store.scripts import Command

PATIENCE = 20
OPERATIONS = Path(__file__).parents[3] / "ops" / "docs" / "operations.md"


@pytest.fixture
def store(async_any_redis: redis.asyncio.Redis) -> AsyncStore:
    return AsyncStore(async_any_redis, durable=False)


def gate_of(store: AsyncStore, rate: float = 500) -> RateGate:
    return RateGate(store, rate=rate, bulk_share=0.7)


@pytest.mark.parametrize("rate", [0, 500])
async def test_everybody_gets_through_whatever_the_lane(store: AsyncStore, rate: float) -> None:
    gate = gate_of(store, rate)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(gate.acquire(lane) for lane in Lane for _ in range(30)))


async def test_nothing_waits_for_days_after_the_clock_was_set_back_as_the_manual_says(
    store: AsyncStore,
) -> None:
    days = timedelta(days=3) // timedelta(milliseconds=1)
    seconds, _ = await store.redis.time()
    clock: dict[Any, Any] = {"at": seconds * 1000 + days, "ahead": days}
    await store.redis.hset("refunds:clock", mapping=clock)
    await gate_of(store).acquire(Lane.SINGLE)
    # A worker that was killed leaves its last heartbeat.
    await store.redis.zadd("refunds:workers", {"killed:1": clock["at"]})
    await store.redis.zadd("refunds:outages", {"killed:1": clock["at"]})
    told = re.search(r"`redis-cli (del refunds:clock[^`]*)`", OPERATIONS.read_text())
    assert told is not None
    await store.redis.execute_command(*told[1].split())
    for name in ("workers", "outages"):
        assert await store.redis.zcount(f"refunds:{name}", clock["at"], "+inf") == 0
    async with asyncio.timeout(PATIENCE):
        await gate_of(store).acquire(Lane.SINGLE)


async def test_two_workers_never_get_the_same_moment(store: AsyncStore) -> None:
    taken: list[timedelta] = []
    one, other = gate_of(store), gate_of(store)
    inner = store.run

    async def noting(command: Command[Any]) -> Any:
        result = await inner(command)
        if isinstance(result, Permits):
            stored: Any = await store.redis.hget("refunds:gate", "next_at")
            taken.append(timedelta(milliseconds=float(stored)))
        return result

    store.run = noting  # type: ignore[method-assign]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(gate.acquire(Lane.BULK) for gate in (one, other) for _ in range(30)))
    step = timedelta(seconds=1 / 500)
    assert taken == sorted(taken)
    assert taken[-1] - taken[0] >= 20 * step


async def test_one_that_gives_up_keeps_no_other_waiting(store: AsyncStore) -> None:
    gate = gate_of(store)
    await gate.block(timedelta(milliseconds=50))
    waiting = [asyncio.create_task(gate.acquire(Lane.SINGLE)) for _ in range(4)]
    await asyncio.sleep(0)
    for task in waiting[:2]:
        task.cancel()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*waiting[2:])
    assert [task.cancelled() for task in waiting] == [True, True, False, False]


async def test_moment_of_one_that_gave_up_is_used_by_the_next_who_comes(store: AsyncStore) -> None:
    gate = gate_of(store, rate=30)
    inner, asked = store.run, asyncio.Event()

    async def once(command: Command[Any]) -> Any:
        assert not asked.is_set(), "the schedule was asked again"
        result = await inner(command)
        asked.set()
        return result

    store.run = once  # type: ignore[method-assign]
    givers_up = [asyncio.create_task(gate.acquire(Lane.SINGLE)) for _ in range(2)]
    async with asyncio.timeout(PATIENCE):
        await asked.wait()
        for task in givers_up:
            task.cancel()
        await gate.acquire(Lane.BULK)


async def test_closed_gate_of_one_worker_is_closed_for_the_other(store: AsyncStore) -> None:
    one, other = gate_of(store), gate_of(store)
    await one.block(MINUTE)
    assert not await one.try_now(Lane.SINGLE)
    assert not await other.try_now(Lane.SINGLE)


async def test_handling_that_has_begun_goes_on_before_those_that_have_not(
    store: AsyncStore,
) -> None:
    gate = gate_of(store, rate=100)
    await gate.block(timedelta(milliseconds=50))
    came: list[str] = []

    async def come(name: str, waiting: Awaitable[None]) -> None:
        await waiting
        came.append(name)

    names = {f"new-{number}": gate.acquire(Lane.BULK) for number in range(5)} | {
        "begun": gate.go_on(Lane.BULK)
    }
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(come(name, waiting) for name, waiting in names.items()))
    assert came == ["begun", *(f"new-{number}" for number in range(5))]


@pytest.mark.parametrize("rate", [0, 500])
async def test_who_goes_on_waits_for_nothing_where_a_permit_is_at_hand(
    store: AsyncStore, rate: float
) -> None:
    gate = gate_of(store, rate)
    gate._schedule.keep(time.monotonic())
    store.run = None  # type: ignore[method-assign,assignment]  # asking would fail
    await gate.go_on(Lane.SINGLE)
    gate.stop()
    gate._schedule.keep(time.monotonic())
    await gate.go_on(Lane.SINGLE)


async def test_nobody_waits_for_a_gate_that_was_stopped(store: AsyncStore) -> None:
    gate = gate_of(store)
    await gate.block(MINUTE)
    waiting = [
        asyncio.create_task(wait(lane)) for wait in (gate.acquire, gate.go_on) for lane in Lane
    ]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.stop()
    async with asyncio.timeout(PATIENCE):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] + [TimeoutError] * 3
        for wait in (gate.acquire, gate.go_on):
            with pytest.raises(TimeoutError):
                await wait(Lane.SINGLE)
        if gate._reserving is not None:
            await gate._reserving


async def test_permit_at_once_is_given_until_the_near_moments_are_taken(store: AsyncStore) -> None:
    gate = gate_of(store, rate=20)
    given = [await gate.try_now(Lane.SINGLE) for _ in range(10)]
    assert given[0]
    assert not all(given)


async def test_trouble_with_the_records_reaches_those_who_wait(store: AsyncStore) -> None:
    gate = gate_of(store)

    async def away(_: Command[Any]) -> Any:
        raise StoreUnavailable("away")

    store.run = away  # type: ignore[method-assign,assignment]
    results = await asyncio.gather(*(gate.acquire(lane) for lane in Lane), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable]
