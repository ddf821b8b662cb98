"""The worker beside what people would use instead, and beside bare loops, all doing the same job in
the same run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import click
import redis

from ops.lab.bench.machine import family
from ops.lab.bench.peers.job import RECORDS_DATABASE, records_url
from ops.lab.bench.plan import TRUST, Plan
from ops.lab.bench.rig import Rig, Window, WrongCountError
from ops.lab.bench.table import Row, Standing, at_least, at_most, spread

FOLDER: Final = "ops.lab.bench.peers"
MODE: Final = TRUST[0]
OF_HTTPX: Final = 0.95
OF_AIOHTTP: Final = 0.60
OF_BEST: Final = 2.0
OF_BEST_CPU: Final = 0.5
_FROM: Final = 0.10
_TO: Final = 0.95
_AT_ONCE: Final = 1_000

Command = Callable[[int, int], Sequence[str]]
"""Makes the command line behind `python -m` from the calls in flight and the number of refunds."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way of doing the job; without a command it is this worker."""

    name: str
    module: str
    command: Command | None = None
    packages: Sequence[str] = ()
    """What it imports and the project's own dependencies do not bring."""
    has_queue: bool = True


def _celery(module: str, pool: str) -> Command:
    return lambda in_flight, _: (
        *("celery", "--quiet", "--app", f"{FOLDER}.{module}", "worker", "--pool", pool),
        *("--concurrency", str(in_flight), "--loglevel", "warning"),
        *("--without-mingle", "--without-gossip"),
    )


def _dramatiq(in_flight: int, _count: int) -> Sequence[str]:
    # A thread waits for each coroutine, so there are as many threads as calls in flight.
    return (
        *("dramatiq", f"{FOLDER}.dramatiq_asyncio"),
        *("--processes", "1", "--threads", str(in_flight)),
    )


def _taskiq(in_flight: int, _count: int) -> Sequence[str]:
    return (
        *("taskiq", "worker", f"{FOLDER}.taskiq_streams:broker", "--workers", "1"),
        *("--max-async-tasks", str(in_flight), "--max-prefetch", str(in_flight)),
        *("--ack-type", "when_executed", "--log-level", "WARNING"),
    )


def _bare(client: str) -> Command:
    return lambda _, count: (f"{FOLDER}.bare", client, str(count))


AIOHTTP: Final = Contender(
    name="bare loop, plain aiohttp", module="bare", command=_bare("aiohttp"), has_queue=False
)
HTTPX: Final = Contender(
    name="bare loop, httpx over aiohttp", module="bare", command=_bare("httpx"), has_queue=False
)
FILES: Final = Contender(name="this worker, files", module="ours_files")
SINGLE: Final = Contender(name="this worker, one refund a message", module="ours_single")
PEERS: Final = (
    Contender(
        name="taskiq, httpx over aiohttp",
        module="taskiq_streams",
        command=_taskiq,
        packages=("taskiq", "taskiq_redis"),
    ),
    Contender(
        name="dramatiq, httpx over aiohttp",
        module="dramatiq_asyncio",
        command=_dramatiq,
        packages=("dramatiq",),
    ),
    Contender(
        name="Celery threads, shared httpx.Client",
        module="celery_threads",
        command=_celery("celery_threads", "threads"),
    ),
    Contender(
        name="Celery prefork, requests",
        module="celery_prefork",
        command=_celery("celery_prefork", "prefork"),
        packages=("requests",),
    ),
)
CONTENDERS: Final = (AIOHTTP, HTTPX, FILES, SINGLE, *PEERS)


def require() -> None:
    """Raise `click.ClickException`, with the command that installs it, if a peer is missing."""
    wanted = [package for contender in CONTENDERS for package in contender.packages]
    if missing := [package for package in wanted if find_spec(package) is None]:
        raise click.ClickException(
            f"the figure 'peers' measures {', '.join(missing)}, which this environment does not"
            f" have: install it with '{sys.executable} -m pip install -e .[bench]'"
        )


