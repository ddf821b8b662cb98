"""One refund from end to end: submit, a worker process, the sandbox provider, settled, and one
effect in its ledger.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from ops.lab.servers.found import Server
from ops.lab.servers.table import Row
from worker.sandbox.config import SandboxConfig
from worker.sandbox.installation import environment
from worker.sandbox.redis_server import VARIABLE, ThrowawayServer
from worker.sandbox.running import Sandbox, running_sandbox

SECONDS: Final = 60
PASSWORD: Final = "of-a-server-that-is-thrown-away"  # noqa: S105 - it guards nothing
EVERYTHING: Final = ("~*", "&*", "+@all")
USERS: Final = {
    "all rights": EVERYTHING,
    "no CONFIG": (*EVERYTHING, "-config"),
    "no COMMAND": (*EVERYTHING, "-command"),
    "no INFO": (*EVERYTHING, "-info"),
    "neither CONFIG nor INFO": (*EVERYTHING, "-config", "-info"),
}
EVICTS: Final = "always, volatile-lru"
"""The mode of a server that flushes each write and may evict settled records."""
WORKER: Final = "worker of users.acl"
"""For servers that know all of its commands."""
DONE, USAGE, REFUSED = 0, 2, 6
RESP3: Final = 3


class Unlike(Exception):
    """Something was not as it should be; the text says what."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a server is set up, and how it is talked to."""

    mode: str
    protocol: int
    user: str

    def expected(self, server: Server) -> int:
        """Return the exit code that is right.

        Refused if the server may evict, or cannot confirm what is on disk.
        """
        may_read = "CONFIG" not in self.user
        if not server.waits and not may_read:
            return USAGE
        if self.mode == EVICTS:
            return REFUSED
        return DONE if server.waits or self.mode == "always" else REFUSED


def cases(server: Server) -> Iterator[Case]:
    """Yield each user under `always` with the newer protocol, and both modes and protocols for one
    with all rights.
    """
    for user in USERS:
        yield Case(mode="always", protocol=RESP3, user=user)
    if server.waits:
        yield Case(mode="always", protocol=RESP3, user=WORKER)
    yield Case(mode="always", protocol=2, user="all rights")
    yield Case(mode="everysec", protocol=RESP3, user="all rights")
    yield Case(mode="everysec", protocol=2, user="no CONFIG")
    yield Case(mode=EVICTS, protocol=RESP3, user="all rights")
    if server.waits:
        yield Case(mode=EVICTS, protocol=2, user="no CONFIG")


