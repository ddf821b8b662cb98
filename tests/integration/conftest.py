"""One installation a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.installation import Installation
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import running_sandbox


@pytest.fixture
def sandbox_config() -> SandboxConfig:
    """The provider of these tests: unproven, its keys ignored.

    A test may ask for another by parametrising.
    """
    return SandboxConfig(idempotency="ignore", latency_ms=5)


@pytest.fixture
def installation(
    redis_url: str, tmp_path: Path, sandbox_config: SandboxConfig
) -> Iterator[Installation]:
    """A server, a provider and no worker yet; whatever was started is ended."""
    with running_sandbox(sandbox_config) as sandbox:
        made = Installation(redis_url, sandbox, tmp_path)
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.stop()


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the server, which reads texts."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
