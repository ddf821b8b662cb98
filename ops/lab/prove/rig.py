"""An installation to be hurt: a real server with AOF, the sandbox as a process, worker processes, a
proxy on each way.

Everything is on loopback, in a folder of its own, and ended by the id with which it was started.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

import redis

from ops.lab.opened import Opened
from ops.lab.prove.proxy import FaultProxy
from worker.errors import StoreUnavailable
from worker.model.request import RefundRequest
from worker.sandbox.installation import environment, sandbox_process
from worker.sandbox.redis_server import ThrowawayServer
from worker.sandbox.running import Sandbox

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[3]
CANARY: Final = "sk_test_canary_that_nobody_may_see"
WEBHOOK_CANARY: Final = "whsec_canary_that_is_never_shown"
LATENCY_MS: Final = 20
TIMEOUT: Final = 1.5
LEASE: Final = 7.0
SETTLE: Final = 1.5
LATE_EFFECT: Final = 2.5
"""How late the sandbox executes what it has read.

After the client has left, and inside two settle times.
"""
PATIENCE: Final = 60.0
STOP_SECONDS: Final = 30.0
_POLL: Final = 0.05
_AWAY: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
    OSError,
)
_REDIS_TROUBLE: Final = (redis.RedisError, OSError, StoreUnavailable)


class RigError(RuntimeError):
    """The installation did not do what a scenario needs before anything can be judged."""


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How doubts are settled, and what the provider does with keys."""

    idempotency: str = "verify"
    readback: str = "list"
    keys: str = "ignore"
    store_5xx: bool = False
    totals: str = "proof"

    @property
    def shown(self) -> str:
        """The mode in a few words."""
        stored = ", 5xx kept" if self.store_5xx else ""
        kept = "honoured" if self.keys == "honour" else "ignored"
        readback = (
            self.readback if self.totals == "proof" else f"{self.readback} as a {self.totals}"
        )
        return f"{self.idempotency}, {readback}; keys {kept}{stored}"

    @property
    def settings(self) -> dict[str, str]:
        """The variables that say so to a worker."""
        settings = {
            "REFUNDS_IDEMPOTENCY": self.idempotency,
            "REFUNDS_READBACK": self.readback,
            "REFUNDS_TOTALS": self.totals,
        }
        # A refusal of a replay is replayed until the attempts are spent, each time twice as far
        # apart.
        return settings | ({"REFUNDS_MAX_ATTEMPTS": "3"} if self.idempotency == "trust" else {})


class Subject(Protocol):
    """The worker under proof: the product, or the control."""

    name: str

    def worker(self, asked: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, str]]:
        """Return the command of one worker process with what it is asked to suffer, and its
        variables.
        """

    def accept(self, requests: Sequence[RefundRequest]) -> None:
        """Accept refunds as a producer would; raises what a producer would see where Redis is
        away.
        """

    def open(self, redis_url: str) -> None:
        """Connect the producer."""

    def close(self) -> None:
        """Leave."""

    def unsettled(self, refund_ids: Sequence[str]) -> int:
        """Return how many of the refunds have come to no end yet, nor to a person."""

    def sending(self, refund_ids: Sequence[str]) -> int:
        """Return how many are being sent, as far as that is told."""

    @property
    def is_ours(self) -> bool:
        """Tell whether it is the product."""


