"""The machine a figure was taken on: what it is, who runs on which core, what a process used."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

_NAMED: Final = (
    "celery",
    "kombu",
    "redis",
    "hiredis",
    "httpx",
    "httpx-aiohttp",
    "aiohttp",
    "structlog",
)
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PARENT: Final = 1
_USER_TICKS: Final = 11
"""Where the parent's id and utime are in `/proc/<pid>/stat`, behind the command's name.

Stime follows utime.
"""


def described(server_version: str, cores: Sequence[int]) -> str:
    """Return the machine in two lines: processor, cores, system.

    Python and the versions that matter.
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _NAMED)
    return (
        f"{_processor()}, {len(cores)} cores, {platform.system()}"
        f" {platform.release()}\n{platform.python_implementation()} {platform.python_version()},"
        f" server {server_version}, {versions}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Which core each worker has to itself, and which ones everything else shares."""

    workers: tuple[int, ...]
    rest: frozenset[int]
    are_kept: bool = True
    """Whether each process keeps to its core.

    A run that only shows that all works leaves that to the system: beside others it would wait for
    one core while another is idle.
    """

    @classmethod
    def split(cls, *, are_kept: bool = True) -> Cores:
        """Give workers the first core and, for a second worker, the next.

        The rest has all but the first.
        """
        cores = usable()
        second = cores[1] if len(cores) > 1 else cores[0]
        rest = frozenset(cores[2:] or [second])
        return cls(workers=(cores[0], second), rest=rest, are_kept=are_kept)

    @property
    def second_is_shared(self) -> bool:
        """Tell whether a second worker has to share its core with the provider and the server."""
        return self.workers[1] in self.rest

    def take_rest(self) -> None:
        """Move this process, and what it starts from now on, away from the worker's core."""
        if self.are_kept:
            os.sched_setaffinity(0, self.rest)

    def give(self, pid: int, worker: int) -> None:
        """Move a process that was just started to the core of a worker; its later threads
        follow.
        """
        if self.are_kept:
            os.sched_setaffinity(pid, {self.workers[worker]})

    @property
    def shown(self) -> str:
        """Who runs where, in a line."""
        if not self.are_kept:
            return "worker, server, sandbox and driver on any core"
        return (
            f"worker on core {self.workers[0]}, server, sandbox and driver on {sorted(self.rest)}"
        )


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, all its threads together."""
    fields = _stat(pid)
    return (int(fields[_USER_TICKS]) + int(fields[_USER_TICKS + 1])) / _TICKS


def cpu_seconds_of_family(pid: int) -> float:
    """Return the processor time that a process and all processes below it have used.

    Those that have ended are left out.
    """
    used = cpu_seconds(pid)
    for child in family(pid) - {pid}:
        with suppress(OSError):
            used += cpu_seconds(child)
    return used


def family(pid: int) -> set[int]:
    """Return the ids of a process and of all processes below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[_PARENT])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def resident_mb(pid: int, *, peak: bool = False) -> float:
    """Return the memory that a process holds, or the most it ever held, in MiB."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) / 1024
    return 0.0
