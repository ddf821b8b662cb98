"""A whole installation: the real server, the sandbox provider, worker processes started and ended
by their ids.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Cli
from worker.client import Refunds
from worker.model.refund import Refund
from worker.sandbox.installation import environment
from worker.sandbox.running import Sandbox
from worker.settings import Settings

PATIENCE = 60.0
HASTY = Path(__file__).parent / "hasty"
"""On PYTHONPATH it lets a worker walk, beat and probe several times a second."""


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until a condition of another process holds; fail with what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s in vain until {what}")
        time.sleep(0.02)


def hasty() -> dict[str, str]:
    """Return the variable with which a process that a test starts is in haste."""
    given = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(HASTY), *([given] if given else [])])}


def calls(server: redis.Redis, command: str) -> int:
    """Return how often a server has run a command."""
    stats: Any = server.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started itself."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def stacks_of(pid: int) -> str:
    """Return where the threads of a Python process and of its children stand."""
    spy = Path(sys.executable).with_name("py-spy")
    return "".join(
        subprocess.run(
            [spy, "dump", "--pid", str(each)],
            capture_output=True,
            check=False,
            text=True,
            timeout=PATIENCE,
        ).stdout
        for each in [pid, *children_of(pid)]
    )


@dataclass
class Worker:
    """One worker process and what it logged."""

    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> int:
        """SIGTERM, and wait until it has finished what is in flight; return its exit code.

        One that does not end fails the test with where it stands, and harms no later test.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            stands = stacks_of(self.process.pid)
            for pid in [*children_of(self.process.pid), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(PATIENCE)
            pytest.fail(f"the worker did not end in {PATIENCE:.0f} s:\n{stands}")

    def kill(self) -> None:
        """SIGKILL, as the kernel would."""
        self.process.kill()
        self.process.wait(PATIENCE)

    @property
    def said(self) -> str:
        return self.log.read_text()


@dataclass
class Installation:
    """Where everything is, and the way to start workers on it."""

    redis_url: str
    sandbox: Sandbox
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        variables = {
            "REFUNDS_REDIS_URL": self.redis_url,
            "REFUNDS_API_URL": self.sandbox.url,
            "REFUNDS_API_KEY": "sk_test_canary_of_the_tests",
            "REFUNDS_READBACK": "list",
            "REFUNDS_SETTLE_SECONDS": "0.2",
            "REFUNDS_REQUEST_TIMEOUT_SECONDS": "1",
            "REFUNDS_LEASE_SECONDS": "6",
            "REFUNDS_LOG_FORMAT": "json",
            **hasty(),
            **self.settings,
        }
        return environment(variables)

    def start(self, *command: str) -> Worker:
        """Start a worker process, `python -m celery …` unless told otherwise, and wait until it is
        up.
        """
        command = command or (
            "celery",
            "-A",
            "worker.app",
            "worker",
            "-P",
            "threads",
            "--without-gossip",
            "--without-mingle",
        )
        log = self.folder / f"worker-{len(self.workers)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], env=self.environment, stdout=file, stderr=file
            )
        worker = Worker(process, log)
        self.workers.append(worker)
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            before = set(client.zrange("refunds:workers", 0, -1))
            until(
                lambda: (
                    process.poll() is not None
                    or bool(set(client.zrange("refunds:workers", 0, -1)) - before)
                ),
                "the worker is up",
            )
        return worker

    @property
    def cli(self) -> Cli:
        """The command line with the workers' settings."""
        ours = {
            name: text for name, text in self.environment.items() if name.startswith("REFUNDS_")
        }
        return Cli(environment=ours)

    def refunds(self) -> Refunds:
        return Refunds(settings=Settings.load(redis_url=self.redis_url))

    def settled(self, refunds: Refunds, ids: list[str], seconds: float = PATIENCE) -> list[Refund]:
        """Wait until all are settled or need a person, and return the records."""

        def over() -> bool:
            return all(
                r is not None and r.stage in {"settled", "review"} for r in refunds.get_many(ids)
            )

        with contextlib.suppress(redis.ConnectionError):
            until(over, f"{len(ids)} refunds are settled", seconds)
        return [r for r in refunds.get_many(ids) if r is not None]