@dataclass
class Worker:
    """One worker process; `expected` once its end was our doing, `stopped` once a fault has stopped
    it for long.
    """

    process: subprocess.Popen[bytes]
    log: Path
    expected: bool = False
    stopped: bool = False

    @property
    def alive(self) -> bool:
        """Tell whether it runs."""
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@dataclass(eq=False)
class Rig(Opened):
    """One installation; use it in a `with`."""

    subject: Subject
    mode: Mode = field(default_factory=Mode)
    fsync: str = "always"
    asked: Sequence[Mapping[str, Any]] = ({}, {})
    """One entry a worker: what it is to suffer from its start on."""
    settings: Mapping[str, str] = field(default_factory=dict)
    plan: Iterator[RefundRequest] = field(default_factory=lambda: iter(()))
    seed: int = 0
    folder: Path = field(default_factory=Path)
    workers: list[Worker] = field(default_factory=list)
    beside: list[Worker] = field(default_factory=list)
    """Further processes of the installation, which no supervisor starts again."""
    secrets: list[str] = field(default_factory=list)
    """Further secrets of this installation, which no log and no record may hold."""
    conditions: list[Callable[[], bool]] = field(default_factory=list)
    """What must hold, beside the refunds' own ends, before a run is at rest."""
    accepted: dict[str, RefundRequest] = field(default_factory=dict)
    kills: list[float] = field(default_factory=list)
    """When workers were killed, in epoch seconds."""
    key_refused: list[tuple[float, float]] = field(default_factory=list)
    """From when to when the provider refused the key, in epoch seconds."""
    alarmed: bool = True
    """Whether a refused key was noticed in time."""
    held: list[tuple[float, float]] = field(default_factory=list)
    """From when to when no worker may claim anything, in epoch seconds."""
    fault_end: float = 0.0
    restarts: int = 0
    clock_off: float = 0.0
    """By how many seconds the records' time may differ from this process's by design."""
    history_lost: bool = False
    """The server was put back to an old state: what was recorded in between is gone, by design."""

    _open: ClassVar[list[Rig]] = []
    """Installations that stand now, in whatever thread."""
    _starting: ClassVar[threading.Lock] = threading.Lock()
    _over: ClassVar[bool] = False
    """Whether the command has been told to end: nothing is started any more."""

    def __post_init__(self) -> None:
        self._feeding = threading.Lock()
        self._ended = False
        self._sandbox_process: subprocess.Popen[str] | None = None

    @classmethod
    def end_all(cls) -> None:
        """End whatever was started, at once and by its id, and remove its folders.

        The command was told to end.
        """
        with cls._starting:
            cls._over = True
        for rig in [*cls._open]:
            rig.end()

    def end(self) -> None:
        """End this one in the midst of whatever it is at."""
        started = [worker.process for worker in (*self.workers, *self.beside)]
        processes = [each for each in (self._sandbox_process, *started) if each is not None]
        for process in processes:
            process.kill()
        self.server.kill()
        self.server.stop()
        for process in processes:
            # On a busy machine one that was killed is there for a moment more.
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _enter_parts(self, stack: ExitStack) -> None:
        self.folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="refunds-prove-"))
        )
        self.server = ThrowawayServer(appendfsync=self.fsync)
        with self._starting:
            if self._over:
                raise RigError("the command was told to end")
            self._open.append(self)
            stack.callback(self._open.remove, self)
            self._start_servers(stack)
        self.sandbox = stack.enter_context(self._sandbox_running())
        self.to_redis = stack.enter_context(FaultProxy(self.server.port))
        self.to_provider = stack.enter_context(FaultProxy(int(self.sandbox.url.rpartition(":")[2])))
        self.redis = stack.enter_context(self._direct())
        self.subject.open(self.url)
        stack.callback(self.subject.close)
        self.started = time.time()
        stack.callback(self._end_workers)

    # A rig with several servers has others of these.

    def _start_servers(self, stack: ExitStack) -> None:
        stack.enter_context(self.server)

    def _direct(self) -> redis.Redis:
        """Return the judge's own client, past every proxy."""
        return redis.Redis(
            host="127.0.0.1", port=self.server.port, decode_responses=True, socket_timeout=5
        )

    @property
    def url(self) -> str:
        """The address of the records for producers."""
        return self.server.url

    @property
    def url_for_workers(self) -> str:
        """The address of the records for workers."""
        return f"redis://127.0.0.1:{self.to_redis.port}/0"

    @contextmanager
    def _sandbox_running(self) -> Iterator[Sandbox]:
        options = ["--latency", str(LATENCY_MS), "--idempotency", self.mode.keys, "--settle", "400"]
        # Its errors repeat what they were asked: nothing of that may stay with a worker.
        options += ["--indiscreet", "--seed", str(self.seed), "--log-requests", "1000000"]
        options += ["--store-5xx"] if self.mode.store_5xx else []
        with sandbox_process(*options, log=self.folder / "sandbox.log", cwd=ROOT) as provider:
            self._sandbox_process = provider.process
            yield provider.sandbox

    # Workers

    @property
    def environment(self) -> dict[str, str]:
        """What every worker is started with: proxies in the place of Redis and the provider."""
        variables = {
            "REFUNDS_REDIS_URL": self.url_for_workers,
            "REFUNDS_API_URL": f"http://127.0.0.1:{self.to_provider.port}",
            "REFUNDS_API_KEY": CANARY,
            "REFUNDS_SETTLE_SECONDS": str(SETTLE),
            "REFUNDS_REQUEST_TIMEOUT_SECONDS": str(TIMEOUT),
            "REFUNDS_LEASE_SECONDS": str(LEASE),
            "REFUNDS_CONCURRENCY": "16",
            "REFUNDS_LOG_FORMAT": "json",
            **self.mode.settings,
            **self.settings,
        }
        return environment(variables, without=("REFUNDS_", "NAIVE_"))

    def launch(self, **asked: Any) -> Worker:
        """Start a worker process, with what it is asked to suffer; it is not waited for."""
        started, variables = self.subject.worker(asked, f"prove-{len(self.workers)}@%h")
        log = self.folder / f"worker-{len(self.workers)}.log"
        return self._started(started, self.environment | variables, log, self.workers)

    def launch_beside(self, command: Sequence[str], variables: Mapping[str, str]) -> Worker:
        """Start a further process of the installation; it is not waited for."""
        log = self.folder / f"beside-{len(self.beside)}.log"
        return self._started(command, variables, log, self.beside)

    def _started(
        self, command: Sequence[str], variables: Mapping[str, str], log: Path, among: list[Worker]
    ) -> Worker:
        with log.open("wb") as file, self._starting:
            if self._over or self._ended:
                raise RigError("the command was told to end, or the run is over")
            process = subprocess.Popen(  # noqa: S603 - our own modules
                command,
                env=variables,
                stdout=file,
                stderr=file,
                cwd=ROOT,
                start_new_session=True,
            )
            worker = Worker(process, log)
            among.append(worker)
        return worker

    def start(self) -> None:
        """Start the workers wanted and wait until each reads its queues."""
        self.supervise()
        self.until(lambda: all(is_up(worker) for worker in self.alive), "the workers are up")

    @property
    def alive(self) -> list[Worker]:
        """The workers that run."""
        return [worker for worker in self.workers if worker.alive]

    def supervise(self) -> None:
        """Start workers in the place of those that have ended, as a supervisor would."""
        for worker in self.workers:
            if not worker.alive and not worker.expected:
                worker.expected = True
                self.restarts += 1
        for place in range(len(self.alive), len(self.asked)):
            self.launch(**self.asked[place])

    def kill(self, worker: Worker) -> None:
        """SIGKILL, as the kernel would, and note when."""
        worker.expected = True
        worker.process.kill()
        worker.process.wait(PATIENCE)
        self.kills.append(time.time())

    def _end_workers(self) -> None:
        with self._starting:
            self._ended = True
        for worker in self.beside:
            worker.process.kill()
            worker.process.wait(PATIENCE)
        for worker in self.alive:
            # A stopped process hears no other signal.
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for worker in self.alive:
            try:
                worker.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait(PATIENCE)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all workers for as long as this lasts: a moment in which a queue holds still."""
        held = [worker for worker in self.alive if not worker.stopped]
        for worker in held:
            worker.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in held:
                worker.signal(signal.SIGCONT)

    # Refunds

    def drawn(self, count: int) -> list[RefundRequest]:
        """Return the next refunds of the plan, to be accepted; safe from several threads."""
        with self._feeding:
            return list(islice(self.plan, count))

    def feed(self, count: int) -> list[RefundRequest]:
        """Accept the next refunds of the plan and return them; safe from several threads."""
        with self._feeding:
            requests = list(islice(self.plan, count))
            self.accept(requests)
        return requests

    def accept(self, requests: Sequence[RefundRequest]) -> None:
        """Hand refunds in until each is acknowledged, as a producer that repeats itself does."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.subject.accept(requests)
                break
            except _REDIS_TROUBLE:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        self.accepted.update((request.refund_id, request) for request in requests)

    def settled(self) -> bool:
        """Tell whether every accepted refund has come to its end, or to a person."""
        try:
            return self.subject.unsettled(list(self.accepted)) == 0
        except _REDIS_TROUBLE:
            return False

    def sending(self) -> int:
        """Return how many refunds are being sent now."""
        try:
            return self.subject.sending(list(self.accepted))
        except _REDIS_TROUBLE:
            return 0

    def drain(self, seconds: float) -> bool:
        """Wait until all is settled, with dead workers replaced; return whether it came to that."""
        end = time.monotonic() + seconds
        while not (done := self._at_rest()) and time.monotonic() < end:
            self.supervise()
            time.sleep(0.2)
        return done

    def _at_rest(self) -> bool:
        return self.settled() and all(condition() for condition in self.conditions)

    def effects(self) -> int:
        """Return how many effects the provider's ledger holds."""
        return int(self.sandbox.summary()["effects"])

    def asking(self, ask: Callable[[], T]) -> T:
        """Ask the server directly, again while it is away, full or read-only."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return ask()
            except _AWAY:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def until(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Wait until a condition of another process holds.

        Raises `RigError` with what was waited for.
        """
        if not self.within(condition, seconds):
            raise RigError(f"waited {seconds:g} s in vain until {what}")

    def within(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait at most so long for a condition; return whether it came."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(_POLL)
        return True

    def errors_of_server(self, word: str) -> int:
        """Return how often the server has refused with this word since it was started."""
        facts: Any = self.asking(lambda: self.redis.info("errorstats"))
        found = facts.get(f"errorstat_{word}", {})
        return int(found["count"]) if found else 0

    def keep(self, folder: Path, evidence: Mapping[str, Any]) -> None:
        """Copy the logs and what was found to a folder that outlives this run."""
        folder.mkdir(parents=True, exist_ok=True)
        for log in self.folder.glob("*.log"):
            with suppress(OSError):
                (folder / log.name).write_bytes(log.read_bytes())
        (folder / "evidence.json").write_text(
            json.dumps(evidence, indent=1, default=str), encoding="utf-8"
        )


def is_up(worker: Worker) -> bool:
    """Tell whether a worker said that it reads its queues, or has ended."""
    return not worker.alive or " ready." in worker.log.read_text(errors="replace")
