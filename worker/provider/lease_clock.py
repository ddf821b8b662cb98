"""The clock by which a worker knows that a lease is over."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def since_boot() -> float:
    """Return seconds of a clock that runs on while the machine is suspended.

    `time.monotonic` stands still meanwhile on Linux, and would show a lease that has ended as open.
    How old a read is must go by that one: an answer may have come before the machine was suspended.
    """
    return time.clock_gettime(_CLOCK)