class PeerRig(Rig):
    """An installation with the peers' own records: one key a refund, in a database of theirs."""

    def _enter_parts(self, stack: ExitStack) -> None:
        super()._enter_parts(stack)
        self._records: Any = stack.enter_context(redis.Redis.from_url(records_url(self.server.url)))

    def stop(self) -> None:
        """End the peers with all their processes: nothing is in flight any more.

        Not in good order, since a process below taskiq's stays after the signal that asks for that.
        """
        for process in self.workers:
            if process.poll() is None:
                for pid in sorted(family(process.pid), key=lambda pid: pid != process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()

    def settled(self) -> int:
        """Return how many records are settled: those alone expire."""
        keys = self._records.info("keyspace").get(f"db{RECORDS_DATABASE}", {})
        return int(keys.get("expires", 0))

    def count(self, expected: int, *, unsent: int = 0) -> None:
        """Count the ledger and the records: `expected` refunds moved money once each, and as many
        more have no record as are `unsent`.

        Raises `WrongCountError`.
        """
        right, ledger = self.ledger(expected)
        statuses: dict[str, int] = defaultdict(int)
        keys = list(self._records.scan_iter(count=_AT_ONCE))
        for start in range(0, len(keys), _AT_ONCE):
            for text in self._records.mget(keys[start : start + _AT_ONCE]):
                statuses[json.loads(text)["status"]] += 1
        if not right or statuses != ({"succeeded": expected} if expected else {}):
            raise WrongCountError(
                f"expected {expected} refunds settled and {unsent} without a record; the records"
                f" hold {dict(statuses)}, the ledger {ledger}:\n{self.said()}"
            )


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one contender did in one round."""

    window: Window
    accepted: float | None
    """Refunds a second that its producer handed in."""


def measured(plan: Plan, contender: Contender) -> Taken:
    """Hand in all refunds, then start what makes them, and measure while it is at full pace."""
    kind = Rig if contender.command is None else PeerRig
    # A file goes as fast as the loops, so as many refunds of it take as long.
    has_many = contender in {AIOHTTP, HTTPX, FILES}
    count = plan.beside_files if has_many else plan.beside
    python = (sys.executable, "-m")
    with kind(plan.cores, MODE, concurrency=plan.beside_in_flight) as rig:
        accepted = None
        if contender.has_queue:
            command = (*python, f"{FOLDER}.hand_in", contender.module, str(count))
            accepted = rig.report_of(command)["rate"]
        if contender.command is None:
            rig.start_worker()
        else:
            started = contender.command(plan.beside_in_flight, count)
            rig.start((*python, *started), "peer.log", 0)
        window = rig.window(max(int(count * _FROM), rig.settled()), int(count * _TO))
        rig.until(lambda: rig.settled() >= count, "all are settled")
        rig.stop()
        rig.count(count)
    return Taken(window=window, accepted=accepted)


def peers(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row | Standing]:
    """Yield what each contender reached, then this worker against the loops and the best peer."""
    taken: dict[Contender, list[Taken]] = defaultdict(list)
    for _ in range(plan.rounds):
        for contender in CONTENDERS:
            taken[contender].append(measured(plan, contender))
    for contender in CONTENDERS:
        yield _standing(contender, taken)
    yield from _judged(taken)


def _rates(rounds: Sequence[Taken]) -> list[float]:
    return [each.window.rate for each in rounds]


def _over(values: Sequence[float], floors: Sequence[float]) -> list[float]:
    return [value / floor for value, floor in zip(values, floors, strict=True)]


def _standing(contender: Contender, taken: dict[Contender, list[Taken]]) -> Standing:
    rounds = taken[contender]
    rates = _rates(rounds)
    accepted = [each.accepted for each in rounds if each.accepted is not None]
    return Standing(
        name=contender.name,
        rate=spread(rates),
        cpu=spread([each.window.cpu_ms for each in rounds], "ms"),
        accepted=spread(accepted) if accepted else "",
        of_httpx=spread(_over(rates, _rates(taken[HTTPX]))),
        of_aiohttp=spread(_over(rates, _rates(taken[AIOHTTP]))),
    )


def _judged(taken: dict[Contender, list[Taken]]) -> Iterator[Row]:
    for floor, least in ((HTTPX, OF_HTTPX), (AIOHTTP, OF_AIOHTTP)):
        ratios = _over(_rates(taken[FILES]), _rates(taken[floor]))
        yield Row(
            figure="peers: refunds of a file a second",
            setting=floor.name,
            measured=spread(_rates(taken[FILES])),
            floor=spread(_rates(taken[floor])),
            ratio=spread(ratios),
            to_reach=f"at least {least:.2f}",
            reached=at_least(ratios, least),
        )
    # The best of a round, whichever it is.
    best = [max(_rates(rounds)) for rounds in _by_round(taken)]
    ratios = _over(_rates(taken[SINGLE]), best)
    yield Row(
        figure="peers: single refunds a second",
        setting="the best peer",
        measured=spread(_rates(taken[SINGLE])),
        floor=spread(best),
        ratio=spread(ratios),
        to_reach=f"at least {OF_BEST:.1f}",
        reached=at_least(ratios, OF_BEST),
    )
    costs = [each.window.cpu_ms for each in taken[SINGLE]]
    least_costs = [min(each.window.cpu_ms for each in rounds) for rounds in _by_round(taken)]
    ratios = _over(costs, least_costs)
    yield Row(
        figure="peers: CPU a single refund",
        setting="the best peer",
        measured=spread(costs, "ms"),
        floor=spread(least_costs, "ms"),
        ratio=spread(ratios),
        to_reach=f"at most {OF_BEST_CPU}",
        reached=at_most(ratios, OF_BEST_CPU),
    )
    handed_in = [each.accepted or 0.0 for each in taken[SINGLE]]
    most = [max(each.accepted or 0.0 for each in rounds) for rounds in _by_round(taken)]
    yield Row(
        figure="peers: handed in one by one, a second",
        setting="the best peer",
        measured=spread(handed_in),
        floor=spread(most),
        ratio=spread(_over(handed_in, most)),
    )


def _by_round(taken: dict[Contender, list[Taken]]) -> list[tuple[Taken, ...]]:
    """Return what the peers did, round by round."""
    return list(zip(*(taken[peer] for peer in PEERS), strict=True))
