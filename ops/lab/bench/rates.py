"""Refunds a second and what one costs.

Bulk and single against the floor, two workers, a long queue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Final

from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import CONCURRENCY, Mode, Rig, Window
from ops.lab.bench.table import Row, at_least, at_most, number, spread
from worker.broker.names import BULK_IDS
from worker.model.refund import Lane

BULK_RATE: Final = 0.80
BULK_CPU: Final = 1.25
SINGLE_RATE: Final = 0.45
SECOND_WORKER: Final = 1.8
BACKLOG_DRIFT: Final = 0.10
_FROM: Final = 0.10
_TO: Final = 0.95


FLOORS: Final = ("floor", "leaner floor")
UNFILLED: Final = 40
"""Calls in flight at 200 ms that fill a quarter of a core or less, so that two workers do not wait
for the machine.
"""


def measured(
    plan: Plan,
    mode: Mode,
    what: str,
    count: int,
    *,
    workers: int = 1,
    concurrency: int = CONCURRENCY,
    replicas: int = 0,
) -> Window:
    """Fill the queue, start what is to be measured, and measure while it is neither starting nor
    running dry.
    """
    with Rig(plan.cores, mode, concurrency=concurrency, replicas=replicas) as rig:
        rig.fill(count, Lane.SINGLE if what == "single" else Lane.BULK)
        for _ in range(workers):
            if what in FLOORS:
                rig.start_floor(count, lean=what == "leaner floor")
            else:
                rig.start_worker()
        if workers > 1:
            rig.await_workers()
        window = rig.window(max(int(count * _FROM), rig.settled()), int(count * _TO))
        rig.until(lambda: rig.settled() >= count, "all are settled")
        rig.stop()
        rig.count(count)
        return window


def against_floor(plan: Plan, wanted: frozenset[str]) -> Iterator[Row]:
    """Yield bulk and single, each with the floor of the same round, setting by setting."""
    taken: dict[tuple[Mode, str], list[Window]] = defaultdict(list)
    contenders = [*FLOORS, *(lane for lane in ("bulk", "single") if lane in wanted)]
    for _ in range(plan.rounds):
        for mode in plan.modes:
            for what in contenders:
                count = plan.single if what == "single" else plan.bulk
                taken[mode, what].append(measured(plan, mode, what, count))
    for lane in contenders[len(FLOORS) :]:
        for mode in plan.modes:
            yield from _compared(lane, mode, taken[mode, lane], taken[mode, "floor"])
            yield _beside_leaner(lane, mode, taken[mode, lane], taken[mode, "leaner floor"])


def _beside_leaner(lane: str, mode: Mode, windows: list[Window], floors: list[Window]) -> Row:
    """Return rate and cost against the floor that takes the worker's own short way through the
    client.
    """
    rates = [window.rate / floor.rate for window, floor in zip(windows, floors, strict=True)]
    costs = [window.cpu_ms / floor.cpu_ms for window, floor in zip(windows, floors, strict=True)]
    return Row(
        figure=f"{lane}: with the leaner floor",
        setting=mode.shown,
        measured=(
            f"{number(median(w.rate for w in windows))} a second,"
            f" {number(median(w.cpu_ms for w in windows))} ms"
        ),
        floor=(
            f"{number(median(f.rate for f in floors))} a second,"
            f" {number(median(f.cpu_ms for f in floors))} ms"
        ),
        ratio=f"rate {spread(rates)}, CPU {spread(costs)}",
    )


def _compared(lane: str, mode: Mode, windows: list[Window], floors: list[Window]) -> Iterable[Row]:
    rates = [window.rate / floor.rate for window, floor in zip(windows, floors, strict=True)]
    costs = [window.cpu_ms / floor.cpu_ms for window, floor in zip(windows, floors, strict=True)]
    is_beside = mode.wants_baseline
    least = BULK_RATE if lane == "bulk" else SINGLE_RATE
    yield Row(
        figure=f"{lane}: refunds a second",
        setting=mode.shown,
        measured=spread([window.rate for window in windows]),
        floor=spread([floor.rate for floor in floors]),
        ratio=spread(rates),
        to_reach="" if is_beside else f"at least {least:.2f}",
        reached=None if is_beside else at_least(rates, least),
    )
    judged = lane == "bulk" and not is_beside
    yield Row(
        figure=f"{lane}: CPU a refund",
        setting=mode.shown,
        measured=spread([window.cpu_ms for window in windows], "ms"),
        floor=spread([floor.cpu_ms for floor in floors], "ms"),
        ratio=spread(costs),
        to_reach=f"at most {BULK_CPU}" if judged else "",
        reached=at_most(costs, BULK_CPU) if judged else None,
    )


def two_workers(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield what a second worker process adds.

    On a core of its own, and where neither fills its core.
    """
    mode = plan.modes[0]
    slow = Mode(latency_ms=200, idempotency="trust")
    ones, twos, idle_ones, idle_twos = [], [], [], []
    for _ in range(plan.rounds):
        ones.append(measured(plan, mode, "bulk", plan.bulk))
        twos.append(measured(plan, mode, "bulk", 2 * plan.bulk, workers=2))
        idle_ones.append(measured(plan, slow, "bulk", plan.bulk // 4, concurrency=UNFILLED))
        idle_twos.append(
            measured(plan, slow, "bulk", plan.bulk // 2, workers=2, concurrency=UNFILLED)
        )
    gains = [two.rate / one.rate for one, two in zip(ones, twos, strict=True)]
    shared = plan.cores.second_is_shared
    idle_gains = [two.rate / one.rate for one, two in zip(idle_ones, idle_twos, strict=True)]
    yield Row(
        figure="two workers that do not fill their cores",
        setting=f"{slow.shown}, {UNFILLED} in flight each",
        measured=spread([two.rate for two in idle_twos]),
        floor=spread([one.rate for one in idle_ones]) + " with one",
        ratio=spread(idle_gains),
        to_reach=f"at least {SECOND_WORKER}",
        reached=at_least(idle_gains, SECOND_WORKER),
    )
    yield Row(
        figure="two workers on two cores",
        setting=mode.shown + ("; the second core also runs server and sandbox" if shared else ""),
        measured=spread([two.rate for two in twos]),
        floor=spread([one.rate for one in ones]) + " with one",
        ratio=spread(gains),
        to_reach=f"at least {SECOND_WORKER}",
        reached=at_least(gains, SECOND_WORKER),
    )
    yield Row(
        figure="two workers: CPU a refund",
        setting=mode.shown,
        measured=spread([two.cpu_ms for two in twos], "ms"),
        floor=spread([one.cpu_ms for one in ones], "ms") + " with one",
        ratio=spread([two.cpu_ms / one.cpu_ms for one, two in zip(ones, twos, strict=True)]),
    )


def backlog(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield the rate and the cost at each depth of the queue, against the shortest one."""
    mode = plan.modes[0]
    taken: dict[int, list[Window]] = defaultdict(list)
    for _ in range(plan.rounds):
        for depth in plan.backlogs:
            taken[depth].append(_at_depth(plan, mode, depth))
    shortest = taken[plan.backlogs[0]]
    for depth in plan.backlogs:
        rates = [
            window.rate / first.rate for window, first in zip(taken[depth], shortest, strict=True)
        ]
        is_first = depth == plan.backlogs[0]
        costs = [window.cpu_ms for window in taken[depth]]
        yield Row(
            figure="cost against backlog",
            setting=f"{mode.shown}, {depth:,} queued",
            measured=(
                f"{spread([window.rate for window in taken[depth]])},"
                f" {number(sum(costs) / len(costs))} ms CPU"
            ),
            ratio="" if is_first else spread(rates),
            to_reach="" if is_first else f"within {BACKLOG_DRIFT:.0%}",
            reached=None if is_first else at_least(rates, 1 - BACKLOG_DRIFT),
        )


def _at_depth(plan: Plan, mode: Mode, depth: int) -> Window:
    """Measure the first refunds of a deep queue.

    A shallow one is kept at its depth while it is measured.
    """
    with Rig(plan.cores, mode) as rig:
        wanted = plan.backlog_window
        rig.fill(depth, Lane.BULK)
        total = depth
        rig.rest()
        rig.start_worker()

        def top_up() -> None:
            nonlocal total
            if total - rig.settled() < depth < wanted:
                rig.fill(BULK_IDS, Lane.BULK, start=total)
                total += BULK_IDS

        window = rig.window(max(1, int(wanted * _FROM)), int(wanted * _TO), meanwhile=top_up)
        rig.stop()
        settled = rig.settled()
        rig.count(settled, unsent=total - settled)
        return window
