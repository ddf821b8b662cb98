"""Records on the fake and on the real server, and the everyday operations on them."""

from __future__ import annotations

import pytest
import redis

from tests.support.cli_runner import Records
from worker.store.store import Store


@pytest.fixture
def records(any_redis: redis.Redis) -> Records:
    return Records(store=Store(any_redis, durable=False))
