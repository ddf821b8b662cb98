"""The Lua scripts as they are loaded, and which of their blocks a test enters: the server itself keeps the account."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from ops.mutants.lua import marked

ENTERED: Final = "~entered"
"""A set on the server, outside of every prefix that tests use."""


def live_scripts() -> list[Any]:
    """Return every script that was read from a file."""
    calls: Any = sys.modules.get("worker.calls")
    return [] if calls is None else [one for one in gc.get_objects() if type(one) is calls.Script]


def read_again(scripts: Sequence[Any]) -> None:
    """Let scripts read their files as they are now."""
    for script in scripts:
        type(script).__init__(script, script.name)


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

    def entered(self, item: pytest.Item) -> dict[str, list[int]]:
        """Return the blocks that a test has entered, by file; the top of a file counts where its script ran."""
        found: dict[str, list[int]] = {}
        for client in _servers(item):
            with client:
                members: Any = client.smembers(ENTERED)
                client.delete(ENTERED)
            for member in members:
                file, _, number = str(member).rpartition(":")
                found.setdefault(file, []).append(int(number))
        return found


def _note(file: str, number: int) -> str:
    return f"redis.call('SADD', '{ENTERED}', '{file}:{number}')"


def _servers(item: pytest.Item) -> Iterator[redis.Redis]:
    """Yield clients of the servers that live as long as the session: any test may have asked for one on its way."""
    known: Any = item.session._fixturemanager  # noqa: SLF001 - pytest shows no other way to what is set up
    for name, client in (("redis_server", _at_url), ("socket", _at_socket)):
        for definition in known._arg2fixturedefs.get(name, ()):  # noqa: SLF001 - see above
            if definition.scope == "session" and definition.cached_result is not None:
                yield client(definition.cached_result[0])


def _at_url(server: Any) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def _at_socket(path: Any) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(path), decode_responses=True)
