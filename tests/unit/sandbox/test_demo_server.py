"""The server that the demo uses: its own, whatever is exported, unless an option names another."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from click.testing import CliRunner

from worker.sandbox import demo
from worker.sandbox.redis_server import VARIABLE


def test_exported_address_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUNDS_REDIS_URL", "redis://127.0.0.1:1/0")
    with ExitStack() as stack:
        url, prefix = demo._server(stack, None)
        assert (url == "redis://127.0.0.1:1/0", prefix) == (False, "refunds:")


def test_address_of_the_option_is_used_under_a_prefix_of_its_own() -> None:
    with ExitStack() as stack:
        url, prefix = demo._server(stack, "redis://127.0.0.1:1/0")
    assert (url, prefix.startswith("demo-")) == ("redis://127.0.0.1:1/0", True)


def test_server_that_does_not_exist_is_one_sentence_and_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nonexist")
    ran = CliRunner().invoke(demo.main, [])
    assert ran.exit_code == 2
    assert ran.stderr.startswith(
        "Error: THROWAWAY_SERVER is 'nonexist', which is not an executable: name a "
    )
    assert len(ran.stderr.splitlines()) == 1
