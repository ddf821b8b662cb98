"""Who may start a call now: slots of this process shared by two lanes, and the rate that all workers share."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from worker import calls
from worker.model import Lane
from worker.store import AsyncStore


class Slots:
    """Calls in flight, at most `total`; work-conserving between the lanes.

    A free slot goes to whoever waits. Where both lanes wait, bulk gets it only while it holds less than its share and
    single refunds hold theirs, so that a refund that a person waits for is not behind a file.
    """

    def __init__(self, total: int, bulk_share: float) -> None:
        self.total = total
        self.bulk_most = max(1, min(total, round(total * bulk_share)))
        self.held = dict.fromkeys(Lane, 0)
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}

    @asynccontextmanager
    async def hold(self, lane: Lane) -> AsyncIterator[None]:
        """Wait for a slot, hold it, and give it to the next."""
        if sum(self.held.values()) < self.total and not any(self._waiting.values()):
            self.held[lane] += 1
        else:
            await self._wait(lane)
        try:
            yield
        finally:
            self.held[lane] -= 1
            self._hand_on()

    async def _wait(self, lane: Lane) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.held[lane] -= 1
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        while sum(self.held.values()) < self.total:
            lane = self._next_lane()
            if lane is None:
                return
            turn = self._waiting[lane].popleft()
            if not turn.done():
                self.held[lane] += 1
                turn.set_result(None)

    def _next_lane(self) -> Lane | None:
        waiting = [lane for lane in Lane if self._waiting[lane]]
        if len(waiting) < len(Lane):
            return waiting[0] if waiting else None
        single_share = self.total - self.bulk_most
        if self.held[Lane.BULK] < self.bulk_most and self.held[Lane.SINGLE] >= single_share:
            return Lane.BULK
        return Lane.SINGLE


class RateGate:
    """Permits for calls to the provider, taken from Redis for several waiters in one trip.

    With no rate set a permit is free; a 429 seen by any worker closes the gate for all until the told time.
    """

    def __init__(
        self, store: AsyncStore, *, rate: float, bulk_share: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self.burst = max(1.0, rate / 10)
        self._store = store
        self._bulk_share = bulk_share
        self._clock = clock
        self._blocked_until = 0.0
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}
        self._pump: asyncio.Task[None] | None = None
        self.waited_seconds = 0.0

    async def acquire(self, lane: Lane) -> None:
        """Wait until one call may leave."""
        if self.rate <= 0 and self._clock() >= self._blocked_until:
            return
        started = self._clock()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(turn)
        if self._pump is None:
            self._pump = asyncio.create_task(self._hand_out())
        await turn
        self.waited_seconds += self._clock() - started

    async def try_now(self, lane: Lane) -> bool:
        """Take a permit if there is one at once: nobody waits for the rate under a claim."""
        if self._clock() < self._blocked_until:
            return False
        if self.rate <= 0:
            return True
        return (await self._take(1, lane)).granted > 0

    async def block(self, wait: timedelta) -> None:
        """Close the gate for all workers, as a 429 asks."""
        left = await self._store.run(calls.block_gate(wait))
        self.learn(left)

    def learn(self, left: timedelta) -> None:
        """Note that the gate is closed for so long: said by the gate itself or by a refused claim."""
        self._blocked_until = max(self._blocked_until, self._clock() + left.total_seconds())

    async def _take(self, wanted: int, lane: Lane) -> calls.Permits:
        return await self._store.run(
            calls.permits(wanted, rate=self.rate, burst=self.burst, lane=lane, bulk_share=self._bulk_share)
        )

    async def _hand_out(self) -> None:
        try:
            while any(self._waiting.values()):
                pause = 0.0
                for lane in Lane:
                    pause = max(pause, await self._serve(lane))
                if pause > 0:
                    await asyncio.sleep(pause)
        except Exception as error:  # noqa: BLE001 - it belongs to the waiters, not to this task
            for queue in self._waiting.values():
                while queue:
                    turn = queue.popleft()
                    if not turn.done():
                        turn.set_exception(error)
        finally:
            self._pump = None

    async def _serve(self, lane: Lane) -> float:
        queue = self._waiting[lane]
        while queue and queue[0].done():
            queue.popleft()
        if not queue:
            return 0.0
        permits = await self._take(len(queue), lane)
        for _ in range(permits.granted):
            while queue and queue[0].done():
                queue.popleft()
            if queue:
                queue.popleft().set_result(None)
        return permits.wait.total_seconds() if queue else 0.0
