"""When a call may leave: the rate that all workers share."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final

from worker.model.refund import Lane
from worker.store import scripts
from worker.store.async_store import AsyncStore

AHEAD: Final = timedelta(milliseconds=100)
"""How far ahead a worker takes the moments at which its calls leave: a trip brings several, a newcomer waits little."""
LATE: Final = 0.1
"""Seconds after which a moment that found nobody, or a loop that was busy, is lost: more would be a burst."""
USED: Final = 0.975
"""The part of the rate that is scheduled: calls on their way overtake one another, and a provider counts arrivals.

At 0.985 a provider that allows no burst still refused one call in thousands, which costs more than a hundredth.
"""


class RateGate:
    """Moments for calls to the provider, spread evenly over all workers by a schedule in Redis.

    They are taken a little ahead for several waiters in one trip, and each waiter is let through at its moment. A 429
    seen by any worker closes the gate for all: as long as it says, else ever longer up to two minutes. Then a rate that
    is set is gone on with more slowly, and recovers by itself. With none set a permit is free and there is nothing to
    slow: all go on at full speed, into the next 429 where the provider enforces a rate.
    """

    def __init__(
        self, store: AsyncStore, *, rate: float, bulk_share: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self._store = store
        self._bulk_share = bulk_share
        self._clock = clock
        self._blocked_until = 0.0
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}
        self._taken = dict.fromkeys(Lane, 0)
        """Moments that are ours and have not come yet."""
        self._unused: deque[float] = deque()
        """Moments that came when nobody waited."""
        self._pump: asyncio.Task[None] | None = None
        self._newcomer = asyncio.Event()
        self._stopped = False
        self.waited_seconds = 0.0

    async def acquire(self, lane: Lane) -> None:
        """Wait until one call may leave; raises `TimeoutError` once nobody is to wait any more."""
        if self._is_open() and (self.rate <= 0 or self._use_unused()):
            return
        await self._wait(lane, self._waiting[lane].append)

    async def go_on(self, lane: Lane) -> None:
        """Wait until a handling that has begun may make one more call: before all that have not, which is soon.

        What it has read grows old meanwhile, and behind a queue at a slow rate no verdict would be fresh enough to act
        upon. Nobody is left behind for it: what has begun needs few more calls, and nothing begins before them.
        """
        if self._is_open() and (self.rate <= 0 or self._use_unused()):
            return
        await self._wait(lane, self._waiting[lane].appendleft)

    async def _wait(self, lane: Lane, join: Callable[[asyncio.Future[None]], None]) -> None:
        if self._stopped:
            raise TimeoutError
        started = self._clock()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting[lane]:
            self._newcomer.set()
        join(turn)
        if self._pump is None:
            self._pump = asyncio.create_task(self._hand_out())
        await turn
        self.waited_seconds += self._clock() - started

    def stop(self) -> None:
        """Let nobody wait any more, now or later; permits at hand are still given."""
        self._stopped = True
        for queue in self._waiting.values():
            for turn in queue:
                if not turn.done():
                    turn.set_exception(TimeoutError())
        self._newcomer.set()

    async def try_now(self, lane: Lane) -> bool:
        """Take a permit if there is one at once: nobody waits for the rate under a claim."""
        if not self._is_open():
            return False
        if self.rate <= 0 or self._use_unused():
            return True
        # A moment just ahead will do: taken out of the schedule, it is missing there.
        return bool((await self._take({lane: 1})).moments)

    async def block(self, wait: timedelta) -> None:
        """Close the gate for all workers, as a 429 asks."""
        left = await self._store.run(scripts.block_gate(wait))
        self.learn(left)

    def learn(self, left: timedelta) -> None:
        """Note that the gate is closed for so long: said by the gate itself or by a refused claim."""
        self._blocked_until = max(self._blocked_until, self._clock() + left.total_seconds())

    def _is_open(self) -> bool:
        return self._clock() >= self._blocked_until

    def _use_unused(self) -> bool:
        while self._unused:
            if self._clock() - self._unused.popleft() <= LATE:
                return True
        return False

    async def _take(self, wanted: Mapping[Lane, int]) -> scripts.Permits:
        return await self._store.run(
            scripts.permits(wanted, rate=self.rate * USED, ahead=AHEAD, bulk_share=self._bulk_share)
        )

    async def _hand_out(self) -> None:
        try:
            while any(self._waiting.values()):
                self._newcomer.clear()
                pause = await self._ask()
                if any(self._waiting.values()):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._newcomer.wait()
        except Exception as error:  # noqa: BLE001 - it belongs to the waiters, not to this task
            for queue in self._waiting.values():
                while queue:
                    turn = queue.popleft()
                    if not turn.done():
                        turn.set_exception(error)
        finally:
            self._pump = None

    async def _ask(self) -> float:
        """Take moments for those who wait and have none; return the seconds until there is more to be had."""
        for queue in self._waiting.values():
            while queue and queue[0].done():
                queue.popleft()
        wanted = {lane: max(0, len(queue) - self._taken[lane]) for lane, queue in self._waiting.items()}
        # Moments taken for one lane that has nobody left serve the other.
        spare = sum(max(0, self._taken[lane] - len(queue)) for lane, queue in self._waiting.items())
        if sum(wanted.values()) <= spare:
            return AHEAD.total_seconds()
        permits = await self._take(wanted)
        now, loop = self._clock(), asyncio.get_running_loop()
        for lane, away in permits.moments:
            self._taken[lane] += 1
            seconds = away.total_seconds()
            if seconds <= 0:
                self._come(lane, now)
            else:
                loop.call_later(seconds, self._come, lane, now + seconds)
        return permits.wait.total_seconds() or AHEAD.total_seconds()

    def _come(self, lane: Lane, moment: float) -> None:
        """Let one through, of the lane that took the moment if it still has one."""
        self._taken[lane] -= 1
        if self.rate > 0 and (not self._is_open() or self._clock() - moment > LATE):
            # Whoever waits asks anew: after a 429 the schedule begins where the gate opens.
            self._newcomer.set()
            return
        for queue in (self._waiting[lane], *self._waiting.values()):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._unused.append(moment)


class Turns:
    """The permits of one handling: the one it waited for before it began, and one of its own for each further call.

    `another` waits for one; nobody holds a claim meanwhile. The harmless GET that asks whether the key is accepted or
    the provider is back takes none: a worker makes few of them, most while nothing else leaves.
    """

    __slots__ = ("_another", "_at_hand")

    def __init__(self, another: Callable[[], Awaitable[None]]) -> None:
        self._another = another
        self._at_hand = True

    async def ready(self) -> None:
        """Have a permit at hand, for the call that is made where a claim is granted."""
        if not self._at_hand:
            await self._another()
            self._at_hand = True

    async def take(self) -> None:
        """Wait until one call may leave."""
        await self.ready()
        self._at_hand = False
