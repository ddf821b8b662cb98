"""A folder for the files of servers that a test starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of a name of its own is made there


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder that is removed at the end, in memory if there is such a place.

    The tests of these servers do not pull the plug, and a wait for the disk is half of a call's
    time.
    """
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)
