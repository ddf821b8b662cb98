"""Webhooks under faults: the sandbox sends events in every mode, while replies are cut and the
processes that handle them are killed.

Each run is compared with one in which no event is sent. At its end one refund is reversed.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, get_args

import httpx

from ops.lab.prove.evidence import Evidence, gathered
from ops.lab.prove.faults import SLOW_MS, Fault, fed_until
from ops.lab.prove.judge import Violation, judged
from ops.lab.prove.receiver import Receiver, received
from ops.lab.prove.rig import CANARY, LATENCY_MS, Mode, Rig, RigError
from ops.lab.prove.scenarios import BLIND, DEFAULT, LIST, Result, Scenario, run_with
from worker.client import Refunds
from worker.sandbox.config import WebhookMode
from worker.settings import Settings
from worker.store import rechecks

NEVER: Final = "never"
OF_CHARGES: Final = "of charges"
"""Events that show a charge, and its refund without metadata: only the refund itself has them."""
EVENTS: Final = (*get_args(WebhookMode), OF_CHARGES)
MODES: Final = (LIST, DEFAULT, BLIND)
# Doubts under totals take longest, so a quick run has none of those.
QUICK: Final = {LIST: ("early", NEVER), BLIND: ("twice", NEVER)}
FULL: Final = dict.fromkeys(MODES, EVENTS)
_FAULTS: Final = "cut_after:p=0.2,reset_after:p=0.1,timeout_after:p=0.05,reset_before:p=0.05"
_FIRES: Final = 4
"""Spoiled replies that are waited for before each kill."""
_IN_FLIGHT: Final = 2
_AWAY_SECONDS: Final = 1.0
"""How long the killed server of the webhooks is away."""
_REVERSED_SECONDS: Final = 45.0
_RUNG: Final = timedelta(seconds=1)
_MISSING: Final = "pi_missing"
_SOON: Final = 30.0


Ends = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""By payment, the ids and the ends of its refunds, each sorted."""


@dataclass
class Played:
    """A run, with what another one is compared with."""

    result: Result
    ends: Ends = field(default_factory=dict)
    reviewed: float = 0.0
    """The share of refunds in review."""
    made: int = 0
    """How many of these were made at the provider."""
    evidence: Evidence | None = None


def runs(*, size: int, keep: Path, quick: bool) -> Iterator[tuple[str, Callable[[int], Result]]]:
    """Yield each run's name, and the run itself; all are called with the same seed."""
    plan = QUICK if quick else FULL
    unsent = Unsent(size, keep)
    for mode, events in plan.items():
        for one in events:
            yield shown(mode, one), partial(_run, mode, one, unsent, size, keep)


def shown(mode: Mode, events: str) -> str:
    """Return the name of a run."""
    return f"webhooks {events} ({mode.shown})"


class Unsent:
    """The runs in which no event is sent, each made when it is first needed."""

    def __init__(self, size: int, keep: Path) -> None:
        self._size = size
        self._keep = keep
        self._locks: defaultdict[Mode, threading.Lock] = defaultdict(threading.Lock)
        self._played: dict[Mode, Played] = {}

    def of(self, mode: Mode, seed: int) -> Played:
        """Return the run of this mode."""
        with self._locks[mode]:
            if mode not in self._played or self._played[mode].result.error:
                self._played[mode] = _play(mode, NEVER, self._size, self._keep, seed)
            return self._played[mode]


def _run(mode: Mode, events: str, unsent: Unsent, size: int, keep: Path, seed: int) -> Result:
    if events == NEVER:
        return unsent.of(mode, seed).result
    played = _play(mode, events, size, keep, seed)
    result = played.result
    if result.error:
        return result
    usual = unsent.of(mode, seed)
    if usual.result.error:
        result.error = f"the run without webhooks: {usual.result.error}"
        return result
    result.note += f" ({usual.reviewed:.1%}, {usual.made} without webhooks)"
    if mode is LIST and (others := [*other_ends(played.ends, usual.ends)]):
        result.violations += others
        result.kept = keep / _folder(mode, events, seed)
        _write(result.kept, {one.about for one in others}, played.evidence, usual.evidence)
    return result


def _folder(mode: Mode, events: str, seed: int) -> str:
    return f"{shown(mode, events)}-{seed}".replace(" ", "-")


def _write(folder: Path, payments: set[str], *runs: Evidence | None) -> None:
    """Write all that is known of the refunds of these payments in each of the runs."""
    folder.mkdir(parents=True, exist_ok=True)
    known = [
        [
            one.about(name)
            for name, asked in one.accepted.items()
            if asked.payment_intent in payments
        ]
        for one in runs
        if one is not None
    ]
    (folder / "other-ends.json").write_text(json.dumps(known, indent=1), encoding="utf-8")


def run_bug(
    name: str, asked: Sequence[Mapping[str, Any]], *, size: int, seed: int, keep: Path
) -> Result:
    """Run workers with a planted bug, with events and without read-backs."""
    return replace(_play(BLIND, "in_order", size, keep, seed, asked).result, name=name)


