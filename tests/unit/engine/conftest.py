"""The log as dictionaries, and what a service stands on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio
import structlog

from tests.unit.engine.desk import Desk
from tests.unit.engine.rereads import Rereads
from tests.unit.engine.shop import opened


@pytest.fixture
def log() -> Iterator[list[Any]]:
    """Every line that the product writes, as a dictionary."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def desk(async_redis: redis.asyncio.Redis) -> Desk:
    """A recorder over records of its own."""
    return Desk(async_redis)


@pytest.fixture
async def rereads(async_redis: redis.asyncio.Redis) -> AsyncIterator[Rereads]:
    """A recheck whose reads and results are counted, for a worker that verifies by lists."""
    async with opened(async_redis) as shop:
        yield Rereads(shop)
