"""An installation to be measured.

Server, sandbox and driver on the shared cores, each worker on one of its own.

Every run has a fresh one, and ends with the ledger counted against the records.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import redis

from ops.lab.bench.machine import Cores, cpu_seconds, cpu_seconds_of_family
from ops.lab.bench.orders import requests
from ops.lab.opened import Opened
from worker.broker.names import CALLBACK_QUEUE
from worker.cli.worker import command
from worker.client import Refunds, Submitted
from worker.model.refund import Lane
from worker.sandbox.installation import SandboxProcess, end, environment, sandbox_process
from worker.sandbox.redis_server import HOST, ThrowawayServer
from worker.settings import Settings

CONCURRENCY: Final = 256
"""Calls in flight, of the worker and of its floor: fewer would hold both down before the core does.
"""
IN_FLIGHT: Final = 64
"""Calls in flight of a worker that was not told otherwise."""
PATIENCE: Final = 600.0
ROOT: Final = Path(__file__).parents[3]
LISTENING: Final = "listening at "
ENDING: Final = "ending in "
_POLL: Final = 0.01


class WrongCountError(RuntimeError):
    """The ledger and the records disagree, or a run did not come to its end.

    Its figure counts for nothing.
    """


@dataclass(frozen=True, kw_only=True)
class Mode:
    """What a run is set to: the provider's latency and how doubts are settled."""

    latency_ms: int = 50
    idempotency: str = "verify"
    readback: str = "list"

    @property
    def shown(self) -> str:
        """The setting in a few words."""
        ways = "trust" if self.idempotency == "trust" else f"verify, {self.readback}"
        return f"{self.latency_ms} ms, {ways}"

    @property
    def wants_baseline(self) -> bool:
        """Tell whether each refund costs a read of its payment first."""
        return self.idempotency == "verify" and self.readback == "totals"


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a run: how many refunds were settled in it, how long it took, what processor
    time it cost.
    """

    refunds: int
    seconds: float
    worker_cpu: float
    server_cpu: float
    sandbox_cpu: float

    @property
    def rate(self) -> float:
        """Refunds a second."""
        return self.refunds / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds of the measured processes a refund."""
        return self.worker_cpu / self.refunds * 1000


