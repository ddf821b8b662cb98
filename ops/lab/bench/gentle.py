"""The rate limit: how much of it two workers use, whether they ever go above it, and what they
learn from a 429.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from itertools import pairwise
from typing import Any, Final

from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import Mode, Rig
from ops.lab.bench.table import Row, number
from worker.model.refund import Lane

RATE: Final = 300
BURST: Final = 30
"""What may leave together where a worker was held up: the moments of a tenth of a second."""
LEAST_USED: Final = 0.97
LEAST_LEARNED: Final = 0.4
MOST_REFUSED: Final = 0.05
"""Of an enforced rate and of all calls, where workers who were told twice as much learn it.

Else half were refused.
"""
LEARNING_SECONDS: Final = 10
"""What a run in which they learn takes at the least: they find the enforced rate in the first few.
"""
SINGLES: Final = 6
"""One refund in so many comes alone, the others in a file."""


def limit(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield use and peak under a provider that enforces the rate with its burst, and under one that
    allows no burst.

    Then what is used of a rate of which the workers know nothing: they were told twice as much.
    """
    for allowed, name in (
        (RATE + BURST, "enforced with the burst"),
        (RATE, "enforced to the last request"),
    ):
        requests = _limited(plan, RATE, allowed)
        arrivals, refused = passed(requests), len(requests) - len(passed(requests))
        used, peak = (
            pace(arrivals) / RATE,
            busiest_second([float(each["monotonic"]) for each in requests]),
        )
        yield Row(
            figure="rate limit, two workers, both lanes",
            setting=f"{RATE} a second, {name}; {plan.limited:,} refunds",
            measured=f"{used:.1%} used, at most {peak} in any second, {refused} times 429",
            to_reach=f"at least {LEAST_USED:.0%}, at most {RATE + BURST}, no 429",
            reached=used >= LEAST_USED and peak <= RATE + BURST and not refused,
        )
    enforced = min(RATE, plan.limited // LEARNING_SECONDS)
    requests = _limited(plan, 2 * enforced, enforced)
    used, refused = pace(passed(requests)) / enforced, len(requests) - len(passed(requests))
    yield Row(
        figure="rate limit set to twice what is enforced",
        setting=f"{2 * enforced} a second set, {enforced} enforced; {plan.limited:,} refunds",
        measured=(
            f"{used:.0%} of what is enforced used, {refused:,} of {len(requests):,} calls met a"
            " 429, nothing lost"
        ),
        to_reach=(
            f"at least {LEAST_LEARNED:.0%}, at most {MOST_REFUSED:.0%} of calls met a 429, nothing"
            " lost"
        ),
        reached=used >= LEAST_LEARNED and 0 < refused <= MOST_REFUSED * len(requests),
    )


def _limited(plan: Plan, rate: int, allowed: int) -> Sequence[dict[str, Any]]:
    """Return the requests of a run in which workers are told `rate` and the provider allows
    another.
    """
    singles = plan.limited // SINGLES
    options = ["--rate-limit", str(allowed), "--log-requests", str(10 * plan.limited)]
    settings = {"REFUNDS_RATE_LIMIT": str(rate)}
    with Rig(plan.cores, Mode(latency_ms=50), sandbox_options=options, settings=settings) as rig:
        rig.start_worker()
        rig.start_worker()
        rig.await_workers()
        rig.fill(plan.limited - singles, Lane.BULK, name="file")
        rig.fill(singles, Lane.SINGLE, name="one")
        rig.until(lambda: rig.settled() >= plan.limited, "all are settled")
        rig.stop()
        rig.count(plan.limited)
        return rig.sandbox.requests()


def passed(requests: Sequence[dict[str, Any]]) -> Sequence[float]:
    """Return when those calls arrived that were not refused for the rate."""
    return [
        float(each["monotonic"])
        for each in requests
        if each["status"] != HTTPStatus.TOO_MANY_REQUESTS
    ]


def pace(arrivals: Sequence[float]) -> float:
    """Return how many calls a second arrived between the first tenth of them and the last."""
    begin, end = len(arrivals) // 10, len(arrivals) * 9 // 10
    return (end - begin) / (arrivals[end] - arrivals[begin])


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
    """Return the longest time without a call, for a person who looks for what held the rate
    down.
    """
    return number(max(later - earlier for earlier, later in pairwise(arrivals)) * 1000) + " ms"
