"""Accepting, and memory: of the producer, of the server a settled refund, of a worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

from ops.lab.bench import handing_in
from ops.lab.bench.machine import family, resident_mb
from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import Mode, Rig
from ops.lab.bench.table import Row, at_least, number, quantile, spread
from worker.model.refund import Lane

ACCEPT_RATE: Final = 15_000
HAND_IN_RATE: Final = 4_000
SUBMIT_MORE_MS: Final = 0.7
THREADS: Final = 64
_THREADED: Final = ("threads", f"{THREADS} threads that submit one by one")
BYTES_A_REFUND: Final = 1_000
WORKER_MB: Final = 110
IN_FLIGHT: Final = 128
FLAT_MB: Final = 5.0
WARM: Final = 1_000
_EVENTS_KEY: Final = "refunds:events"


def accept(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield how fast `submit_many` accepts on a core of its own, and what it holds while it
    does.
    """
    reports: list[dict[str, Any]] = []
    for _ in range(plan.rounds):
        with Rig(plan.cores) as rig:
            command = [sys.executable, "-m", "ops.lab.bench.accepting", str(plan.accepted)]
            reports.append(rig.report_of(command))
            rig.count(0, unsent=plan.accepted)
    rates = [report["rate"] for report in reports]
    growth = [report["end_mb"] - report["early_mb"] for report in reports]
    yield Row(
        figure="accept: submit_many",
        setting=f"{plan.accepted:,} refunds, each on disk before it counts",
        measured=(
            f"{spread(rates)} a second, {spread([report['cpu_us'] for report in reports])} µs CPU"
        ),
        to_reach=f"at least {ACCEPT_RATE:,}",
        reached=at_least(rates, ACCEPT_RATE),
    )
    yield Row(
        figure="accept: memory",
        setting="from the first fifth to the end",
        measured=(
            f"{spread([report['end_mb'] for report in reports], 'MB')}, grown by"
            f" {spread(growth, 'MB')}"
        ),
        to_reach="flat",
        reached=max(growth) < FLAT_MB,
    )


def handed_in(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield how fast single refunds are handed in: in a stream, from threads, and one alone."""
    reports: list[dict[str, Any]] = []
    for _ in range(plan.rounds):
        with Rig(plan.cores) as rig:
            wanted = (str(plan.handed_in), str(THREADS))
            report = rig.report_of((sys.executable, "-m", "ops.lab.bench.handing_in", *wanted))
            reports.append(report)
            rig.count(0, unsent=handing_in.accepted(plan.handed_in))
    for name, setting in (("stream", "submit_many in the lane of single refunds"), _THREADED):
        rates = [report[name] for report in reports]
        yield Row(
            figure="handing in: single refunds a second",
            setting=setting,
            measured=spread(rates),
            to_reach=f"at least {HAND_IN_RATE:,}",
            reached=at_least(rates, HAND_IN_RATE),
        )
    submits = [seconds * 1e3 for report in reports for seconds in report["submits"]]
    writes = [seconds * 1e3 for report in reports for seconds in report["writes"]]
    for part, most in ((0.50, SUBMIT_MORE_MS), (0.99, None)):
        taken, bare = quantile(submits, part), quantile(writes, part)
        yield Row(
            figure=f"handing in: one submit alone, p{part * 100:.0f}",
            setting=f"{len(submits)} refunds; the floor is one bare write",
            measured=f"{number(taken)} ms",
            floor=f"{number(bare)} ms",
            ratio=f"{taken - bare:+.2f} ms",
            to_reach="" if most is None else f"at most {most:+g} ms",
            reached=None if most is None else taken - bare <= most,
        )


def _held(redis: Any) -> tuple[int, int]:
    """Return the server's bytes in use without the events' stream, and those of the stream."""
    events = int(redis.memory_usage(_EVENTS_KEY, samples=0) or 0)
    return int(redis.info("memory")["used_memory"]) - events, events


def _resident(pid: int, *, peak: bool = False) -> float:
    """Return the MB of a process and those below it."""
    return sum(resident_mb(each, peak=peak) for each in family(pid))


def memory(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield what settled refunds hold in the server, and what `refunds worker`, its supervisor
    included, holds over many of them at 128 in flight.
    """
    with Rig(plan.cores, Mode(latency_ms=20), concurrency=IN_FLIGHT) as rig:
        redis: Any = rig.refunds.store.redis
        worker = rig.start([sys.executable, "-m", "worker", "worker"], "worker-0.log", 0)
        # Scripts and clients take their memory once, whatever comes after.
        rig.fill(WARM, Lane.BULK, name="warm")
        rig.until(lambda: rig.settled() >= WARM, "the first are settled")
        before = _held(redis)
        rig.fill(plan.held, Lane.BULK)
        rig.until(lambda: rig.settled() >= WARM + plan.held // 5, "a fifth is settled")
        early = _resident(worker.pid)
        rig.until(lambda: rig.settled() >= WARM + plan.held, "all are settled")
        late, peak = _resident(worker.pid), _resident(worker.pid, peak=True)
        rig.stop()
        rig.count(WARM + plan.held)
        each, events = (
            (now - then) / plan.held for then, now in zip(before, _held(redis), strict=True)
        )
    yield Row(
        figure="Redis memory a settled refund",
        setting=f"{plan.held:,} refunds; record, history, payment and indexes",
        measured=f"{number(each)} bytes, and {number(events)} of the events' stream (capped)",
        to_reach=f"under {BYTES_A_REFUND:,} bytes",
        reached=each < BYTES_A_REFUND,
    )
    yield Row(
        figure="worker memory",
        setting=f"{IN_FLIGHT} in flight, {plan.held:,} refunds; with its supervisor",
        measured=(
            f"{number(peak)} MB at most; {number(early)} MB after a fifth, {number(late)} MB at"
            " the end"
        ),
        to_reach=f"under {WORKER_MB} MB, flat",
        reached=peak < WORKER_MB and late - early < FLAT_MB,
    )
