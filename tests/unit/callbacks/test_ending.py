"""What a sender of callbacks does at its end, and with a record that cannot be read."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from aiohttp import web

from tests.factories import SECOND
from tests.support.callback_desk import (
    receiving,
    settle,
    working,
)
from tests.support.store_world import ID
from tests.unit.callbacks import test_posting
from worker.callbacks.delivery import (
    END_SECONDS,
    MOST_HELD,
    MOST_TAKEN,
    MOST_TAKEN_BUSY,
    PER_MESSAGE,
    ROUNDS,
    SPARE,
    TAKEN_PER_SLOT,
)
from worker.callbacks.pace import Pace


async def test_end_lets_requests_in_flight_end_and_begins_no_more() -> None:
    arrived, freed = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        arrived.set()
        await freed.wait()
        return web.Response()

    async with receiving() as shop, working(shop.endpoint(in_flight=1)) as desk:
        shop.answers = [slow]
        for refund_id in ("r1", "r2"):
            settle(desk, refund_id)
        await desk.sweep()
        await arrived.wait()
        closing = asyncio.create_task(desk.sender.close())
        await asyncio.sleep(0)
        freed.set()
        await closing
        assert len(shop.bodies) == 1
        assert desk.sender.accept("shop", ["r2"]) == 0
        assert desk.sender.accept("shop", ["r3"]) == 0
        assert desk.world.score("callbacks:shop", "r1") is None
        assert desk.world.score("callbacks:shop", "r2") is not None


async def test_end_drops_a_request_that_is_late_and_it_is_due_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.callbacks.delivery.END_SECONDS", 0)
    freed = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await freed.wait()
        return web.Response()

    async with receiving() as shop, working(shop.endpoint(timeout_seconds=30)) as desk:
        shop.answers = [slow]
        settle(desk)
        await desk.sweep()
        await shop.until(1)
        async with asyncio.timeout(20):
            await desk.sender.close()
        freed.set()
        assert desk.log() == []
        assert desk.world.score("callbacks:shop", ID) == desk.world.now + 30 * SECOND + SPARE


async def test_end_leaves_nothing_that_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.callbacks.delivery.END_SECONDS", 0)
    waits = asyncio.Event()

    class Never(Pace):
        async def turn(self) -> None:
            waits.set()
            await asyncio.Event().wait()

    pace = Never(lambda: False)
    async with receiving() as shop, working(shop.endpoint(), pace=pace) as desk:
        desk.sender.accept("shop", [ID])
        await waits.wait()
        await desk.sender.close()
        # There is nothing to wait for: it returns without a turn of the loop.
        with pytest.raises(StopIteration):
            desk.sender.idle().send(None)


async def test_end_closes_the_connections() -> None:
    async with test_posting.receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        await desk.deliver()
        assert shop.connections == 1
        async with asyncio.timeout(test_posting.SOON):
            await desk.sender.close()
            await shop.ended.acquire()


async def test_record_that_cannot_be_read_alarms_and_stays_due() -> None:
    async with receiving() as shop, working(shop.endpoint()) as desk:
        settle(desk)
        desk.world.redis.hset(f"refunds:refund:{ID}", "stage", "nonsense")
        with structlog.testing.capture_logs() as logs:
            await desk.deliver()
        assert [entry["event"] for entry in logs] == ["callback_not_readable"]
        assert shop.bodies == []
        assert desk.world.score("callbacks:shop", ID) is not None


def test_limits_of_a_sender_are_those_that_are_documented() -> None:
    assert (TAKEN_PER_SLOT, MOST_TAKEN, MOST_TAKEN_BUSY, MOST_HELD) == (60, 500, 20, 10_000)
    assert (SPARE, PER_MESSAGE, ROUNDS, END_SECONDS) == (15 * SECOND, 50, 20, 5)
