"""A command line with a test key, on the emptied real server and a sandbox of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cli_runner import Cli
from tests.unit.probing.asking import KEY, provider
from worker.cli import group
from worker.probing import probe
from worker.sandbox.running import Sandbox


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command under its name, whether or not the group lists it."""
    monkeypatch.setitem(group.COMMANDS, "probe", group.Entry("worker.cli.probe", "probe", ""))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe looks several times for what a provider may show late."""
    monkeypatch.setattr(probe, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with provider() as running:
        yield running


@pytest.fixture
def cli(redis_url: str, sandbox: Sandbox) -> Cli:
    return Cli(
        environment={
            "REFUNDS_REDIS_URL": redis_url,
            "REFUNDS_API_URL": sandbox.url,
            "REFUNDS_API_KEY": KEY,
        }
    )
