"""Waits for moves: woken at once, bounded, and answered at the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.support.api_door import a_door
from worker.errors import StoreUnavailable
from worker.http.waiters import MOST_WAITING, POLL_SECONDS, POSITION_SECONDS, Waiters

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.api_door import Door


@dataclass
class Feed:
    """Moves that a test makes, and how they were read.

    No position is said before `hold`, if there is one.
    """

    moves: asyncio.Queue[tuple[str, str, str]] = field(default_factory=asyncio.Queue)
    begun: int = 0
    reads: int = 0
    position: str = ""
    is_read: bool = False
    error: Exception | None = None
    hold: asyncio.Event | None = None

    async def latest(self) -> str:
        self.begun += 1
        if self.error is not None:
            raise self.error
        if self.hold is not None:
            await self.hold.wait()
        return "1-0"

    async def follow(self, position: str) -> list[tuple[str, str, str]]:
        self.reads += 1
        self.position = position
        if self.error is not None:
            raise self.error
        self.is_read = True
        try:
            return [await asyncio.wait_for(self.moves.get(), 0.05)]
        except TimeoutError:
            return []
        finally:
            self.is_read = False


def the_waiters(
    feed: Feed, poll: float = 30, most: int = 2000, *, position_seconds: float = 30
) -> Waiters:
    return Waiters(
        feed.latest, feed.follow, poll_seconds=poll, position_seconds=position_seconds, most=most
    )


@dataclass
class Refund:
    """What is waited for.

    It counts a check as it answers: the wait that asked goes on before any other task runs.
    """

    over: bool = False
    checked: int = 0

    async def is_over(self) -> bool:
        await asyncio.sleep(0)
        self.checked += 1
        return self.over


async def reached(is_so: Callable[[], object]) -> None:
    """Return once something is so."""
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - the tests share no event with the waits
            await asyncio.sleep(0.001)


async def all_have_run() -> None:
    """Let every task run that can run now."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_limits_of_waits_are_those_of_the_design() -> None:
    assert (MOST_WAITING, POLL_SECONDS, POSITION_SECONDS) == (2000, 5, 1)


@pytest.mark.parametrize("stage", ["settled", "review"])
async def test_a_move_to_an_end_wakes_its_waiters_and_no_others(stage: str) -> None:
    feed, one, other = Feed(), Refund(), Refund()
    waiters = the_waiters(feed)
    waits = [
        asyncio.create_task(waiters.until(one.is_over, refund_id="one", seconds=10)),
        asyncio.create_task(waiters.until(other.is_over, refund_id="other", seconds=10)),
    ]
    await reached(lambda: one.checked and other.checked)  # both wait for a move then
    await feed.moves.put(("2-0", "one", "sending"))
    one.over = True
    await feed.moves.put(("3-0", "one", stage))
    await waits[0]
    assert (one.checked, other.checked) == (2, 1)
    waiters.end()
    await waits[1]
    await waiters.close()
    assert other.checked == 2
    assert waiters.count == 0


async def test_another_move_wakes_the_waits_for_any_refund_only_and_once() -> None:
    feed, one, every = Feed(), Refund(), Refund()
    waiters = the_waiters(feed)
    waits = [
        asyncio.create_task(waiters.until(one.is_over, refund_id="one", seconds=10)),
        asyncio.create_task(waiters.until(every.is_over, refund_id=None, seconds=10)),
    ]
    await reached(lambda: one.checked and every.checked)  # both wait for a move then
    await feed.moves.put(("2-0", "one", "sending"))
    await reached(lambda: every.checked == 2)  # it is woken then
    await all_have_run()
    assert (one.checked, every.checked) == (1, 2)
    waiters.end()
    await asyncio.gather(*waits)
    await waiters.close()


async def test_at_the_close_every_wait_and_the_reader_end_and_nothing_is_kept() -> None:
    feed, refund = Feed(), Refund()
    waiters = the_waiters(feed)
    waits = [
        asyncio.create_task(waiters.until(refund.is_over, refund_id=refund_id, seconds=10))
        for refund_id in ("one", "one", "other", None)
    ]
    async with asyncio.timeout(5):
        await reached(lambda: refund.checked == 4)  # all wait for a move then
        await waiters.close()
        assert not feed.is_read
        await asyncio.gather(*waits)
    assert refund.checked == 8
    assert (waiters.count, waiters._by_id, waiters._for_any) == (0, {}, set())