@dataclass
class Rig(Opened):
    """One installation; use it in a `with`."""

    allocator: ClassVar[Path | None] = None
    """The library from which the servers of all installations take their memory, None for their
    own.
    """
    cores: Cores
    mode: Mode = field(default_factory=Mode)
    concurrency: int = CONCURRENCY
    sandbox_options: Sequence[str] = ()
    settings: dict[str, str] = field(default_factory=dict)
    replicas: int = 0
    """Replicas of the server, for each of which every write waits."""

    def _enter_parts(self, stack: ExitStack) -> None:
        self.folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="refunds-bench-"))
        )
        self.server = stack.enter_context(ThrowawayServer(self.allocator))
        for _ in range(self.replicas):
            self._follow(stack.enter_context(self._replica()))
        provider = stack.enter_context(self._sandbox_running())
        self.sandbox, self._sandbox_process = provider.sandbox, provider.process
        self.refunds = stack.enter_context(
            Refunds(settings=Settings.load(redis_url=self.server.url, replicas=self.replicas))
        )
        self.workers: list[subprocess.Popen[bytes]] = []
        stack.callback(self.stop)

    def _replica(self) -> ThrowawayServer:
        primary = f"{HOST} {self.server.port}"
        return ThrowawayServer(self.allocator, replicaof=primary, repl_diskless_sync_delay="0")

    def _follow(self, replica: ThrowawayServer) -> None:
        """Wait until a replica has what the server has."""
        with redis.Redis.from_url(replica.url, decode_responses=True) as client:
            end = time.monotonic() + PATIENCE
            facts: Any = client.info("replication")
            while facts["master_link_status"] != "up":
                if time.monotonic() > end:
                    raise WrongCountError(f"{PATIENCE:g} s have passed before a replica followed")
                time.sleep(_POLL)
                facts = client.info("replication")

    def _sandbox_running(self) -> AbstractContextManager[SandboxProcess]:
        # A provider that ignores keys would show a second effect; one that honours them would hide
        # it.
        options = ["--latency", str(self.mode.latency_ms), "--idempotency", "ignore"]
        if "--log-requests" not in self.sandbox_options:
            options += ["--log-requests", "0"]
        return sandbox_process(*options, *self.sandbox_options)

    @property
    def environment(self) -> dict[str, str]:
        """What a worker or its floor is started with."""
        variables = {
            "REFUNDS_REDIS_URL": self.server.url,
            "REFUNDS_API_URL": self.sandbox.url,
            "REFUNDS_API_KEY": "sk_test_bench",
            "REFUNDS_IDEMPOTENCY": self.mode.idempotency,
            "REFUNDS_READBACK": self.mode.readback,
            "REFUNDS_CONCURRENCY": str(self.concurrency),
            "REFUNDS_LOG_FORMAT": "json",
            "REFUNDS_REPLICAS": str(self.replicas),
            **self.settings,
        }
        return environment(variables)

    def fill(self, count: int, lane: Lane, *, start: int = 0, name: str = "tour") -> None:
        """Accept so many refunds and put their messages in the lane's queue."""
        report: Submitted = self.refunds.submit_many(
            requests(count, start=start, name=name), lane=lane
        )
        if report.created != count:
            raise WrongCountError(f"{report.created} of {count} refunds were accepted")

    def rest(self) -> None:
        """Wait until the server is done with what filling it has set off.

        The rewriting of its file, and the disk.
        """
        self.until(
            lambda: not self._client.info("persistence")["aof_rewrite_in_progress"],
            "the file is rewritten",
        )
        os.sync()

    def start_worker(
        self, *, wrapped: Sequence[str] = (), module: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a worker process as `refunds worker` does, on the next worker's core.

        It is not waited for. Another `module` takes the place of the worker's own.
        """
        place = len(self.workers)
        callbacks = [CALLBACK_QUEUE] if "REFUNDS_CALLBACKS_FILE" in self.settings else []
        queues = ",".join([*(lane.value for lane in Lane), *callbacks])
        name = ["--hostname", f"bench-{place}@%h"]
        python, flag, ours, *rest = command(queues, self.refunds.settings)
        started = [*wrapped, python, flag, module or ours, *rest, *name]
        return self.start(started, f"worker-{place}.log", place)

    def start_floor(self, count: int, *, lean: bool = False) -> subprocess.Popen[bytes]:
        """Start the bare loop over the refunds that `fill` accepted, on the worker's core."""
        wanted = {"count": count, "concurrency": self.concurrency, "lean": lean}
        return self.start(
            [sys.executable, "-m", "ops.lab.bench.floor", json.dumps(wanted)], "floor.log", 0
        )

    def serve(
        self, started: Sequence[str], *, place: int = 0
    ) -> tuple[subprocess.Popen[bytes], str]:
        """Start an HTTP server on a worker's core; return it and its URL once it listens."""
        log = f"server-{len(self.workers)}.log"
        process = self.start(started, log, place)
        said = self.folder / log
        self.until(lambda: LISTENING in said.read_text(errors="replace"), "the server listens")
        url = said.read_text(errors="replace").partition(LISTENING)[2].split()[0]
        return process, url

    def stop_serving(self, process: subprocess.Popen[bytes]) -> None:
        """End an HTTP server and the workers; a second signal ends the server's grace period."""
        process.terminate()
        self.until(lambda: process.poll() is not None or ENDING in self.said(), "it ends")
        self.stop()

    def start(self, started: Sequence[str], log: str, place: int) -> subprocess.Popen[bytes]:
        """Start a process on a worker's core, with its output in a log of this name."""
        with (self.folder / log).open("wb") as file:
            process = subprocess.Popen(  # noqa: S603 - ours
                started, cwd=ROOT, env=self.environment, stdout=file, stderr=file
            )
        self.cores.give(process.pid, place)
        self.workers.append(process)
        return process

    def report_of(self, started: Sequence[str]) -> Any:
        """Run a process on the first worker's core to its end, and return the JSON it prints."""
        with subprocess.Popen(  # noqa: S603 - ours
            started, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            self.cores.give(process.pid, 0)
            said, _ = process.communicate()
        if process.returncode:
            raise WrongCountError(f"{' '.join(started)} ended with {process.returncode}")
        return json.loads(said)

    def await_workers(self) -> None:
        """Wait until every worker started so far has sent its first heartbeat and reads its
        queues.
        """
        self.until(
            lambda: int(self._client.zcard("refunds:workers")) >= len(self.workers),
            "the workers are up",
        )
        # The heartbeat comes before the first read of the queue, and nothing outside the process
        # shows that read.
        time.sleep(1)

    def stop(self) -> None:
        """End the workers in good order: what is in flight is finished."""
        end(self.workers)

    @property
    def _client(self) -> Any:
        return self.refunds.store.redis

    def settled(self) -> int:
        """Return how many refunds have come to their end."""
        return sum(int(value or 0) for value in self._client.hmget("refunds:counters", *_SETTLED))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something holds; a worker that ended by itself ends the wait."""
        end = time.monotonic() + PATIENCE
        while not condition():
            dead = next((process for process in self.workers if process.poll()), None)
            if dead is not None or time.monotonic() > end:
                why = (
                    f"a process ended with {dead.returncode}"
                    if dead
                    else f"{PATIENCE:g} s have passed"
                )
                raise WrongCountError(f"{why} before {what}:\n{self.said()}")
            time.sleep(_POLL)

    def said(self) -> str:
        """Return the end of what the workers logged."""
        return "\n".join(
            log.read_text(errors="replace")[-2000:] for log in sorted(self.folder.glob("*.log"))
        )

    def window(
        self, begin: int, end: int, *, meanwhile: Callable[[], None] | None = None
    ) -> Window:
        """Measure from the moment at which `begin` refunds are settled to that at which `end` are.

        `meanwhile` is called now and then until it is over.
        """

        def reached(count: int) -> bool:
            if meanwhile is not None:
                meanwhile()
            return self.settled() >= count

        self.until(lambda: reached(begin), f"{begin} refunds are settled")
        first, started, before = self.settled(), time.perf_counter(), self._used()
        self.until(lambda: reached(end), f"{end} refunds are settled")
        last, ended, after = self.settled(), time.perf_counter(), self._used()
        worker_cpu, server_cpu, sandbox_cpu = (b - a for a, b in zip(before, after, strict=True))
        return Window(
            refunds=last - first,
            seconds=ended - started,
            worker_cpu=worker_cpu,
            server_cpu=server_cpu,
            sandbox_cpu=sandbox_cpu,
        )

    def _used(self) -> tuple[float, float, float]:
        workers = sum(cpu_seconds_of_family(process.pid) for process in self.workers)
        return workers, cpu_seconds(self.server.pid), cpu_seconds(self._sandbox_process.pid)

    def count(self, expected: int, *, unsent: int = 0) -> None:
        """Count the ledger: `expected` refunds moved money once each, and all else is still queued,
        untouched.

        Raises `WrongCountError`. Call it once all is settled or the workers have ended.
        """
        right, ledger = self.ledger(expected)
        counts = {
            bucket: number for bucket, number in self.refunds.store.counts().items() if number
        }
        queued = counts.pop("queued", 0) + counts.pop("queued.bulk", 0)
        if not right or counts != ({"succeeded": expected} if expected else {}) or queued != unsent:
            raise WrongCountError(
                f"expected {expected} refunds settled and {unsent} queued; the records hold"
                f" {counts} and {queued} queued, the ledger {ledger}:\n{self.said()}"
            )

    def ledger(self, expected: int) -> tuple[bool, dict[str, Any]]:
        """Return whether the ledger holds `expected` refunds, each paid once, and what it holds."""
        summary = self.sandbox.summary()
        right = (
            summary["effects"] == expected
            and not summary["repeated"]
            and not summary["without_refund_id"]
        )
        return right, {name: summary[name] for name in ("effects", "repeated", "without_refund_id")}


_SETTLED: Final = ("settled:succeeded", "settled:failed", "settled:canceled")
