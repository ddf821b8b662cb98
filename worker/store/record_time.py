"""The commands that read the records' time, and that wait for the disk."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from worker.model.times import from_ms
from worker.store import scripts
from worker.store.scripts import Command

MOST_BACK: Final = timedelta(seconds=1)
"""How far the records' time may go back from one script to the next.

The latest time is stored once a second.
"""


DRIFT: Final = 1e-4
"""How much faster than the records' time a process's own clock may run in an outage: 9 s a day."""

_ms: Final = timedelta(milliseconds=1)


class LeastTime:
    """How late it is at least, by the records' time that a process saw and its own clock since.

    The records keep the latest time that a script saw. While their server is down no script runs,
    and a server that is promoted then may have a clock that is behind: the time of the outage would
    be forgotten, and a window that ends in it would stay open. So each worker tells the scripts
    what it knows. `monotonic` is in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._seen: tuple[float, int] | None = None
        """A time of this process's clock, and the least time in epoch ms that it was then."""

    def saw(self, now: int) -> None:
        """Note the records' time, in epoch ms.

        If this process's clock is ahead of it by a second or less, it has only run faster. It must
        not drive the records' time, which would then run as fast as the fastest clock of all
        workers.
        """
        known = self()
        if known is None or now >= known - MOST_BACK // _ms:
            self._seen = self._monotonic(), now

    def __call__(self) -> int | None:
        """Return the least time in epoch ms, None if none was seen."""
        if self._seen is None:
            return None
        at, least = self._seen
        passed = (self._monotonic() - at) * 1000
        return int(least + passed * (1 - DRIFT))


def clock() -> Command[int]:
    """Read the records' time in epoch ms."""
    return Command(script=scripts.CLOCK, arguments=[], read=int, durable=False)


def confirm() -> Command[datetime]:
    """Wait for the disk, and return a time of the records.

    Everything written up to that time is on disk.
    """
    return Command(
        script=scripts.CONFIRM, arguments=[], read=lambda reply: from_ms(int(reply)) - MOST_BACK
    )
