"""The log as dictionaries, and what a service stands on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis.asyncio
import structlog

from tests.unit.engine.desk import Desk


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """Every line that the product writes, as a dictionary."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def desk(async_redis: redis.asyncio.Redis) -> Desk:
    """A recorder over records of its own."""
    return Desk(async_redis)
