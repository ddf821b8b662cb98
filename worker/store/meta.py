"""The commands that pin the provider, set flags, mark other hashes once, and note workers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from worker.store import scripts
from worker.store.records import SCHEMA_VERSION
from worker.store.scripts import Argument, Command

SILENCE: Final = timedelta(days=1)
"""How long a worker that sends no heartbeat is remembered."""


def pin(host: str, mode: str) -> Command[tuple[str, str, str]]:
    """Pin these records to the provider's host and mode on first use; return the pinned values."""
    return Command(
        script=scripts.PIN,
        arguments=[host, mode, SCHEMA_VERSION],
        read=lambda reply: (str(reply[0]), str(reply[1]), str(reply[2])),
    )


def flag(name: str, *, once: bool, by: str = "") -> Command[bool]:
    """Set a flag in `meta`, even if memory is full.

    With `once` an existing flag is kept and False is returned.
    """
    return Command(
        script=scripts.FLAG, arguments=[name, "1" if once else "", by], read=bool, durable=False
    )


def once(key: str, fields: Mapping[str, str]) -> Command[bool]:
    """Write fields of a hash, even if memory is full, unless it has the first of them.

    Return whether they were written.
    """
    arguments: list[Argument] = [key, *(part for pair in fields.items() for part in pair)]
    return Command(script=scripts.ONCE, arguments=arguments, read=bool, durable=False)


def beat(worker: str) -> Command[int]:
    """Note that a worker runs, even if memory is full; return the records' time in epoch ms."""
    arguments: list[Argument] = [worker, SILENCE // timedelta(milliseconds=1)]
    return Command(script=scripts.BEAT, arguments=arguments, read=int, durable=False)
