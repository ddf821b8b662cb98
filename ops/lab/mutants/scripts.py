"""The Lua scripts as they are loaded, and which of their blocks a test enters.

The server itself keeps the account.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis

from ops.lab.mutants.lua import marked

ENTERED: Final = "~entered"
"""A set on the server, outside of every prefix that tests use."""


def live_scripts() -> list[Any]:
    """Return every script that was read from a file: each is a name of a module of the worker.

    The collector's list of objects would not do, since the tests freeze what was loaded before.
    """
    loaded: Any = sys.modules.get("worker.store.scripts")
    if loaded is None:
        return []
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("worker.")]
    named = [one for module in modules for one in vars(module).values()]
    return list({id(one): one for one in named if type(one) is loaded.Script}.values())


def read_again(scripts: Sequence[Any]) -> None:
    """Let scripts read their files as they are now."""
    loaded: Any = sys.modules.get("worker.store.scripts")
    if loaded is not None:
        loaded.shared_text.cache_clear()
    for script in scripts:
        type(script).__init__(script, script.name, *script.shared)


class Scripts:
    """Lua files of this copy of the checkout."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self._live = live_scripts()
        self._plain = {file: Path(file).read_text("utf-8") for file in files}

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Let each block note that it was entered."""
        for file, text in self._plain.items():
            Path(file).write_text(marked(text, partial(_note, file)), "utf-8")
        read_again(self._live)
        try:
            yield
        finally:
            for file, text in self._plain.items():
                Path(file).write_text(text, "utf-8")
            read_again(self._live)

    def entered(self, shared: Mapping[str, Any]) -> dict[str, list[int]]:
        """Return the blocks that were entered on the servers that tests share, by file, and forget
        them.
        """
        found: dict[str, list[int]] = {}
        for client in _servers(shared):
            with client:
                members: Any = client.smembers(ENTERED)
                client.delete(ENTERED)
            for member in members:
                file, _, number = str(member).rpartition(":")
                found.setdefault(file, []).append(int(number))
        return found


def _note(file: str, number: int) -> str:
    return f"redis.call('SADD', '{ENTERED}', '{file}:{number}')"


def _servers(shared: Mapping[str, Any]) -> Iterator[redis.Redis]:
    if "redis_server" in shared:
        yield redis.Redis.from_url(shared["redis_server"].url, decode_responses=True)
    if "socket" in shared:
        yield redis.Redis(unix_socket_path=str(shared["socket"]), decode_responses=True)
