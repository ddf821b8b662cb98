"""The commands that read the records' time, and that wait for the disk."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from worker.model.times import from_ms
from worker.store import scripts
from worker.store.scripts import Command

MOST_BACK: Final = timedelta(seconds=1)
"""How far the records' time may go back from one script to the next.

The latest time is stored once a second.
"""


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