def every(server: Server) -> Iterator[Row]:
    """Yield a row for each case, on one server a mode and one provider for all."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(
            running_sandbox(SandboxConfig(idempotency="ignore", latency_ms=5))
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="refunds-servers-")))
        running = {}
        for case in cases(server):
            if case.mode not in running:
                running[case.mode] = stack.enter_context(_started(server, case.mode))
            trial = Trial(
                server=server, case=case, running=running[case.mode], sandbox=sandbox, folder=folder
            )
            yield trial.row()


def _rules_of_a_worker() -> list[str]:
    """Return what ops/redis/users.acl grants to the worker's user."""
    lines = (Path(__file__).parents[2] / "redis" / "users.acl").read_text("utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("user worker ")]
    return line.partition(" PASSWORD ")[2].split()


@contextmanager
def _started(server: Server, mode: str) -> Iterator[ThrowawayServer]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(server.path)
    try:
        limits = {"maxmemory": "64mb", "maxmemory_policy": "volatile-lru"} if mode == EVICTS else {}
        with ThrowawayServer(appendfsync=mode.partition(",")[0], **limits) as running:
            yield running
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A case on a running server."""

    server: Server
    case: Case
    running: ThrowawayServer
    sandbox: Sandbox
    folder: Path

    def row(self) -> Row:
        """Carry it out."""
        wanted = self.case.expected(self.server)
        try:
            with redis.Redis.from_url(self.running.url, decode_responses=True) as admin:
                admin.flushall()
                rules = _rules_of_a_worker() if self.case.user == WORKER else USERS[self.case.user]
                admin.execute_command(
                    "ACL", "SETUSER", "app", "reset", "on", f">{PASSWORD}", *rules
                )
                result = self._settled(admin) if wanted == DONE else self._refused(admin, wanted)
            passed, trace = True, ""
        except (Unlike, subprocess.TimeoutExpired, redis.RedisError) as error:
            logs = [path.read_text("utf-8")[-3000:] for path in self.folder.glob("worker.log")]
            passed, result, trace = False, str(error), "\n".join(logs)
        protocol = f"RESP{self.case.protocol}"
        return Row.of(
            self.server,
            self.case.mode,
            protocol,
            self.case.user,
            passed=passed,
            result=result,
            trace=trace,
        )

    def _settled(self, admin: redis.Redis) -> str:
        self._expect("doctor", self._run("doctor", "--json"), DONE)
        refund_id = (
            f"order-{self.running.port}-{self.case.protocol}-{re.sub('[ .]', '-', self.case.user)}"
        )
        asked = [
            "submit",
            refund_id,
            "--payment-intent",
            f"pi_{refund_id.replace('-', '')}",
            "--amount",
            "500",
        ]
        with self._worker():
            submitted = self._run(*asked, "--wait", "45", "--json")
            self._expect("submit", submitted, DONE)
            refund: dict[str, Any] = json.loads(submitted.stdout)
            if (refund["status"], refund["amount"]) != ("succeeded", 500):
                raise Unlike(f"the refund is {refund['status']} with {refund['amount']}")
            self._speaks(admin)
        effects = len(self.sandbox.effects(refund_id))
        if effects != 1:
            raise Unlike(f"the ledger holds {effects} effects of the refund")
        return "settled, 1 effect in the ledger"

    @contextmanager
    def _worker(self) -> Iterator[None]:
        with (self.folder / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "worker"],
                env=self._environment(),
                stdout=log,
                stderr=log,
            )
        try:
            yield
            process.send_signal(signal.SIGTERM)
            if code := process.wait(SECONDS):
                raise Unlike(f"the worker ended with {code}")
        finally:
            process.kill()
            process.wait()

    def _refused(self, admin: redis.Redis, code: int) -> str:
        self._expect("doctor", self._run("doctor", "--json"), code)
        submitted = self._run("submit", "order-1", "--payment-intent", "pi_1", "--amount", "500")
        self._expect("submit", submitted, code)
        self._expect("worker", self._run("worker"), code)
        if left := [key for key in admin.scan_iter("refunds:*") if "order-1" in key]:
            raise Unlike(f"refused, and yet there is {left}")
        why = submitted.stderr.strip().splitlines()[-1].removeprefix("error: ").partition(": ")[0]
        return f"refused with {code}: {why}"

    def _speaks(self, admin: redis.Redis) -> None:
        """Check that the worker's clients speak the protocol of the case; Redis 6.2 does not
        tell.
        """
        spoken = {client.get("resp") for client in admin.client_list() if client["user"] == "app"}
        if spoken - {None} and str(self.case.protocol) not in spoken:
            raise Unlike(f"no client speaks RESP{self.case.protocol}, but {spoken}")

    def _environment(self) -> dict[str, str]:
        variables = {
            "REFUNDS_REDIS_URL": (
                f"redis://app:{PASSWORD}@127.0.0.1:{self.running.port}/0?protocol={self.case.protocol}"
            ),
            "REFUNDS_API_URL": self.sandbox.url,
            "REFUNDS_API_KEY": "sk_test_of_the_matrix",
            "REFUNDS_READBACK": "list",
        }
        return environment(variables)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "worker", *arguments],
            env=self._environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    @staticmethod
    def _expect(what: str, run: subprocess.CompletedProcess[str], code: int) -> None:
        if run.returncode != code:
            raise Unlike(
                f"{what} ended with {run.returncode} and not {code}:"
                f" {(run.stderr or run.stdout)[-300:]}"
            )
