"""The matrix: which faults meet which settings, and one run of it from the first refund to the
verdict.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from ops.lab.prove import plan
from ops.lab.prove.evidence import Evidence, gathered
from ops.lab.prove.faults import QUEUES, WORKERS, Fault, both, skewed
from ops.lab.prove.judge import judged, recoveries, taken_up
from ops.lab.prove.places import (
    KEY_WINDOW,
    REDIS,
    charges,
    looks,
    past_the_window,
    polls,
    provider_posts,
    provider_wire,
)
from ops.lab.prove.posts import sent_past_the_window
from ops.lab.prove.rig import Mode, Rig, Subject
from ops.lab.prove.subjects import Product
from ops.lab.prove.violation import Violation

DRAIN_SECONDS: Final = 120.0
CONTROL_DRAIN_SECONDS: Final = 40.0
BUNCHES: Final = 8
BUNCH_PAUSE: Final = 0.4

LIST: Final = Mode()
TOTALS: Final = Mode(readback="totals")
# What a worker does that was told nothing.
DEFAULT: Final = Mode(readback="totals", totals="hint")
BLIND: Final = Mode(readback="none")
TRUST: Final = Mode(idempotency="trust", keys="honour")
TRUST_STORED: Final = Mode(idempotency="trust", keys="honour", store_5xx=True)
TRUST_TOTALS: Final = Mode(idempotency="trust", keys="honour", readback="totals")
TRUST_BLIND: Final = Mode(idempotency="trust", keys="honour", readback="none")
# Keys that are honoured and not relied on: what an operator runs who has not asked the provider
# yet.
UNASKED: Final = Mode(keys="honour")
UNASKED_STORED: Final = Mode(keys="honour", readback="totals", store_5xx=True)
MODES: Final = (
    LIST,
    TOTALS,
    DEFAULT,
    BLIND,
    TRUST,
    TRUST_STORED,
    TRUST_TOTALS,
    TRUST_BLIND,
    UNASKED,
    UNASKED_STORED,
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Faults that come at the same time, in one mode."""

    name: str
    faults: tuple[Fault, ...]
    mode: Mode = LIST
    drain: float = DRAIN_SECONDS
    """Seconds in which all must have come to rest after the faults."""
    asked: Sequence[Mapping[str, Any]] = ({}, {})
    controlled: bool = True
    quick: bool = True
    rig: Callable[..., Rig] = Rig
    """What makes the installation."""
    quick_control: bool = False
    """Whether the control suffers it in a quick run too."""
    before: Callable[[Rig], None] = lambda _: None
    """What is set up before the first worker starts."""
    begin: Callable[[Rig], None] = lambda _: None
    """What is started or set before the first refund is accepted."""
    happened: Callable[[Evidence], object] = lambda _: True
    """Whether that which the scenario is about came to pass.

    A fault that fired may still have hit nothing.
    """


@dataclass(kw_only=True)
class Result:
    """What one run came to. `error` tells of a run that could not be judged.

    Its fault did not fire, or worse.
    """

    name: str
    subject: str
    refunds: int = 0
    fired: int = 0
    in_review: int = 0
    violations: list[Violation] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    taken_up: list[float] = field(default_factory=list)
    """Of each refund that a killed worker had claimed: seconds from the kill until it moved again.
    """
    seconds: float = 0.0
    error: str | None = None
    note: str = ""
    kept: Path | None = None


def run_with(
    scenario: Scenario, *, size: int, seed: int, keep: Path, after: Callable[[Rig], None]
) -> Result:
    """Run a scenario once on the product, with a further look at the rig when all is judged."""
    return run(scenario, Product(), size=size, seed=seed, keep=keep, after=after)


