"""Failovers: a replica is promoted in each of the ways in which that happens, under load.

Each run is made with as many `REFUNDS_REPLICAS` as its faults call for, and most also with one
fewer, as the control: what that loses and sends twice shows that the run can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ops.lab.prove import rabbit
from ops.lab.prove.cluster import fake_clock
from ops.lab.prove.evidence import Evidence, gathered
from ops.lab.prove.failover_faults import FAULTS, Fail, killed, killed_behind, times
from ops.lab.prove.failover_rig import FailoverRig, Replicated, longest_gap
from ops.lab.prove.faults import Fault
from ops.lab.prove.looked import Look, run_looked
from ops.lab.prove.rig import Mode, Rig
from ops.lab.prove.scenarios import BLIND, DRAIN_SECONDS, LIST, Result, Scenario
from ops.lab.prove.violation import Violation

PREFIX: Final = "failover: "
CONTROL: Final = "fewer"
"""The subject of the runs that wait for one replica fewer than their faults call for."""
LOST_OR_TWICE: Final = ("lost", "money twice")
"""What the runs that wait for too few replicas must be caught at."""
TIMES: Final = 2
"""Failovers in each run."""
_WARM: Final = 8
_LOST_SECONDS: Final = 30.0
"""How long the control may take to settle what it has not lost."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """One way in which a server fails, and the installation that it befalls."""

    fail: Fail
    mode: Mode = LIST
    replicas: int = 2
    """Servers beside the primary."""
    demanded: int = 1
    """`REFUNDS_REPLICAS`."""
    by_rabbit: bool = False
    clock_off: float = 0.0
    """Seconds by which the clocks of the replicas are wrong."""
    controlled: bool = True
    """Whether it is run with one replica fewer demanded, too."""


def _courses() -> Mapping[str, Course]:
    # Whose replicas hold everything loses nothing with 0 either.
    harmless = {"killed unheard", "killed, one replica behind", "cut off alone"}
    # What a replica beside the old primary confirms, the promoted one may not have.
    demanded = {"cut off with a replica": 2}
    made = {
        name: Course(
            fail=fail,
            mode=BLIND if name == "a review" else LIST,
            demanded=demanded.get(name, 1),
            controlled=name not in harmless,
        )
        for name, fail in FAULTS.items()
    }
    made["killed, one replica in all"] = Course(fail=killed, replicas=1, controlled=False)
    made["killed behind, by RabbitMQ"] = Course(
        fail=killed_behind, by_rabbit=True, controlled=False
    )
    for seconds in (2, 3600):
        # The second failover puts the clock right again: so it jumps both back and ahead.
        made[f"killed, clocks {seconds} s apart"] = Course(
            fail=killed_behind, replicas=1, clock_off=-seconds, controlled=False
        )
    return made


COURSES: Final = _courses()
QUICK: Final = ("killed behind",)


def missing(course: Course) -> str:
    """Return what is not installed that a run needs, '' if nothing is."""
    if course.by_rabbit and rabbit.script() is None:
        return rabbit.MISSING
    if course.clock_off and fake_clock() is None:
        return "no libfaketime is installed here: 'apt-get install faketime' brings it"
    return ""


def runs(
    *, keep: Path, quick: bool, control: bool
) -> Iterator[tuple[str, Callable[[int], Result]]]:
    """Yield each run's name, and the run itself; with `control` those with fewer replicas too."""
    for name in QUICK if quick else COURSES:
        course = COURSES[name]
        if why := missing(course):
            yield PREFIX + name, partial(_left_out, name, why)
            continue
        turns = 1 if quick else TIMES
        ours = Replicated("ours", course.demanded)
        yield PREFIX + name, partial(_play, name, course, ours, turns, keep)
        if control and course.controlled:
            fewer = Replicated(CONTROL, course.demanded - 1)
            yield PREFIX + name, partial(_play, name, course, fewer, turns, keep)


def _left_out(name: str, why: str, _seed: int) -> Result:
    return Result(name=PREFIX + name, subject="ours", note=f"**left out**: {why}")


def _play(
    name: str, course: Course, subject: Replicated, turns: int, keep: Path, seed: int
) -> Result:
    settings = {"REFUNDS_REPLICAS": str(subject.replicas)}
    fault = Fault(name=name, ours=times(course.fail, turns), control=None, settings=settings)
    scenario = Scenario(
        name=PREFIX + name,
        faults=(fault,),
        mode=course.mode,
        # What the control has lost never comes to rest.
        drain=_LOST_SECONDS if subject.name == CONTROL else DRAIN_SECONDS,
        rig=partial(
            FailoverRig,
            replicas=course.replicas,
            by_rabbit=course.by_rabbit,
            clock_off=course.clock_off,
        ),
    )
    return run_looked(scenario, subject, size=_WARM, seed=seed, keep=keep, look=_look)


def _look(rig: Rig) -> Look:
    if not isinstance(rig, FailoverRig):
        raise TypeError("only an installation with replicas fails over")
    evidence = gathered(rig)
    found = [*undecided(rig.decided, evidence)]
    return Look(found=found, note=_told(rig, evidence), facts=partial(_facts, evidence))


def _facts(evidence: Evidence, about: set[str]) -> Mapping[str, Any]:
    return {"refunds": [evidence.about(one) for one in sorted(about)]}


def undecided(decided: list[str], evidence: Evidence) -> Iterator[Violation]:
    """Yield the refunds of which a decision was acknowledged, and is not what the record shows."""
    for refund_id in decided:
        record = evidence.records.get(refund_id, {})
        if (record.get("stage"), record.get("status")) != ("settled", "succeeded"):
            fact = f"decided as succeeded, and is {record.get('stage')}"
            yield Violation(rule="decision lost", about=refund_id, fact=fact)


def _told(rig: FailoverRig, evidence: Evidence) -> str:
    sent = [post.at for post in evidence.posts]
    took = ", ".join(f"{one.ended - one.began:.1f}" for one in rig.promotions)
    parts = [f"promoted after {took} s"]
    for moments, what in ((rig.acknowledged, "accepted"), (sent, "sent")):
        each = zip(rig.promotions, rig.loads, strict=False)
        gaps = [longest_gap(moments, one, until) for one, until in each]
        if gaps:
            parts.append(f"nothing {what} for {', '.join(f'{gap:.1f}' for gap in gaps)} s")
    if rig.decided:
        parts.append(f"{len(rig.decided)} decisions")
    return "; ".join(parts)