async def test_waits_share_a_reader_that_has_its_position_first_and_ends_after_them() -> None:
    feed, refund = Feed(), Refund()
    waiters = the_waiters(feed)
    for begun in (1, 2):
        feed.hold = asyncio.Event()
        refund.over, refund.checked = False, 0
        waits = [
            asyncio.create_task(waiters.until(refund.is_over, refund_id="one", seconds=10))
            for _ in range(2)
        ]
        await all_have_run()
        assert (feed.begun, refund.checked) == (begun, 0)
        async with asyncio.timeout(5):
            feed.hold.set()
            await reached(lambda: refund.checked == 2)  # both wait for a move then
            refund.over = True
            await feed.moves.put(("2-0", "one", "settled"))
            await asyncio.gather(*waits)
            await reached(lambda: waiters._reader is None)  # it ends by itself
        assert (feed.position, refund.checked) == ("2-0", 4)


@pytest.mark.parametrize(("position_seconds", "seconds"), [(0.01, 10), (10, 0.01)])
async def test_a_position_is_waited_for_shortly_and_no_longer_than_the_wait(
    position_seconds: float, seconds: float
) -> None:
    feed, refund = Feed(hold=asyncio.Event()), Refund()
    waiters = the_waiters(feed, position_seconds=position_seconds)
    wait = asyncio.create_task(waiters.until(refund.is_over, refund_id="one", seconds=seconds))
    async with asyncio.timeout(5):
        await reached(lambda: refund.checked)  # it no longer waits for the position then
        waiters.end()
        await wait
        assert feed.hold is not None
        feed.hold.set()
        await waiters.close()


async def test_a_reader_that_fails_holds_up_no_wait() -> None:
    feed, refund = Feed(error=ValueError("unforeseen")), Refund(over=True)
    waiters = the_waiters(feed)
    async with asyncio.timeout(5):
        await waiters.until(refund.is_over, refund_id="one", seconds=10)
    assert refund.checked == 1


async def test_a_wait_of_no_time_reads_no_moves() -> None:
    feed, refund = Feed(), Refund()
    waiters = the_waiters(feed)
    await waiters.until(refund.is_over, refund_id="one", seconds=0)
    await all_have_run()
    assert (refund.checked, feed.begun) == (1, 0)


async def test_a_poll_makes_up_for_a_lost_move() -> None:
    feed, refund = Feed(), Refund()
    waiters = the_waiters(feed, poll=0.05)
    wait = asyncio.create_task(waiters.until(refund.is_over, refund_id="one", seconds=10))
    await reached(lambda: refund.checked >= 3)  # its polls are counted
    refund.over = True
    await wait
    await waiters.close()


async def test_redis_away_only_slows_a_wait() -> None:
    feed, refund = Feed(error=StoreUnavailable("away")), Refund()
    waiters = the_waiters(feed, poll=0.05)
    await waiters.until(refund.is_over, refund_id="one", seconds=0.2)
    assert refund.checked >= 1
    await waiters.close()


async def test_while_redis_is_away_moves_are_asked_for_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed, pauses = Feed(error=StoreUnavailable("away")), []
    waiters = the_waiters(feed)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            waiters.end()

    async def is_over() -> bool:
        return False

    monkeypatch.setattr("worker.http.waiters.asyncio.sleep", sleep)
    await waiters.until(is_over, refund_id="one", seconds=10)
    await waiters.close()
    assert (pauses, feed.begun) == ([1, 1, 1], 3)


async def test_too_many_and_late_ones_are_answered_at_once() -> None:
    feed, first, second, late = Feed(), Refund(), Refund(), Refund()
    waiters = the_waiters(feed, most=1)
    wait = asyncio.create_task(waiters.until(first.is_over, refund_id="one", seconds=10))
    await reached(lambda: first.checked)  # it waits for a move then
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
