"""A command line on the emptied real server, and the records behind it."""

from __future__ import annotations

import pytest
import redis

from tests.support.cli_runner import Cli, Records
from worker.store.store import Store


@pytest.fixture
def cli(redis_url: str) -> Cli:
    return Cli(environment={"REFUNDS_REDIS_URL": redis_url})


@pytest.fixture
def away() -> Cli:
    """A command line whose Redis is not there: nothing listens on port 1."""
    return Cli(environment={"REFUNDS_REDIS_URL": "redis://127.0.0.1:1/0"})


@pytest.fixture
def records(sync_redis: redis.Redis) -> Records:
    return Records(store=Store(sync_redis))
