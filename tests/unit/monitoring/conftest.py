"""A doctor on the emptied real server, with a provider that accepts its key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.support.cli_runner import Cli, Records
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import Sandbox, running_sandbox
from worker.store.store import Store

KEY = "sk_test_planted"


@pytest.fixture(scope="session")
def health_sandbox() -> Iterator[Sandbox]:
    with running_sandbox(SandboxConfig(api_key=KEY)) as running:
        yield running


@pytest.fixture
def doctor(redis_url: str, health_sandbox: Sandbox) -> Cli:
    return Cli(
        environment={
            "REFUNDS_REDIS_URL": redis_url,
            "REFUNDS_API_KEY": KEY,
            "REFUNDS_API_URL": health_sandbox.url,
        }
    )


@pytest.fixture
def records(sync_redis: redis.Redis) -> Records:
    return Records(store=Store(sync_redis))
