"""Fork safety: a child process must not inherit held locks, nor use its parent's sockets.

Only the thread that forks exists in the child. A lock that another thread held stays locked there
for ever, and so does a module that another thread was importing. A fork therefore waits for objects
under construction, which is short and calls no server. The child renews the libraries' shared locks
and opens its own connections, keyed by `process()`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

LONGEST_WAIT: Final = 5.0
"""Seconds that a fork waits for a thread that builds.

The child lacks objects that are unfinished by then.
"""

_PACKAGES: Final = ("amqp", "billiard", "celery", "kombu", "redis", "vine")
_HOLDERS: Final = frozenset((*_PACKAGES, "threading", "queue", "functools"))
_RLOCK: Final = type(threading.RLock())
_LOCKS: Final = frozenset((type(threading.Lock()), _RLOCK))


class _Here(threading.local):
    holds = False


class _Process:
    def __init__(self) -> None:
        self.generation = 0
        self.building = threading.RLock()
        self.here = _Here()


_process: Final = _Process()
_in_child: Final[list[Callable[[], None]]] = []


def process() -> tuple[int, int]:
    """Return an identity that no parent process has, even if the system reuses a process id."""
    return os.getpid(), _process.generation


@contextmanager
def building() -> Iterator[None]:
    """Context for building an object that a process has once.

    One thread at a time, and no fork in between.
    """
    with _process.building:
        yield


def in_child(begin: Callable[[], None]) -> None:
    """Register a function that each child runs at its start, before its other code."""
    _in_child.append(begin)


def renew_locks(owner: object, depth: int = 4) -> None:
    """Unlock every lock of a library's object; only for a child that has one thread."""
    _renew(owner, depth, set())


def _renew(value: Any, depth: int, seen: set[int]) -> None:
    kind = type(value)
    if kind in _LOCKS:
        # This thread releases its own locks itself.
        if not (kind is _RLOCK and value._is_owned()):  # noqa: SLF001 - what threading itself asks
            value._at_fork_reinit()  # noqa: SLF001 - what threading itself does after a fork
        return
    if depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if kind is dict:
        inner = list(value.values())
    elif kind in {list, tuple}:
        inner = list(value)
    elif issubclass(kind, type) or _is_of_library(kind):
        inner = list(getattr(value, "__dict__", {}).values())
    else:
        return
    for each in inner:
        _renew(each, depth - 1, seen)


def _is_of_library(kind: type) -> bool:
    package = kind.__module__.partition(".")[0]
    # Celery's proxies create their target on first access.
    return package in _HOLDERS and kind.__module__ != "celery.local"


def _before() -> None:
    _process.here.holds = _process.building.acquire(timeout=LONGEST_WAIT)


def _after_in_parent() -> None:
    if _process.here.holds:
        _process.building.release()


def _after_in_child() -> None:
    _process.generation += 1
    _process.building = threading.RLock()
    _process.here = _Here()
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES:
            for value in list(vars(module).values()):
                _renew_shared(value, seen)
    for begin in _in_child:
        begin()


def _renew_shared(value: Any, seen: set[int]) -> None:
    """Renew locks of a module, a class (one for each of kombu's cached properties), or a signal."""
    kind = type(value)
    if kind in _LOCKS or _is_of_library(kind):
        _renew(value, 2, seen)
    elif issubclass(kind, type) and _is_of_library(value):
        _renew(value, 3, seen)


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
