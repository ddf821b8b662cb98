"""The HTTP API on the emptied real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.api_door import Door, a_door
from worker.http import app, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    import redis


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a connection and of the reading of events is waited for, not looked at."""
    monkeypatch.setattr(app, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(running, "BLOCK_MS", 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the copies of files are kept."""
    return tmp_path / "spool"


@pytest.fixture
async def api(redis_url: str, folder: Path) -> AsyncIterator[Door]:
    async with a_door(redis_url, spool_dir=folder) as door:
        yield door


@pytest.fixture
def fill(sync_redis: redis.Redis) -> Iterator[Callable[[], object]]:
    """Leave the server no memory at all until the end of the test."""
    yield lambda: sync_redis.config_set("maxmemory", 1)
    sync_redis.config_set("maxmemory", 0)
