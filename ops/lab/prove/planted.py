"""Planted bugs, run as real workers before the judge of the product.

It must catch each one, and by the right rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from ops.lab.prove import callbacks, door, outage, webhooks
from ops.lab.prove.faults import both, killed_when
from ops.lab.prove.places import provider_posts
from ops.lab.prove.scenarios import TRUST, Result, Scenario, run
from ops.lab.prove.subjects import Product

SUBJECT: Final = "planted"
PREFIX: Final = "planted bug: "


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A bug by its name in `faulty_worker` or `faulty_door`, the run in which it does harm, and
    the rule that must find it.

    Without a scenario it is a run of its own kind, by default one with webhooks.
    """

    plant: str
    shown: str
    rule: str
    scenario: Scenario | None = None
    play: Callable[..., Result] = webhooks.run_bug
    quick: bool = False


BUGS: Final = (
    Bug(
        plant="new_key_per_try",
        shown="a new key per try",
        scenario=Scenario(name="", faults=(both("provider replies", provider_posts),), mode=TRUST),
        rule="money twice",
    ),
    Bug(
        plant="lapsed_is_unsent",
        shown="a lapsed lease taken as unsent",
        scenario=Scenario(
            name="", faults=(both("killed", killed_when("timeout_after:n=3:times=3")),)
        ),
        # Of a payment that has too little left, the second one is refused: then it fails falsely.
        rule="unproven",
        quick=True,
    ),
    Bug(
        plant="refused_key_fails",
        shown="a refused key fails the refund",
        scenario=outage.revoked(401),
        rule="credentials",
        quick=True,
    ),
    Bug(
        plant="named_refund_unread",
        shown="a refund that a webhook named is not read",
        rule="event unused",
    ),
    Bug(
        plant="answered_before_the_write",
        shown="the door answers 202 before the write",
        rule="lost",
        play=door.run_bug,
    ),
    Bug(
        plant="marked_before_the_reply",
        shown="callbacks marked delivered before the reply",
        rule="callback lost",
        play=callbacks.run_bug,
    ),
)
RULES: Final = {PREFIX + bug.shown: bug.rule for bug in BUGS}


def plants(*, quick: bool) -> Iterator[tuple[str, Callable[[int, int, Path], Result]]]:
    """Yield each run's name with a function of size, seed and the folder for what it leaves."""
    for bug in BUGS:
        if bug.quick or not quick:
            yield PREFIX + bug.shown, partial(_run, bug)


def _run(bug: Bug, size: int, seed: int, keep: Path) -> Result:
    name, asked = PREFIX + bug.shown, ({"bug": bug.plant},) * 2
    if bug.scenario is None:
        result = bug.play(name, asked, size=size, seed=seed, keep=keep)
    else:
        scenario = replace(bug.scenario, name=name, asked=asked)
        result = run(scenario, Product(), size=size, seed=seed, keep=keep)
    return replace(result, subject=SUBJECT)


def caught(result: Result) -> bool:
    """Tell whether the judge found the bug of this run by its rule."""
    return any(violation.rule == RULES[result.name] for violation in result.violations)


def told(results: Sequence[Result]) -> str:
    """Return in one line how many of the bugs were caught, and by what."""
    each = [
        f"{result.name.removeprefix(PREFIX)}:"
        f" {RULES[result.name] if caught(result) else 'NOT CAUGHT'}"
        for result in results
    ]
    return (
        f"Planted bugs caught by their rule: {sum(map(caught, results))} of {len(results)}"
        f" ({'; '.join(each)})."
    )
