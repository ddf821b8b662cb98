"""Many seeds at once: one process a core, each with a real server of its own."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tests.simulation.bugs.planted import planted
from tests.simulation.bugs.showing import may_show
from tests.simulation.bugs.sources import CAUGHT_BY
from tests.simulation.drawing import plan_for
from tests.simulation.naive import NaiveWorker
from tests.simulation.odd import ON
from tests.simulation.ours import OurWorker
from tests.simulation.records_seam import Wire
from tests.simulation.secrets import log_taken
from tests.simulation.world import Result, World
from worker.sandbox.redis_server import ThrowawayServer

if TYPE_CHECKING:
    from multiprocessing.pool import Pool

CORES: Final = min(8, max(2, os.cpu_count() or 2))
CHUNK: Final = 5
AHEAD: Final = 3
"""Chunks handed out for each core.

None waits for another, and little is left to do when a hunt is over.
"""
MOST_SHOWN: Final = 20

Who = Literal["ours", "naive"]


def rule_of(violation: str) -> str:
    """Return the rule that a violation's sentence begins with, as one word."""
    return violation.partition(":")[0].replace(" ", "_")


@dataclass(kw_only=True)
class Report:
    """What became of many seeds."""

    seeds: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    violated: dict[int, list[str]] = field(default_factory=dict)
    """Seed → what was broken in it."""
    rules: Counter[str] = field(default_factory=Counter)
    """Violations by the rule that was broken."""
    posts: int = 0
    hours: float = 0.0

    def add(self, result: Result) -> None:
        """Count one seed in."""
        self.seeds += 1
        self.fired += result.fired
        self.ends += result.ends
        self.posts += result.posts
        self.hours += result.hours
        if result.violations:
            self.violated[result.seed] = result.violations
            self.rules.update(map(rule_of, result.violations))


def play(
    seed: int,
    wire: Wire,
    *,
    who: Who = "ours",
    wide: bool = False,
    families: Collection[str] = ON,
    tracing: bool = False,
) -> Result:
    """Play one seed from the beginning, with what is odd of these families.

    The control never meets any.
    """
    if who == "naive":
        return World(
            plan_for(seed, families=()), wire, NaiveWorker, mode="effects", tracing=tracing
        ).run()
    return World(
        plan_for(seed, wide=wide, families=families), wire, OurWorker, tracing=tracing
    ).run()


@contextmanager
def wire_to_server() -> Iterator[Wire]:
    """Start a real server that writes nothing to disk, and connect to it."""
    with running_socket() as path:
        wire = Wire(path)
        try:
            yield wire
        finally:
            wire.close()


@contextmanager
def running_socket() -> Iterator[Path]:
    """Start a real server and yield the socket at which it listens."""
    with ThrowawayServer(appendonly="no", appendfsync="no", unixsocket="s.sock") as server:
        folder: Any = server._folder
        yield folder / "s.sock"


_wires: list[Wire] = []


def _connect(paths: Any) -> None:
    """Begin one process of the pool: a server of its own."""
    _wires.append(Wire(paths.get()))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """Some seeds to be played by one process."""

    seeds: range
    who: Who
    bug: str | None
    wide: bool
    families: Collection[str]


def _play_chunk(task: _Task) -> list[Result]:
    with log_taken(), planted(task.bug):
        return [
            play(seed, _wires[0], who=task.who, wide=task.wide, families=task.families)
            for seed in task.seeds
            if may_show(task.bug, seed)
        ]


@dataclass(kw_only=True)
class Arena:
    """Processes and servers that play seeds; made by `arena`."""

    pool: Pool

    def play(
        self,
        start: int,
        stop: int,
        *,
        who: Who = "ours",
        wide: bool = False,
        families: Collection[str] = ON,
        seconds: float = math.inf,
        told: Callable[[Report], None] = lambda _: None,
    ) -> Report:
        """Play the seeds from `start` up to, not with, `stop`, and begin none after `seconds`.

        `told` is called with what there is so far.
        """
        report = Report()
        for results in self._results(
            start, stop, who, None, wide=wide, families=families, until=time.monotonic() + seconds
        ):
            for result in results:
                report.add(result)
            told(report)
        return report

    def hunt(self, bug: str, *, most: int, first: int | None = None) -> Result | None:
        """Play seeds with a bug planted; return one that was caught for what it is, None where none
        was.

        The seed `first` is played before all others.
        """
        likely = range(0) if first is None else range(first, first + 1)
        for seeds in (likely, range(most)):
            for results in self._results(seeds.start, seeds.stop, "ours", bug):
                for result in results:
                    if CAUGHT_BY[bug].intersection(map(rule_of, result.violations)):
                        return result
        return None

    def _results(
        self,
        start: int,
        stop: int,
        who: Who,
        bug: str | None,
        *,
        wide: bool = False,
        families: Collection[str] = ON,
        until: float = math.inf,
    ) -> Iterator[list[Result]]:
        """Yield chunk after chunk, in the order of their seeds."""
        firsts = iter(range(start, stop, CHUNK))
        under_way: deque[Any] = deque()
        while True:
            while (
                len(under_way) < CORES * AHEAD
                and time.monotonic() < until
                and (first := next(firsts, None)) is not None
            ):
                seeds = range(first, min(stop, first + CHUNK))
                task = _Task(seeds=seeds, who=who, bug=bug, wide=wide, families=families)
                under_way.append(self.pool.apply_async(_play_chunk, (task,)))
            if not under_way:
                return
            yield under_way.popleft().get()


@contextmanager
def arena() -> Iterator[Arena]:
    """Start a server and a process for each core; all are ended with the block."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        paths = context.SimpleQueue()
        for _ in range(CORES):
            paths.put(stack.enter_context(running_socket()))
        pool = stack.enter_context(context.Pool(CORES, initializer=_connect, initargs=(paths,)))
        yield Arena(pool=pool)
        pool.close()
        pool.join()
