"""The rate limit: how much of it two workers use, and whether they ever go above it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from ops.bench.plan import Plan
from ops.bench.rig import Mode, Rig
from ops.bench.table import Row, number
from worker.model import Lane

RATE: Final = 300
BURST: Final = 30
"""What may leave together where a worker was held up: the moments of a tenth of a second."""
LEAST_USED: Final = 0.97
SINGLES: Final = 6
"""One refund in so many comes alone, the others in a file."""


def limit(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield use and peak under a provider that enforces the rate with its burst, and under one that allows no burst."""
    for allowed, name in ((RATE + BURST, "enforced with the burst"), (RATE, "enforced to the last request")):
        arrivals, refused, count = _limited(plan, allowed)
        used, peak = utilisation(arrivals), busiest_second(arrivals)
        yield Row(
            figure="rate limit, two workers, both lanes",
            setting=f"{RATE} a second, {name}; {count:,} refunds",
            measured=f"{used:.1%} used, at most {peak} in any second, {refused} times 429",
            to_reach=f"at least {LEAST_USED:.0%}, at most {RATE + BURST}, no 429",
            reached=used >= LEAST_USED and peak <= RATE + BURST and not refused,
        )


def _limited(plan: Plan, allowed: int) -> tuple[Sequence[float], int, int]:
    singles = plan.limited // SINGLES
    options = ["--rate-limit", str(allowed), "--log-requests", str(10 * plan.limited)]
    settings = {"REFUNDS_RATE_LIMIT": str(RATE)}
    with Rig(plan.cores, Mode(latency_ms=50), sandbox_options=options, settings=settings) as rig:
        rig.start_worker()
        rig.start_worker()
        rig.await_workers()
        rig.fill(plan.limited - singles, Lane.BULK, name="file")
        rig.fill(singles, Lane.SINGLE, name="one")
        rig.until(lambda: rig.settled() >= plan.limited, "all are settled")
        rig.stop()
        rig.count(plan.limited)
        arrivals = [float(request["monotonic"]) for request in rig.sandbox.requests()]
        return arrivals, int(rig.sandbox.faults()["rate_limited"]), plan.limited


def utilisation(arrivals: Sequence[float]) -> float:
    """Return how much of the rate was used between the first tenth of the calls and the last."""
    begin, end = len(arrivals) // 10, len(arrivals) * 9 // 10
    return (end - begin) / (arrivals[end] - arrivals[begin]) / RATE


def busiest_second(arrivals: Sequence[float]) -> int:
    """Return the most calls that arrived within any one second."""
    within: deque[float] = deque()
    most = 0
    for arrival in arrivals:
        within.append(arrival)
        while within[0] <= arrival - 1:
            within.popleft()
        most = max(most, len(within))
    return most


def longest_gap(arrivals: Sequence[float]) -> str:
    """Return the longest time without a call, for a person who looks for what held the rate down."""
    return number(max(later - earlier for earlier, later in pairwise(arrivals)) * 1000) + " ms"
