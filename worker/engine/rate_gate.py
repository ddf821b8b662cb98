"""The rate limiter for calls to the provider, shared by all workers."""

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
"""How far in advance a worker reserves send times.

One round trip reserves several; a new caller waits at most this long behind them.
"""
LATE: Final = 0.1
"""Reserved send times older than this, in seconds, are discarded; using them would cause a burst."""
USED: Final = 0.975
"""The part of the rate that is scheduled, because calls overtake one another and a provider counts arrivals.

At 0.985 a provider that allows no burst still refused one call in thousands, which costs more than a hundredth.
"""


class RateGate:
    """Rate limiter: send times for calls to the provider, spread evenly over all workers by a schedule in Redis.

    One round trip reserves send times for several waiters a little in advance. Each waiter continues at its send time.
    A 429 seen by any worker closes the gate for all workers: as long as the answer says, else ever longer up to two
    minutes. After that, a configured rate is lower for a while and recovers by itself. If no rate is configured,
    permits are free and all workers continue at full speed, into the next 429 if the provider enforces a rate.
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
        """Number of reserved send times that have not come yet, by lane."""
        self._unused: deque[float] = deque()
        """Send times that came while no caller waited."""
        self._pump: asyncio.Task[None] | None = None
        self._newcomer = asyncio.Event()
        self._stopped = False
        self.waited_seconds = 0.0

    async def acquire(self, lane: Lane) -> None:
        """Wait until one call may be sent; raises `TimeoutError` if the gate is stopped."""
        if self._is_open() and (self.rate <= 0 or self._use_unused()):
            return
        await self._wait(lane, self._waiting[lane].append)

    async def go_on(self, lane: Lane) -> None:
        """Wait for a permit with priority over refunds that have not started; this does not take long."""
        # The data that a started refund has read goes stale. Behind a queue at a slow rate, no verdict would be fresh
        # enough to act on. No other refund starves, because a started refund needs few more calls.
        if self._is_open() and (self.rate <= 0 or self._use_unused()):
            return
        await self._wait(lane, self._waiting[lane].appendleft)

    async def _wait(self, lane: Lane, join: Callable[[asyncio.Future[None]], None]) -> None:
        if self._stopped:
            raise TimeoutError
        started = self._clock()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting[lane]:
            self._newcomer.set()
        join(waiter)
        if self._pump is None:
            self._pump = asyncio.create_task(self._hand_out())
        await waiter
        self.waited_seconds += self._clock() - started

    def stop(self) -> None:
        """End all present and future waits; permits at hand are still given."""
        self._stopped = True
        for queue in self._waiting.values():
            for waiter in queue:
                if not waiter.done():
                    waiter.set_exception(TimeoutError())
        self._newcomer.set()

    async def try_now(self, lane: Lane) -> bool:
        """Take a permit if one is available at once, because a claim must not be held while waiting for the rate."""
        if not self._is_open():
            return False
        if self.rate <= 0 or self._use_unused():
            return True
        # A send time in the near future is good enough, because no other call can use it after it is reserved.
        return bool((await self._take({lane: 1})).moments)

    async def block(self, wait: timedelta) -> None:
        """Close the gate for all workers, as a 429 demands."""
        left = await self._store.run(scripts.block_gate(wait))
        self.learn(left)

    def learn(self, left: timedelta) -> None:
        """Record how long the gate stays closed, as reported by the gate itself or by a refused claim."""
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
                    waiter = queue.popleft()
                    if not waiter.done():
                        waiter.set_exception(error)
        finally:
            self._pump = None

    async def _ask(self) -> float:
        """Reserve send times for waiters without one; return the seconds until it is useful to ask again."""
        for queue in self._waiting.values():
            while queue and queue[0].done():
                queue.popleft()
        wanted = {lane: max(0, len(queue) - self._taken[lane]) for lane, queue in self._waiting.items()}
        # Send times reserved for a lane without waiters serve the other lane.
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
        """Give a send time to one waiter, preferably of the lane that reserved it."""
        self._taken[lane] -= 1
        if self.rate > 0 and (not self._is_open() or self._clock() - moment > LATE):
            # Waiters reserve again, because after a 429 the schedule begins when the gate opens.
            self._newcomer.set()
            return
        for queue in (self._waiting[lane], *self._waiting.values()):
            while queue:
                waiter = queue.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return
        self._unused.append(moment)


class CallPermits:
    """The permits for handling one refund: the first is taken before the start, and each further call takes its own.

    `another` waits for a permit; no claim is held meanwhile. The harmless GET that checks the key or probes for an
    outage's end takes none, because a worker makes few of them, most while nothing else is sent.
    """

    __slots__ = ("_another", "_at_hand")

    def __init__(self, another: Callable[[], Awaitable[None]]) -> None:
        self._another = another
        self._at_hand = True

    async def ready(self) -> None:
        """Ensure that a permit is at hand, for the call that follows if a claim is granted."""
        if not self._at_hand:
            await self._another()
            self._at_hand = True

    async def take(self) -> None:
        """Wait until one call may be sent."""
        await self.ready()
        self._at_hand = False