def _play(
    mode: Mode,
    events: str,
    size: int,
    keep: Path,
    seed: int,
    asked: Sequence[Mapping[str, Any]] = ({}, {}),
) -> Played:
    receivers: list[Receiver] = []
    found: list[Violation] = []
    notes: list[str] = []
    played = Played(Result(name=shown(mode, events), subject=""))

    def begin(rig: Rig) -> None:
        # For as long as anything is sent, so that shares of two runs can be compared.
        rig.sandbox.set_faults(_FAULTS)
        rig.conditions.append(lambda: _is_at_rest(rig))
        if events != NEVER:
            of_charges = events == OF_CHARGES
            mode_of_events = "in_order" if of_charges else events
            shape = "charge" if of_charges else "refund"
            receivers.append(received(rig, mode_of_events, shape))

    def after(rig: Rig) -> None:
        evidence = gathered(rig)
        deliveries = rig.sandbox.webhooks()
        made = _made_there(rig, evidence)
        found.extend(lost(deliveries))
        found.extend(reviewed_despite(made, deliveries))
        if mode is BLIND and events == NEVER and not any(made.values()):
            raise RigError("without webhooks no refund that was made is in review")
        played.made = sum(bool(shows) for shows in made.values())
        seconds = reverse(rig, evidence, watched=events == NEVER)
        found.extend(judged(gathered(rig)))
        how = "the watch" if events == NEVER else "its event"
        played.ends, played.reviewed = ends(evidence), _in_review(evidence)
        notes.append(
            f"{len(deliveries)} events; a reversal recorded by {how} in {seconds:.1f} s;"
            f" in review {played.reviewed:.1%}, {played.made} of these made at the provider"
        )
        played.evidence = evidence
        if found:
            known = [evidence.about(one) for one in sorted({broken.about for broken in found})]
            facts = {"violations": [*map(str, found)], "refunds": known, "events": deliveries}
            rig.keep(keep / _folder(mode, events, seed), facts)

    scenario = Scenario(
        name=shown(mode, events),
        faults=(Fault(name="webhooks", ours=partial(_hurt, receivers), control=None),),
        mode=mode,
        asked=asked,
        begin=begin,
    )
    played.result = run_with(scenario, size=size, seed=seed, keep=keep, after=after)
    if found:
        # A second look at the same records finds again what the first one found.
        played.result.violations = [*dict.fromkeys([*played.result.violations, *found])]
        played.result.kept = keep / _folder(mode, events, seed)
    played.result.note = "; ".join(notes)
    return played


def _hurt(receivers: Sequence[Receiver], rig: Rig, _dice: Random) -> int:
    """Kill the server of the webhooks, a worker that sends, and both at once."""
    kills = 0
    for of_receiver, of_worker in ((True, False), (False, True), (True, True)):
        before = _fired(rig)
        fed_until(rig, lambda before=before: _fired(rig) >= before + _FIRES)  # type: ignore[misc]  # bound in the loop
        if of_receiver:
            for receiver in receivers:
                receiver.kill()
                kills += 1
        if of_worker:
            rig.sandbox.set_modes(latency_ms=SLOW_MS)
            fed_until(rig, lambda: rig.sending() > _IN_FLIGHT)
            rig.kill(rig.alive[0])
            rig.sandbox.set_modes(latency_ms=LATENCY_MS)
            rig.supervise()
            kills += 1
        if of_receiver and receivers:
            # Events are sent meanwhile, and nothing receives them.
            time.sleep(_AWAY_SECONDS)
            for receiver in receivers:
                receiver.start()
    return _fired(rig) + kills


def _fired(rig: Rig) -> int:
    return sum(fault["fired"] for fault in rig.sandbox.faults()["faults"])


def _is_at_rest(rig: Rig) -> bool:
    """Return whether every event was answered, and every refund in review was read again."""
    if any(delivery["state"] == "waiting" for delivery in rig.sandbox.webhooks()):
        return False
    for refund_id in _rechecks(rig):
        key = f"refunds:refund:{refund_id}"
        if rig.asking(lambda key=key: rig.redis.hget(key, "stage")) != "settled":
            return False
    return True


def _rechecks(rig: Rig) -> list[str]:
    found: list[str] = rig.asking(lambda: rig.redis.zrange("refunds:rechecks", 0, -1))
    return found


# What a run must have come to


def lost(deliveries: Sequence[Mapping[str, Any]]) -> Iterator[Violation]:
    """Yield the events that the server of the webhooks did not accept."""
    for delivery in deliveries:
        if delivery["state"] != "delivered":
            fact = (
                f"its event {delivery['event']} is {delivery['state']} after"
                f" {delivery['tries']} tries, the last one answered {delivery['status']}"
            )
            yield Violation(rule="event lost", about=delivery["refund"], fact=fact)


