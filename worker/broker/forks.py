"""What a fork copies that is its parent's: locks that another thread held, and the wish to go on using its sockets.

Only the thread that forks lives on in the child. A lock that another one held stays locked there for ever, and so does
a module that another one was importing. So a fork waits for what is being built, which is short and asks no server, and
the child gets the libraries' shared locks anew. What it connects with, it builds for itself: `process()` says for whom.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

LONGEST_WAIT: Final = 5.0
"""Seconds that a fork waits for a thread that builds; a child does without what it did not finish."""

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
    """Return what tells this process from those it was forked from, even if the system gives a number twice."""
    return os.getpid(), _process.generation


@contextmanager
def building() -> Iterator[None]:
    """Build what a process has one of; one thread at a time, and no fork comes in between."""
    with _process.building:
        yield


def in_child(begin: Callable[[], None]) -> None:
    """Call this in each child as it begins, before any other code of it."""
    _in_child.append(begin)


def renew_locks(owner: object, depth: int = 4) -> None:
    """Unlock every lock of a library's object, in a child that has one thread."""
    _renew(owner, depth, set())


def _renew(value: Any, depth: int, seen: set[int]) -> None:
    kind = type(value)
    if kind in _LOCKS:
        # One that this thread holds, it will let go itself.
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
    # Celery's proxies make what they stand for once they are looked at.
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
    """Renew what a module holds: a lock, a class's own (each of kombu's cached properties has one), a signal's."""
    kind = type(value)
    if kind in _LOCKS or _is_of_library(kind):
        _renew(value, 2, seen)
    elif issubclass(kind, type) and _is_of_library(value):
        _renew(value, 3, seen)


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
