"""Concurrency limit of this process: slots for calls in flight, shared by two lanes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker.model.refund import Lane


class Slots:
    """A limit of `total` calls in flight, work-conserving between the lanes.

    A free slot goes to any waiting refund. If both lanes wait, bulk gets the slot only while it
    holds less than its share and single refunds hold theirs. So a single refund, for which a person
    waits, is not queued behind a file.
    """

    def __init__(self, total: int, bulk_share: float) -> None:
        self.total = total
        self.bulk_most = max(1, min(total, round(total * bulk_share)))
        self.held = dict.fromkeys(Lane, 0)
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in Lane}

    @asynccontextmanager
    async def hold(self, lane: Lane) -> AsyncIterator[None]:
        """Wait for a slot, hold it, and pass it on at the end."""
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
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.held[lane] -= 1
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        while sum(self.held.values()) < self.total:
            lane = self._next_lane()
            if lane is None:
                return
            waiter = self._waiting[lane].popleft()
            if not waiter.done():
                self.held[lane] += 1
                waiter.set_result(None)

    def _next_lane(self) -> Lane | None:
        waiting = [lane for lane in Lane if self._waiting[lane]]
        if len(waiting) < len(Lane):
            return waiting[0] if waiting else None
        single_share = self.total - self.bulk_most
        if self.held[Lane.BULK] < self.bulk_most and self.held[Lane.SINGLE] >= single_share:
            return Lane.BULK
        return Lane.SINGLE
