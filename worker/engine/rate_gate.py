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
from worker.store import gate
from worker.store.async_store import AsyncStore

AHEAD: Final = timedelta(milliseconds=100)
"""How far in advance a worker reserves send times.

One round trip reserves several; a new caller waits at most this long behind them.
"""
LATE: Final = 0.1
"""Reserved send times older than this, in seconds, are discarded; using them would cause a burst.
"""
USED: Final = 0.975
"""The part of the rate that is scheduled: calls overtake one another, a provider counts arrivals.

At 0.985 a provider that allows no burst still refused one call in thousands, which costs more than
a hundredth.
"""


class WaitQueue:
    """Callers that wait for a permit, by lane, in the order in which they are served."""

    def __init__(self) -> None:
        self._waiters: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}

    def __bool__(self) -> bool:
        return any(self._waiters.values())

    def lengths(self) -> dict[Lane, int]:
        """Return how many callers wait, by lane; those at the front that gave up are dropped."""
        for waiters in self._waiters.values():
            while waiters and waiters[0].done():
                waiters.popleft()
        return {lane: len(waiters) for lane, waiters in self._waiters.items()}

    def join(self, lane: Lane, *, first: bool) -> asyncio.Future[None]:
        """Add a caller at the end of its lane, or `first`; the future ends when it is served."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters[lane]
        (waiters.appendleft if first else waiters.append)(waiter)
        return waiter

    def serve(self, lane: Lane) -> bool:
        """Serve one caller, preferably of this lane; return whether one waited."""
        for waiters in (self._waiters[lane], *self._waiters.values()):
            while waiters:
                waiter = waiters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return True
        return False

    def fail(self, error: Exception) -> None:
        """End every wait with this error."""
        for waiters in self._waiters.values():
            while waiters:
                waiter = waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(error)


class Schedule:
    """The send times that this worker has reserved in Redis, where all workers share one schedule.

    `on_time` is called at each reserved send time, with the lane that it was reserved for.
    """

    def __init__(
        self,
        store: AsyncStore,
        *,
        rate: float,
        bulk_share: float,
        clock: Callable[[], float],
        on_time: Callable[[Lane, float], None],
    ) -> None:
        self._store = store
        self._rate = rate
        self._bulk_share = bulk_share
        self._clock = clock
        self._on_time = on_time
        self._ahead = dict.fromkeys(Lane, 0)
        """Number of reserved send times that have not come yet, by lane."""
        self._unused: deque[float] = deque()
        """Send times that came while no caller waited."""

    async def reserve(self, waiting: Mapping[Lane, int]) -> float:
        """Reserve send times for callers without one.

        Return the seconds until it is useful to reserve again.
        """
        missing = {lane: max(0, count - self._ahead[lane]) for lane, count in waiting.items()}
        # Send times reserved for a lane without waiting callers serve the other lane.
        spare = sum(max(0, self._ahead[lane] - count) for lane, count in waiting.items())
        if sum(missing.values()) <= spare:
            return AHEAD.total_seconds()
        permits = await self.ask(missing)
        now, loop = self._clock(), asyncio.get_running_loop()
        for lane, away in permits.moments:
            self._ahead[lane] += 1
            seconds = away.total_seconds()
            if seconds <= 0:
                self._come(lane, now)
            else:
                loop.call_later(seconds, self._come, lane, now + seconds)
        return permits.wait.total_seconds() or AHEAD.total_seconds()

    async def ask(self, wanted: Mapping[Lane, int]) -> gate.Permits:
        """Reserve up to this many send times, by lane, as `gate.permits` does."""
        return await self._store.run(
            gate.permits(wanted, rate=self._rate * USED, ahead=AHEAD, bulk_share=self._bulk_share)
        )

    def is_late(self, moment: float) -> bool:
        """Return whether a send time is too old to be used."""
        return self._clock() - moment > LATE

    def keep(self, moment: float) -> None:
        """Keep a send time that no caller needed when it came."""
        self._unused.append(moment)

    def use_kept(self) -> bool:
        """Use a send time that was kept; return whether there was one that is not too old."""
        while self._unused:
            if not self.is_late(self._unused.popleft()):
                return True
        return False

    def _come(self, lane: Lane, moment: float) -> None:
        self._ahead[lane] -= 1
        self._on_time(lane, moment)


class RateGate:
    """Rate limiter: send times for calls to the provider, spread evenly over all workers.

    One round trip reserves send times for several waiters a little in advance. Each waiter
    continues at its send time. A 429 seen by any worker closes the gate for all workers: as long as
    the answer says, else ever longer up to two minutes. After that, a configured rate is lower for
    a while and recovers by itself. If no rate is configured, permits are free and all workers
    continue at full speed, into the next 429 if the provider enforces a rate.
    """

    def __init__(
        self,
        store: AsyncStore,
        *,
        rate: float,
        bulk_share: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self._store = store
        self._clock = clock
        self._blocked_until = 0.0
        self._queue = WaitQueue()
        self._schedule = Schedule(
            store, rate=rate, bulk_share=bulk_share, clock=clock, on_time=self._serve
        )
        self._reserving: asyncio.Task[None] | None = None
        self._more_needed = asyncio.Event()
        self._stopped = False
        self.waited_seconds = 0.0

    async def acquire(self, lane: Lane) -> None:
        """Wait until one call may be sent; raises `TimeoutError` if the gate is stopped."""
        await self._wait(lane, first=False)

    async def go_on(self, lane: Lane) -> None:
        """Wait for a permit with priority over refunds that have not started; this is short."""
        # The data that a started refund has read goes stale. Behind a queue at a slow rate, no
        # verdict would be fresh enough to act on. No other refund starves, because a started refund
        # needs few more calls.
        await self._wait(lane, first=True)

    async def _wait(self, lane: Lane, *, first: bool) -> None:
        if self._at_once():
            return
        if self._stopped:
            raise TimeoutError
        started = self._clock()
        if not self._queue.lengths()[lane]:
            self._more_needed.set()
        waiter = self._queue.join(lane, first=first)
        if self._reserving is None:
            self._reserving = asyncio.create_task(self._reserve_for_all())
        await waiter
        self.waited_seconds += self._clock() - started

    def stop(self) -> None:
        """End all present and future waits; permits at hand are still given."""
        self._stopped = True
        self._queue.fail(TimeoutError())
        self._more_needed.set()

    async def try_now(self, lane: Lane) -> bool:
        """Take a permit if one is available at once.

        A claim must not be held while its refund waits for the rate.
        """
        if self._at_once():
            return True
        if not self._is_open():
            return False
        # A send time in the near future is good enough, because no other call can use it after it
        # is reserved.
        return bool((await self._schedule.ask({lane: 1})).moments)

    async def block(self, wait: timedelta) -> None:
        """Close the gate for all workers, as a 429 demands."""
        self.learn(await self._store.run(gate.block_gate(wait)))

    def learn(self, left: timedelta) -> None:
        """Record how long the gate stays closed.

        The gate itself reports it, or a refused claim.
        """
        self._blocked_until = max(self._blocked_until, self._clock() + left.total_seconds())

    def _is_open(self) -> bool:
        return self._clock() >= self._blocked_until

    def _at_once(self) -> bool:
        return self._is_open() and (self.rate <= 0 or self._schedule.use_kept())

    async def _reserve_for_all(self) -> None:
        try:
            while self._queue:
                self._more_needed.clear()
                pause = await self._schedule.reserve(self._queue.lengths())
                if self._queue:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._more_needed.wait()
        except Exception as error:  # noqa: BLE001 - it belongs to the waiters, not to this task
            self._queue.fail(error)
        finally:
            self._reserving = None

    def _serve(self, lane: Lane, moment: float) -> None:
        """Give a send time to one waiting caller, preferably of the lane that reserved it."""
        if self.rate > 0 and (not self._is_open() or self._schedule.is_late(moment)):
            # Callers reserve again, because after a 429 the schedule begins when the gate opens.
            self._more_needed.set()
        elif not self._queue.serve(lane):
            self._schedule.keep(moment)


class CallPermits:
    """The permits for handling one refund.

    The first is taken before the start, and each further call takes its own.

    `another` waits for a permit; no claim is held meanwhile. The harmless GET that checks the key
    or probes for an outage's end takes none, because a worker makes few of them, most while nothing
    else is sent.
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