def run(
    scenario: Scenario,
    subject: Subject,
    *,
    size: int,
    seed: int,
    keep: Path,
    after: Callable[[Rig], None] = lambda _: None,
) -> Result:
    """Run a scenario once and return the verdict; never raises for what a run does."""
    result = Result(name=scenario.name, subject=subject.name)
    began = time.monotonic()
    settings: dict[str, str] = {}
    for fault in scenario.faults:
        settings |= fault.settings
    fsync = "everysec" if any(fault.fsync == "everysec" for fault in scenario.faults) else "always"
    requests = plan.requests(seed, name=f"p{seed}", plain=not subject.is_ours)
    rig = scenario.rig(
        subject,
        scenario.mode,
        fsync=fsync,
        asked=scenario.asked,
        settings=settings,
        plan=requests,
        seed=seed % 10_000,
    )
    try:
        with rig:
            scenario.before(rig)
            rig.start()
            scenario.begin(rig)
            result.fired = _hurt(rig, scenario, size, seed)
            named = f"{scenario.name}-{subject.name}-{seed}".replace(" ", "-").replace("/", "-")
            _judge(rig, scenario, result, keep / named)
            after(rig)
    except Exception as error:  # noqa: BLE001 - one run's trouble must not end the others
        result.error = f"{type(error).__name__}: {error}"
        if not str(error):
            result.error = traceback.format_exc()
    result.seconds = time.monotonic() - began
    return result


