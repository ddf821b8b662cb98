"""What waiting for one replica costs: a file, and a single refund on an idle system."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ops.lab.bench.plan import Plan
from ops.lab.bench.rates import measured
from ops.lab.bench.table import Row, at_least, number, quantile, spread
from ops.lab.bench.waits import idle

FILE_RATE: Final = 0.8
IDLE_MORE_MS: Final = 3.0


def replicas(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield both with a replica on the server's own cores, against the same without one."""
    mode = plan.modes[0]
    rounds = range(plan.rounds)
    files = [[measured(plan, mode, "bulk", plan.bulk, replicas=n) for n in (0, 1)] for _ in rounds]
    singles = [[idle(plan, replicas=n)[0] for n in (0, 1)] for _ in rounds]
    ratios = [one.rate / none.rate for none, one in files]
    yield Row(
        figure="a replica: refunds of a file a second",
        setting=f"{mode.shown}, REFUNDS_REPLICAS=1",
        measured=spread([one.rate for _, one in files]),
        floor=spread([none.rate for none, _ in files]) + " without",
        ratio=spread(ratios),
        to_reach=f"at least {FILE_RATE}",
        reached=at_least(ratios, FILE_RATE),
    )
    without, with_one = ([taken for turn in singles for taken in turn[place]] for place in (0, 1))
    for part, most in ((0.50, IDLE_MORE_MS), (0.99, None)):
        more = quantile(with_one, part) - quantile(without, part)
        yield Row(
            figure=f"a replica: single idle latency, p{part * 100:.0f}",
            setting=f"{mode.shown}; {len(with_one)} refunds, less the provider's time",
            measured=f"{number(quantile(with_one, part))} ms",
            floor=f"{number(quantile(without, part))} ms without",
            ratio=f"{more:+.2f} ms",
            to_reach="" if most is None else f"at most {most:+g} ms",
            reached=None if most is None else more <= most,
        )
