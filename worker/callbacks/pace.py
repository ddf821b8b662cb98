"""Slows callbacks down while refunds need the processor, so that no refund waits for a callback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

BUSY_SHARE: Final = 0.4
"""The share of one processor from which a worker with refunds in flight counts as busy."""
BUSY_RATE: Final = 20.0
"""Callbacks per second that a busy worker sends: each costs it about a millisecond."""
LEAST_SECONDS: Final = 0.5
"""The shortest time over which the share is measured."""


class Pace:
    """The pace of one worker process. For one event loop.

    `working` says whether refunds are in flight.
    """

    def __init__(
        self,
        working: Callable[[], bool],
        *,
        used: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.busy = False
        self._working, self._used, self._clock = working, used, clock
        self._measured = (clock(), used())
        self._next = 0.0

    def measure(self) -> None:
        """Find out whether the worker is busy. Call it about once a second."""
        now, used = self._clock(), self._used()
        seconds = now - self._measured[0]
        if seconds < LEAST_SECONDS:
            return
        share = (used - self._measured[1]) / seconds
        self._measured = (now, used)
        # Callbacks alone may use the whole processor: nothing waits for it then.
        self.busy = self._working() and share >= BUSY_SHARE

    async def turn(self) -> None:
        """Return when the next callback may begin: at once unless the worker is busy."""
        if not self.busy:
            return
        now = self._clock()
        self._next = max(now, self._next) + 1 / BUSY_RATE
        await asyncio.sleep(self._next - now)
