"""The table: one row a scenario, ours and the control's violations side by side, as Markdown that
reads as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ops.lab.prove import failover, planted
from ops.lab.prove.scenarios import CONTROL_DRAIN_SECONDS, Result
from ops.lab.tables import aligned

BROKEN: Final = 1
UNJUDGED: Final = 3
CAUGHT: Final = ("money twice", "false failed")
"""What the control must be caught at."""
STRANDED: Final = "stranded"

HEAD: Final = (
    "scenario",
    "runs",
    "refunds",
    "faults fired",
    "in review",
    "violations",
    "control's",
    "recovery p50 / p99",
    "",
)


@dataclass
class Row:
    """All runs of one scenario."""

    name: str
    ours: list[Result] = field(default_factory=list)
    planted: list[Result] = field(default_factory=list)
    control: list[Result] = field(default_factory=list)

    @property
    def cells(self) -> tuple[str, ...]:
        """The row's texts in the order of `HEAD`."""
        seconds = [second for result in self.ours for second in result.recoveries]
        notes = {result.note for result in self.ours if result.note}
        if taken := [second for result in self.ours for second in result.taken_up]:
            notes.add(
                f"claims of the killed taken up after {quantile(taken, 0.5):.1f} s,"
                f" {max(taken):.1f} s at most"
            )
        unjudged = sum(result.error is not None for result in self.ours)
        if unjudged:
            notes.add(f"**{unjudged} not judged**")
        return (
            self.name,
            str(len(self.ours)),
            f"{sum(result.refunds for result in self.ours):,}",
            f"{sum(result.fired for result in self.ours):,}",
            str(sum(result.in_review for result in self.ours)),
            _kinds(self.ours),
            _kinds(self.control) if self.control else "",
            f"{quantile(seconds, 0.5):.1f} / {quantile(seconds, 0.99):.1f} s" if seconds else "",
            "; ".join(sorted(notes)),
        )


def _kinds(results: Sequence[Result]) -> str:
    """Return how many violations there were, by their rules."""
    kinds = Counter(violation.rule for result in results for violation in result.violations)
    if not kinds:
        return "0"
    return (
        f"{kinds.total()} ({', '.join(f'{count} {rule}' for rule, count in kinds.most_common())})"
    )


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which so large a part of the others lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def rows_of(results: Iterable[Result]) -> list[Row]:
    """Return the rows, in the order in which their scenarios first came."""
    rows: dict[str, Row] = {}
    for result in results:
        # A pair's own name holds its seed; in the table they are one row.
        name = "random pairs of faults" if result.name.startswith("pair ") else result.name
        row = rows.setdefault(name, Row(name))
        subjects = {"ours": row.ours, planted.SUBJECT: row.planted}
        subjects.get(result.subject, row.control).append(result)
    return list(rows.values())


def rendered(rows: Sequence[Row]) -> str:
    """Return the table with aligned columns."""
    return aligned([HEAD, *(row.cells for row in rows if row.ours or row.control)])


def summary(rows: Sequence[Row]) -> str:
    """Return the whole in one sentence."""
    ours = [result for row in rows for result in row.ours]
    control = _controls(rows, failovers=False)
    fewer = _controls(rows, failovers=True)
    seconds = [second for result in ours for second in result.recoveries]
    refunds, fired = sum(result.refunds for result in ours), sum(result.fired for result in ours)
    violations = sum(len(result.violations) for result in ours)
    times = (
        f"p50 {quantile(seconds, 0.5):.1f} s, p99 {quantile(seconds, 0.99):.1f} s"
        if seconds
        else "none to measure"
    )
    beside = f"; {_of_control(control)}" if control else ""
    beside += f"; {_of_fewer(fewer)}" if fewer else ""
    bugs = [result for row in rows for result in row.planted]
    whole = (
        f"{len(ours)} runs, {refunds:,} refunds, {fired:,} faults fired: {violations}"
        f" violations{beside}. Recovery: {times}."
    )
    return f"{whole}\n\n{planted.told(bugs)}" if bugs else whole


def _of_control(control: Sequence[Result]) -> str:
    """Return what the control did, those apart that it might have ended with more time."""
    rules = Counter(violation.rule for result in control for violation in result.violations)
    stranded = rules.pop(STRANDED, 0)
    named = ", ".join(f"{rules[rule]} {rule}" for rule in CAUGHT)
    return (
        f"the control's {rules.total()} in {len(control)} runs ({named}), "
        f"and {stranded} stranded when its {CONTROL_DRAIN_SECONDS:g} s to drain were over"
    )


def _of_fewer(results: Sequence[Result]) -> str:
    rules = Counter(violation.rule for result in results for violation in result.violations)
    refunds = sum(result.refunds for result in results)
    named = ", ".join(f"{rules[rule]} {rule}" for rule in failover.LOST_OR_TWICE)
    return f"with fewer replicas {named} of {refunds:,} refunds"


def _controls(rows: Sequence[Row], *, failovers: bool) -> list[Result]:
    """Return the control's results: the naive worker's, or our own with too few replicas."""
    found = [result for row in rows for result in row.control]
    return [result for result in found if (result.subject == failover.CONTROL) == failovers]


def ours_failed(rows: Sequence[Row]) -> list[Result]:
    """Return our runs that broke a promise or could not be judged."""
    return [result for row in rows for result in row.ours if result.violations or result.error]


def exit_code(rows: Sequence[Row], *, whole: bool = True) -> int:
    """Return 1 where a promise was broken or the judge is none, 3 where a run could not be judged,
    else 0.
    """
    failed = ours_failed(rows)
    bugs = [result for row in rows for result in row.planted]
    missed = [result for result in bugs if not result.error and not planted.caught(result)]
    if (
        any(result.violations for result in failed)
        or missed
        or not control_was_caught(rows, whole=whole)
        or not fewer_were_caught(rows)
    ):
        return BROKEN
    return UNJUDGED if failed or any(result.error for result in bugs) else 0


def control_was_caught(rows: Sequence[Row], *, whole: bool = True) -> bool:
    """Tell whether the judge caught the control, where it ran at all.

    A judge that never does proves nothing.

    Over the `whole` matrix by each of the rules that a naive worker is known to break, in a part of
    it by any.
    """
    control = _controls(rows, failovers=False)
    rules = {violation.rule for result in control for violation in result.violations}
    return not control or (rules >= {*CAUGHT} if whole else bool(rules))


def fewer_were_caught(rows: Sequence[Row]) -> bool:
    """Return whether a run that waited for too few replicas lost a refund or sent one twice, if any
    such run was made.
    """
    results = _controls(rows, failovers=True)
    rules = {violation.rule for result in results for violation in result.violations}
    return not results or bool(rules & {*failover.LOST_OR_TWICE})