def reviewed_despite(
    made: Mapping[str, Sequence[str]], deliveries: Sequence[Mapping[str, Any]]
) -> Iterator[Violation]:
    """Yield the refunds in review although an event with their id was delivered.

    `made` is what the provider shows of each refund in review.
    """
    heard = {one["refund"] for one in deliveries if one["state"] == "delivered"}
    for refund_id, shows in made.items():
        if named := heard.intersection(shows):
            fact = f"in review, and an event named {', '.join(sorted(named))}, which has its id"
            yield Violation(rule="event unused", about=refund_id, fact=fact)


def ends(evidence: Evidence) -> Ends:
    """Return how the refunds of each payment ended, without payments that are missing.

    Which refund of a shared payment comes too late depends on the order in which they are sent.
    """
    by_payment: dict[str, list[str]] = defaultdict(list)
    for refund_id, request in evidence.accepted.items():
        if not request.payment_intent.startswith(_MISSING):
            by_payment[request.payment_intent].append(refund_id)
    return {
        payment: (
            tuple(sorted(ids)),
            tuple(sorted(_end(evidence, one) for one in ids)),
        )
        for payment, ids in by_payment.items()
    }


def _end(evidence: Evidence, refund_id: str) -> str:
    record = evidence.records.get(refund_id, {})
    stage = record.get("stage", "lost")
    history = (evidence.histories or {}).get(refund_id, ())
    if stage == "review" and history and _is_refusal(history[-1]):
        # Whether a refusal is recorded depends on which of its replies was cut: that of a repeated
        # POST may be its echo, and repeats are limited.
        return "failed"
    return record["status"] if stage == "settled" else stage


def _is_refusal(move: Mapping[str, Any]) -> bool:
    return move.get("seen") == "refused" or move["label"] == "resends_spent"


def other_ends(found: Ends, usual: Ends) -> Iterator[Violation]:
    """Yield the payments whose refunds ended otherwise than in the run without webhooks."""
    for payment, (ids, came_to) in found.items():
        others, usually = usual.get(payment, ((), ()))
        if ids == others and came_to != usually:
            fact = f"{', '.join(came_to)}; without webhooks {', '.join(usually)}"
            yield Violation(rule="other end", about=payment, fact=fact)


def _in_review(evidence: Evidence) -> float:
    reviewed = sum(record["stage"] == "review" for record in evidence.records.values())
    return reviewed / max(1, len(evidence.accepted))


def _made_there(rig: Rig, evidence: Evidence) -> dict[str, list[str]]:
    """Return, for each refund in review, the ids of the provider's refunds with its metadata."""
    found = {}
    with httpx.Client(base_url=rig.sandbox.url, auth=(CANARY, ""), timeout=_SOON) as client:
        for refund_id, record in evidence.records.items():
            if record["stage"] != "review":
                continue
            asked = {"payment_intent": record["payment_intent"], "limit": "100"}
            listed = client.get("/v1/refunds", params=asked).json().get("data", [])
            found[refund_id] = [
                one["id"] for one in listed if one["metadata"].get("refund_id") == refund_id
            ]
    return found


# One reversal


def reverse(rig: Rig, evidence: Evidence, *, watched: bool) -> float:
    """Reverse a refund that succeeded; return the seconds until the record says so.

    Raises `RigError` if it does not within `_REVERSED_SECONDS`.
    """
    refund_id, provider_refund_id = _reversible(rig, evidence)
    rig.sandbox.move_refund(provider_refund_id, "failed")
    began = time.monotonic()
    if watched:
        _reach_rung(rig)
    rig.until(
        lambda: _is_reversed(rig, refund_id),
        f"the reversal of {refund_id} is recorded",
        _REVERSED_SECONDS,
    )
    return time.monotonic() - began


def _reversible(rig: Rig, evidence: Evidence) -> tuple[str, str]:
    # One that a webhook made due is not read again for half a minute.
    busy = {*rig.asking(lambda: rig.redis.zrange("refunds:hint-times", 0, -1)), *_rechecks(rig)}
    for refund_id, record in evidence.records.items():
        is_done = record["stage"] == "settled" and record["status"] == "succeeded"
        if is_done and refund_id not in busy and "provider_refund_id" in record:
            return refund_id, record["provider_refund_id"]
    raise RigError("no refund succeeded that could be reversed")


def _is_reversed(rig: Rig, refund_id: str) -> bool:
    key = f"refunds:refund:{refund_id}"
    status, at = rig.asking(lambda: rig.redis.hmget(key, "status", "reversed_at"))
    return status == "failed" and at is not None


def _reach_rung(rig: Rig) -> None:
    """Let the watch reach a rung of a second.

    `REFUNDS_WATCH` takes no rung so short, so the worker's own script is called with it.
    """
    command = rechecks.watch([_RUNG], rate=1_000_000, most=100_000)
    with Refunds(settings=Settings.load(redis_url=rig.server.url)) as refunds:
        refunds.store.run(command)
        # A rung begins with what settles from now on: this one is to begin with the run.
        cursor = f"succeeded:{_RUNG // timedelta(milliseconds=1)}"
        rig.asking(lambda: rig.redis.hset("refunds:watch", cursor, int(rig.started * 1000)))
        rig.until(lambda: refunds.store.run(command) > 0, "the watch reaches the refund")
