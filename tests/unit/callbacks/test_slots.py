"""How many callbacks a worker takes from the records, holds, and begins at once."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tests.support.callback_desk import (
    receiving,
    settle,
    working,
)
from tests.support.store_world import ID
from worker.callbacks.delivery import (
    MOST_HELD,
    MOST_TAKEN_BUSY,
    TAKEN_PER_SLOT,
)
from worker.callbacks.pace import Pace
from worker.model.times import to_ms
from worker.store import callbacks


async def test_more_than_fits_in_waits_in_the_records() -> None:
    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        members = [f"r{number}" for number in range(MOST_HELD + 5)]
        assert desk.sender.accept("shop", members) == MOST_HELD
        assert desk.sender.accept("unknown", members) == 0
        assert shop.bodies == []


async def test_member_that_is_held_is_not_accepted_again() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        assert desk.sender.accept("shop", [ID, ID]) == 1
        assert desk.sender.accept("shop", [ID]) == 0


async def test_full_slots_begin_no_more() -> None:
    async with receiving() as shop, working(shop.endpoint(in_flight=2)) as desk:
        desk.sender.accept("shop", ["r1", "r2"])
        begun = asyncio.all_tasks()
        assert desk.sender.accept("shop", ["r3"]) == 1
        assert asyncio.all_tasks() == begun


async def test_slot_is_free_from_the_moment_its_last_try_ends() -> None:
    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        for refund_id in ("r1", "r2"):
            settle(desk, refund_id)

        def accept_next() -> None:
            desk.store.after = None
            # The try before it ends first, but the loop has not yet told anybody.
            asyncio.get_running_loop().call_soon(desk.sender.accept, "shop", ["r2"])

        desk.store.after = accept_next
        desk.store.now = desk.world.now
        wanted = [callbacks.Wanted(name="shop", ids="", most=2)]
        assert len(desk.world.store.run(callbacks.outbox(wanted)).due["shop"]) == 2
        desk.sender.accept("shop", ["r1"])
        await shop.until(2)


async def test_worker_takes_no_more_than_it_begins_soon() -> None:
    freed = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await freed.wait()
        return web.Response()

    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        shop.answers = [slow] * (2 * TAKEN_PER_SLOT)
        for number in range(TAKEN_PER_SLOT + 3):
            settle(desk, f"r{number}")
        assert len((await desk.sweep())["shop"]) == TAKEN_PER_SLOT
        await shop.until(1)
        # One is in flight, so there is room for one.
        assert len((await desk.sweep())["shop"]) == 1
        assert await desk.sweep() == {}
        line = desk.sender._lines["shop"]
        # Never less than none, nor more than there is room for.
        assert [line.room(most) for most in (500, 60, 59, 10)] == [0, 0, 0, 0]
        last = line.waiting.pop()
        assert [line.room(most) for most in (500, 60, 59, 10)] == [1, 1, 0, 0]
        line.waiting.append(last)
        freed.set()
        await desk.sender.idle()
        await desk.deliver()
        assert len(shop.bodies) == TAKEN_PER_SLOT + 3


async def test_sweep_shares_out_all_that_waits_and_takes_what_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callbacks, "SHARED_OUT", 5)
    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        monkeypatch.setattr("worker.callbacks.delivery.TAKEN_PER_SLOT", 4)
        desk.note(11)
        assert await desk.sender.sweep(lambda *_: None) == 4
        # Two full shares and the rest, each in a script of its own.
        assert desk.store.outboxes == 3
        assert desk.world.keys("callbacks") == []
        is_due = desk.world.redis.zcount("refunds:callbacks:shop", 0, to_ms(desk.world.now))
        assert is_due == 11 - 4
        assert await desk.sender.sweep(lambda *_: None) == 4
        assert desk.store.outboxes == 4


async def test_worker_that_refunds_keep_busy_takes_few_callbacks() -> None:
    clock = [100.0]
    # Refunds are in flight, and the whole processor is in use.
    pace = Pace(lambda: True, used=lambda: clock[0], clock=lambda: clock[0])
    async with receiving() as shop, working(shop.endpoint(), pace=pace) as desk:
        desk.note(MOST_TAKEN_BUSY + 5)
        clock[0] += 1
        assert await desk.sender.sweep(lambda *_: None) == MOST_TAKEN_BUSY


async def test_each_callback_waits_for_its_turn() -> None:
    events: list[str] = []

    class Turns(Pace):
        async def turn(self) -> None:
            await asyncio.sleep(0)
            events.append("turn")

    pace = Turns(lambda: False)
    async with receiving() as shop, working(shop.endpoint(in_flight=1), pace=pace) as desk:

        async def note(_request: web.Request) -> web.Response:
            events.append("arrived")
            return web.Response()

        shop.answers = [note, note]
        for refund_id in ("r1", "r2"):
            settle(desk, refund_id)
        await desk.deliver()
        assert events == ["turn", "arrived"] * 2


async def test_turn_that_comes_when_nothing_waits_any_more_ends_in_peace() -> None:
    class Turns(Pace):
        async def turn(self) -> None:
            await asyncio.sleep(0)

    pace = Turns(lambda: False)
    async with receiving() as shop, working(shop.endpoint(in_flight=3), pace=pace) as desk:
        settle(desk)
        before = asyncio.all_tasks()
        await desk.sweep()
        begun = asyncio.all_tasks() - before
        await desk.sender.idle()
        assert len(shop.bodies) == 1
        slots = [task for task in begun if task.done()]
        assert [task.exception() for task in slots] == [None] * 3
