"""A run with a further look at its rig once the usual rules have judged it.

The HTTP API, the callbacks and the failovers have rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.lab.prove.rig import Rig, Subject
from ops.lab.prove.scenarios import Result, Scenario, run
from ops.lab.prove.violation import Violation


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a further look found, and what to keep of the run if that is anything."""

    found: Sequence[Violation]
    note: str
    facts: Callable[[set[str]], Mapping[str, Any]]
    """Return what is kept about these refunds."""


def run_looked(
    scenario: Scenario,
    subject: Subject,
    *,
    size: int,
    seed: int,
    keep: Path,
    look: Callable[[Rig], Look],
) -> Result:
    """Run a scenario, and add to its verdict what a further look finds."""
    folder = keep / f"{scenario.name}-{seed}".replace(" ", "-").replace(":", "")
    looks: list[Look] = []

    def after(rig: Rig) -> None:
        looks.append(one := look(rig))
        if one.found:
            about = {violation.about.partition(" ")[0] for violation in one.found}
            rig.keep(folder, {"violations": [*map(str, one.found)], **one.facts(about)})

    result = run(scenario, subject, size=size, seed=seed, keep=keep, after=after)
    for one in looks:
        if one.found:
            # A second look at the same records finds again what the first one found.
            result.violations = [*dict.fromkeys([*result.violations, *one.found])]
            result.kept = folder
        result.note = "; ".join(filter(None, [result.note, one.note]))
    return result
