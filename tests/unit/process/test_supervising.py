"""The supervisor in a program of its own: what it loads, and what it does with an early signal."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"asyncio", "celery", "click", "httpx", "pydantic", "redis"}
BECOMES = """
import os, signal, sys
from worker.process.supervising import become_supervisor
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
sleeps = [sys.executable, "-c", "import signal; signal.pause()"]
become_supervisor(sleeps, environment=os.environ, final=frozenset({2, 6}), as_text=True)
"""


def loaded(modules: str) -> set[str]:
    """Return the packages that a process has loaded after it imported these modules."""
    shown = subprocess.run(
        [sys.executable, "-c", f"import {modules}, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in shown.stdout.split()}


def test_the_supervisor_loads_nothing_that_is_heavy() -> None:
    assert not loaded("worker.process.supervising") & HEAVY


def test_the_worker_loads_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUNDS_API_KEY", "sk_test_x")
    packages = loaded("worker.process.celery_worker, worker.app, worker.tasks")
    assert not packages & {"click_repl", "flower", "prompt_toolkit"}


def test_a_signal_that_comes_while_the_supervisor_loads_is_obeyed() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BECOMES], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.splitlines() == [
        "stopping: no new refund is started, and those in flight are finished first",
        "stopped: nothing is in flight",
    ]


@pytest.mark.parametrize("code", [2, 6, 0])
def test_a_final_code_is_passed_on(code: int) -> None:
    started = [sys.executable, "-m", "worker.process.supervising", "json", "2,6"]
    child = [sys.executable, "-c", f"raise SystemExit({code})"]
    ended = subprocess.run(
        [*started, *child], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code
    assert "restarting" not in ended.stderr


def test_a_command_that_cannot_be_started_is_one_sentence() -> None:
    started = [sys.executable, "-m", "worker.process.supervising", "text", "2,6", "/nowhere/python"]
    ended = subprocess.run(started, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "refunds: the worker process cannot be started: No such file or directory\n"
    )