def _hurt(rig: Rig, scenario: Scenario, size: int, seed: int) -> int:
    rig.feed(size // 4)
    stop = threading.Event()
    feeder = threading.Thread(target=_feed, args=(rig, size - size // 4, stop))
    feeder.start()
    try:
        with ThreadPoolExecutor(len(scenario.faults)) as pool:
            dice = [Random(f"{seed}:{place}") for place in range(len(scenario.faults))]  # noqa: S311 - repeatable
            counts = list(
                pool.map(lambda fault, own: fault.inject(rig, own), scenario.faults, dice)
            )
    finally:
        feeder.join()
    rig.fault_end = max(rig.kills) if rig.kills and len(scenario.faults) == 1 else time.time()
    for fault, count in zip(scenario.faults, counts, strict=True):
        if count < 1:
            raise AssertionError(f"the fault did not fire: {fault.name}")
    return sum(counts)


def _feed(rig: Rig, count: int, stop: threading.Event) -> None:
    """Hand in the rest while the faults last, as order systems do."""
    for place in range(BUNCHES):
        rig.feed(count * (place + 1) // BUNCHES - count * place // BUNCHES)
        stop.wait(BUNCH_PAUSE)


def _judge(rig: Rig, scenario: Scenario, result: Result, folder: Path) -> None:
    rig.drain(scenario.drain if rig.subject.is_ours else CONTROL_DRAIN_SECONDS)
    evidence = gathered(rig)
    result.refunds = len(evidence.accepted)
    result.in_review = sum(record["stage"] == "review" for record in evidence.records.values())
    result.violations = judged(evidence)
    result.recoveries = recoveries(evidence, rig.fault_end)
    result.taken_up = taken_up(evidence)
    result.note = f"{rig.restarts} workers restarted" if rig.restarts else ""
    if result.violations:
        result.kept = folder
        about = {violation.about for violation in result.violations}
        told = [evidence.about(refund_id) for refund_id in sorted(about)[:50]]
        rig.keep(
            folder, {"violations": [str(found) for found in result.violations], "refunds": told}
        )
    elif not scenario.happened(evidence):
        raise AssertionError("the fault fired, and what the scenario is about did not happen")


_LONG: Final = frozenset({"SIGKILL under the usual lease"})


def matrix() -> Iterator[Scenario]:
    """Yield every scenario of one fault."""
    # What only strands the control costs its whole time to drain, so a quick run has few of that
    # kind.
    quick_controls = {
        "crash: effect before reply",
        "message lost",
        "message poisoned",
        "message 2-20 times",
    }
    one_worker: Sequence[Mapping[str, Any]] = ({},)
    for fault in (*WORKERS, *QUEUES, *REDIS):
        alone = fault.name.startswith("crash: ") and "effect before" not in fault.name
        yield Scenario(
            name=fault.name,
            faults=(fault,),
            asked=one_worker if alone else ({}, {}),
            controlled=fault.control is not None,
            quick=fault.name not in _LONG,
            quick_control=fault.name in quick_controls,
            happened=taken_up if fault.name in _LONG else lambda _: True,
        )
    (restored,) = (fault for fault in REDIS if fault.name == "Redis restored from a copy")
    yield Scenario(
        name=f"{restored.name} ({TOTALS.shown})",
        faults=(restored,),
        mode=TOTALS,
        controlled=False,
        quick=False,
    )
    for mode in MODES:
        yield Scenario(
            name=f"provider replies ({mode.shown})",
            faults=(both("provider replies", provider_posts),),
            mode=mode,
            quick=mode in {LIST, TOTALS, DEFAULT, BLIND, TRUST, TRUST_STORED},
            quick_control=mode in {LIST, TRUST},
        )
    # Not `trust` with totals: a replay ends its doubts before the totals are read often enough to
    # meet every fault.
    for mode, endpoints in (
        (LIST, ("list",)),
        (TOTALS, ("get_payment_intent",)),
        (TRUST, ("list",)),
    ):
        yield Scenario(
            name=f"provider looks ({mode.shown})",
            faults=(Fault(name="provider looks", ours=looks(*endpoints), control=None),),
            mode=mode,
            controlled=False,
            quick=mode in {LIST, TOTALS},
        )
    for seen, inject, mode in (("polls", polls, LIST), ("charges", charges, TOTALS)):
        yield Scenario(
            name=f"provider {seen} ({mode.shown})",
            faults=(Fault(name=f"provider {seen}", ours=inject, control=None),),
            mode=mode,
            controlled=False,
            quick=False,
        )
    hours = {"REFUNDS_KEY_WINDOW_HOURS": str(KEY_WINDOW / 3600)}
    yield Scenario(
        name=f"provider replies, keys good for {KEY_WINDOW:g} s ({TRUST.shown})",
        faults=(Fault(name="past the window", ours=past_the_window, control=None, settings=hours),),
        mode=TRUST,
        controlled=False,
        quick=False,
        happened=sent_past_the_window,
    )
    for mode in MODES:
        yield Scenario(
            name=f"provider wire ({mode.shown})",
            faults=(both("provider wire", provider_wire),),
            mode=mode,
            quick=mode in {LIST, TOTALS, TRUST},
            quick_control=mode is LIST,
        )
    yield Scenario(
        name="clocks 5 min apart",
        faults=(Fault(name="clocks", ours=skewed, control=None),),
        asked=({"skew": 300}, {"skew": -300}),
        controlled=False,
    )


_ALONE: Final = frozenset({*_LONG, "Redis restored from a copy", "SIGSTOP before bytes"})
_BY_PROVIDER: Final = frozenset({"crash: effect before reply", "crash: reply half read"})
# Two of a group pull at the same handle: the one's end would be the other's.
_GROUPS: Final = (
    tuple(fault for fault in WORKERS if fault.name not in {*_ALONE, *_BY_PROVIDER}),
    QUEUES,
    tuple(fault for fault in REDIS if fault.name not in _ALONE),
    (both("provider wire", provider_wire),),
    (
        *(fault for fault in WORKERS if fault.name in _BY_PROVIDER),
        both("provider replies", provider_posts),
    ),
)


def pair(seed: int) -> Scenario:
    """Return two faults at once, drawn by the seed from different groups, in a mode drawn
    likewise.
    """
    dice = Random(f"pair:{seed}")  # noqa: S311 - repeatable, not secret
    first, second = (dice.choice(group) for group in dice.sample(_GROUPS, 2))
    mode = dice.choice([LIST, TOTALS, TRUST])
    return Scenario(
        name=f"pair {seed}: {first.name} + {second.name} ({mode.shown})",
        faults=(first, second),
        mode=mode,
        asked=({}, {}),
        controlled=first.control is not None and second.control is not None,
    )
