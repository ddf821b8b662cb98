"""The records on the fake and on the real server, with a clock that only a test moves."""

from __future__ import annotations

import pytest
import redis

from tests.support.store_world import World


@pytest.fixture
def world(any_redis: redis.Redis) -> World:
    """An empty set of records at a fixed time."""
    return World(any_redis)
