"""Waits for moves: woken at once, bounded, and answered at the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.api_door import a_door
from worker.errors import StoreUnavailable
from worker.http.waiters import Waiters

if TYPE_CHECKING:
    from tests.support.api_door import Door


@dataclass
class Feed:
    """Moves that a test makes, and how often they were read."""

    moves: asyncio.Queue[tuple[str, str, str]] = field(default_factory=asyncio.Queue)
    reads: int = 0
    error: Exception | None = None

    async def latest(self) -> str:
        if self.error is not None:
            raise self.error
        return "1-0"

    async def follow(self, _position: str) -> list[tuple[str, str, str]]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        try:
            return [await asyncio.wait_for(self.moves.get(), 0.05)]
        except TimeoutError:
            return []


def the_waiters(feed: Feed, poll: float = 30, most: int = 2000) -> Waiters:
    return Waiters(feed.latest, feed.follow, poll_seconds=poll, most=most)


@dataclass
class Refund:
    """What is waited for."""

    over: bool = False
    checked: int = 0

    async def is_over(self) -> bool:
        self.checked += 1
        return self.over


async def test_a_move_to_an_end_wakes_its_waiters_and_no_others() -> None:
    feed, one, other = Feed(), Refund(), Refund()
    waiters = the_waiters(feed)
    waits = [
        asyncio.create_task(waiters.until(one.is_over, refund_id="one", seconds=10)),
        asyncio.create_task(waiters.until(other.is_over, refund_id="other", seconds=10)),
    ]
    while not (one.checked and other.checked):  # noqa: ASYNC110 - both have registered then
        await asyncio.sleep(0.001)
    await feed.moves.put(("2-0", "one", "sending"))
    one.over = True
    await feed.moves.put(("3-0", "one", "settled"))
    await waits[0]
    assert (one.checked, other.checked) == (2, 1)
    waiters.end()
    await waits[1]
    await waiters.close()
    assert other.checked == 2
    assert waiters.count == 0


async def test_a_poll_makes_up_for_a_lost_move() -> None:
    feed, refund = Feed(), Refund()
    waiters = the_waiters(feed, poll=0.05)
    wait = asyncio.create_task(waiters.until(refund.is_over, refund_id="one", seconds=10))
    while refund.checked < 3:  # noqa: ASYNC110 - its polls are counted
        await asyncio.sleep(0.001)
    refund.over = True
    await wait
    await waiters.close()


async def test_redis_away_only_slows_a_wait() -> None:
    feed, refund = Feed(error=StoreUnavailable("away")), Refund()
    waiters = the_waiters(feed, poll=0.05)
    await waiters.until(refund.is_over, refund_id="one", seconds=0.2)
    assert refund.checked >= 1
    await waiters.close()


async def test_too_many_and_late_ones_are_answered_at_once() -> None:
    feed, first, second, late = Feed(), Refund(), Refund(), Refund()
    waiters = the_waiters(feed, most=1)
    wait = asyncio.create_task(waiters.until(first.is_over, refund_id="one", seconds=10))
    while not first.checked:  # noqa: ASYNC110 - it has registered then
        await asyncio.sleep(0.001)
    async with asyncio.timeout(1):
        await waiters.until(second.is_over, refund_id="one", seconds=10)
        waiters.end()
        await wait
        await waiters.until(late.is_over, refund_id="one", seconds=10)
    assert (first.checked, second.checked, late.checked) == (2, 1, 1)
    await waiters.close()


async def test_nothing_is_read_while_no_request_waits() -> None:
    feed, refund = Feed(), Refund()
    waiters = the_waiters(feed)
    await waiters.until(refund.is_over, refund_id="one", seconds=0.05)
    await waiters.close()
    seen = feed.reads
    await asyncio.sleep(0.15)
    assert feed.reads == seen


async def test_a_thousand_waits_are_answered_when_their_refunds_end(redis_url: str) -> None:
    async with a_door(redis_url, http_rate=0) as api:
        await _thousand(api)


async def _thousand(api: Door) -> None:
    ids = [f"order-{number}" for number in range(1000)]
    for refund_id in ids:
        api.records.queued(refund_id, payment_intent=f"pi-{refund_id}")

    async def status(refund_id: str) -> str:
        return str((await api.get(f"/v1/refunds/{refund_id}?wait=60")).json["status"])

    waits = [asyncio.create_task(status(refund_id)) for refund_id in ids]
    await api.waiting(1000)

    def cancel() -> None:
        for refund_id in ids:
            api.refunds.cancel(refund_id)

    await asyncio.to_thread(cancel)
    assert set(await asyncio.gather(*waits)) == {"canceled"}
