"""No command repeats a secret of the settings, whatever its shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli_runner import Cli
from tests.unit.model.test_redaction import KEY, KEYS, planted
from worker.settings import Settings


@pytest.fixture(params=KEYS[:2])
def key(request: pytest.FixtureRequest) -> str:
    """A key that the settings were loaded with."""
    Settings.load(api_key=request.param)
    return str(request.param)


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "{}!", "--payment-intent", "pi_1"],
        ["submit", "order-1", "--payment-intent", "{}!"],
        ["submit", "order-1", "--payment-intent", "pi_1", "--amount", "{}"],
        ["submit", "order-1", "--payment-intent", "pi_1", "--metadata", "{}"],
        ["status", "{}"],
        ["import", "{}.csv"],
        ["list", "--stage", "{}"],
        ["batch", "show", "{}"],
        ["{}"],
        ["list", "--{}"],
    ],
)
def test_no_command_repeats_the_key(arguments: list[str], key: str, redis_url: str) -> None:
    cli = Cli(environment={"REFUNDS_REDIS_URL": redis_url, "REFUNDS_API_KEY": key})
    ran = cli(*(argument.format(key) for argument in arguments))
    assert ran.code != 0
    assert planted(ran.out + ran.err, key) == []


def test_wrong_usage_does_not_repeat_the_key_before_anything_was_done() -> None:
    ran = Cli(environment={"REFUNDS_API_KEY": KEY}).process(KEY)
    assert (ran.code, planted(ran.err, KEY)) == (2, [])
    assert "***" in ran.err


def test_traceback_of_a_fault_of_the_program_does_not_tell_the_key() -> None:
    program = (
        "import sys\nfrom worker.cli import group\nfrom worker.settings import Settings\ndef"
        " fails(*_, **__): raise RuntimeError('said ' +"
        " Settings.load().api_key.get_secret_value())\nsys.exit(group._ended(fails))\n"
    )
    environment = {"REFUNDS_API_KEY": KEY, "REFUNDS_LOG_LEVEL": "debug", "PATH": os.environ["PATH"]}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path.cwd(),
    )
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert planted(ran.stderr, KEY) == []
