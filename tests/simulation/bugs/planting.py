"""How a bug is put into the real code.

One that no longer finds its place fails at once, so that none seems caught.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from unittest import mock

from worker.store import scripts

Bug = Callable[[ExitStack], None]


class NoSuchPlace(AssertionError):
    """The code has changed: the bug's place is gone and it must be planted anew."""


def put(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(mock.patch.object(owner, name, value))


def rescript(
    stack: ExitStack, names: tuple[str, ...], old: str, new: str, *, of: ModuleType = scripts
) -> None:
    for name in names:
        script = copy.copy(getattr(of, name))
        if old not in script.text:
            raise NoSuchPlace(f"{name}: {old}")
        script.text = script.text.replace(old, new)
        script.sha = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()
        put(stack, of, name, script)


def what_stands(owner: Any, name: str) -> Any:
    """Return what a module uses under a name, be it its own or imported."""
    return getattr(owner, name)


def all_scripts(*, of: ModuleType = scripts) -> tuple[str, ...]:
    return tuple(name for name, value in vars(of).items() if isinstance(value, scripts.Script))
