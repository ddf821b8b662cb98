"""What the provider changes after a refund has settled, and the days in which that is noticed.

A refund that succeeded fails, or a failed one turns succeeded: within minutes, days later, or right
before it is sent again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.simulation.clock import OUTSIDE
from worker.store.rechecks import FAILED_RUNGS

if TYPE_CHECKING:
    from datetime import timedelta

    from tests.simulation.known import Known
    from tests.simulation.world import World

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
BEFORE_RETRY_RATE: Final = 0.6
REVERSED_RATE: Final = 0.6
OTHER: Final = {"succeeded": "failed", "failed": "succeeded", "canceled": "succeeded"}
REVERSALS: Final = (
    "reversed",
    "unreversed",
    "earlier_unreversed",
    "reversed_days_later",
    "succeeded_before_retry",
)
KILLED: Final = "killed_at_a_rung"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How settled refunds are watched in one world; without rungs they are not."""

    rungs: tuple[timedelta, ...] = ()
    rate: float = 0.0
    """Refunds that all workers may add a second."""
    lockstep: bool = False
    """Whether every call takes the same time, so that refunds settle in the same moment."""

    def points(self, settled_at: float, status: str) -> list[float]:
        """Return when a refund is read again that settled at a time, both in seconds."""
        rungs = self.rungs if status == "succeeded" else self.rungs[:FAILED_RUNGS]
        return [settled_at + rung.total_seconds() for rung in rungs]


UNWATCHED: Final = Watch()


class Reversals:
    """Changes refunds of one world after they have settled, and judges that it is noticed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_on = "reversals" in world.plan.odd
        self._dice = random.Random(f"reversals-world:{world.plan.seed}")  # noqa: S311 - repeatable, not secret
        self._changed: set[str] = set()
        """The provider's refunds that were changed: once each."""
        self._awaited = 0
        self.days_later = False
        """Whether everything has ended, and only days pass."""

    @property
    def goes_on(self) -> bool:
        """Whether something is still to happen or to be noticed once everything has ended."""
        if self._is_on and not self.days_later:
            self.days_later = True
            self._plan_days()
        return self._awaited > 0

    @property
    def horizon(self) -> float:
        """Return the seconds that the days after the end may take."""
        return max((rung.total_seconds() for rung in self._world.plan.watch.rungs), default=0) * 2

    def begin(self) -> None:
        """Plan what is changed while faults last."""
        if self._is_on and self._dice.random() < 0.5:
            for _ in range(3):
                self._later(self._dice.random() * self._world.plan.faults_end, self._change_any)

    def next_read(self, now: float) -> float | None:
        """Return when the watch may find something next, in the world's seconds."""
        points = [point for known in self._settled() for point in self._points(known)]
        return min((point for point in points if point > now), default=None)

    # Changing

    def before_retry(self, refund_id: str) -> None:
        """Let a failed refund succeed right before a retry of ours is decided."""
        known, dice = self._world.judge.refunds[refund_id], self._dice
        if not self._may_change(known) or known.record["status"] != "failed":
            return
        if dice.random() < BEFORE_RETRY_RATE:
            names = [*known.priors, known.record["provider_refund_id"] or ""]
            if self._change(dice.choice(names)):
                self._world.happens("succeeded_before_retry", "provider")

    def _plan_days(self) -> None:
        """Plan what is changed on which day, and who dies when it is to be noticed."""
        watch, now = self._world.plan.watch, self._world.loop.time()
        last = max((rung.total_seconds() for rung in watch.rungs), default=DAY)
        for refund_id, known in [*self._world.judge.refunds.items()]:
            if _names(known) and self._dice.random() < REVERSED_RATE:
                share = self._dice.choice((0.02, 0.2, 1.0))
                self._await(self._dice.random() * last * share, self._change_one, refund_id)
        if watch.rungs and self._dice.random() < 0.4:
            for point in {point for known in self._settled() for point in self._points(known)}:
                if point > now and self._dice.random() < 0.5:
                    self._await(point - now + self._dice.random() * 8, self._kill)

    def _kill(self) -> None:
        if self._world.processes.kill_one():
            self._world.happens(KILLED)

    def _change_any(self) -> None:
        known = [*self._world.judge.refunds]
        if known:
            self._change_one(self._dice.choice(known))

    def _change_one(self, refund_id: str) -> None:
        known = self._world.judge.refunds[refund_id]
        names = _names(known)
        if not names or not self._may_change(known):
            return
        identity = self._dice.choice(names) if len(names) > 1 else names[0]
        # Beside another refund in doubt, a rise of its payment's total could be either's.
        is_failed = known.record["status"] != "succeeded"
        if is_failed and not self.days_later and self._world.plan.rules.readback == "totals":
            return
        if not self._change(identity):
            return
        fact = "unreversed" if is_failed else "reversed"
        is_earlier = identity != known.record["provider_refund_id"]
        self._world.happens("earlier_unreversed" if is_earlier else fact, "provider")
        if self.days_later:
            self._world.happens("reversed_days_later", "provider")
            if self._dice.random() < 0.3:
                # It is sent again, by somebody who was told or found out otherwise.
                self._await(self._dice.random() * 2 * DAY, self._world.people.retry, refund_id)
        self._expect(refund_id, known, identity)

    def _may_change(self, known: Known) -> bool:
        # What is shown late or oddly by the provider would be read as it was.
        is_settled = known.record.get("stage") == "settled"
        return self._is_on and not self._world.plan.odd.lag and is_settled

    def _change(self, identity: str) -> bool:
        bank = self._world.seam.bank
        refund = bank.refunds.get(identity)
        if refund is None or identity in self._changed or refund.status not in OTHER:
            return False
        if not bank.move(refund, OTHER[refund.status]):
            return False
        self._changed.add(identity)
        self._world.tell("provider", identity, "is", refund.status, refund.metadata)
        self._world.judge.effects.read_ledger()
        return True

    # Noticing

    def _expect(self, refund_id: str, known: Known, identity: str) -> None:
        """Judge an hour after the next rung that the record says what the provider does."""
        now, world = self._world.loop.time(), self._world
        calm = max(now, world.plan.faults_end + HOUR)
        points = [point for point in self._points(known) if point > calm]
        if points and "clock" not in world.plan.odd:
            record = known.record
            self._await(min(points) - now + HOUR, self._judge, refund_id, record, identity)

    def _judge(self, refund_id: str, then: dict[str, str | None], identity: str) -> None:
        known = self._world.judge.refunds[refund_id]
        made = self._world.seam.bank.refunds[identity]
        if known.record["version"] != then["version"] or made.status == then["status"]:
            return
        fact = f"recorded as {then['status']} past a rung, and {made.id} is {made.status}"
        self._world.judge.broken("unnoticed", refund_id, fact)

    def _settled(self) -> list[Known]:
        refunds = self._world.judge.refunds.values()
        return [known for known in refunds if known.record.get("stage") == "settled"]

    def _points(self, known: Known) -> list[float]:
        """Return when the watch reads a settled refund, in the world's seconds."""
        world, record = self._world, known.record
        if not _names(known) or (record["status"] == "canceled" and not known.priors):
            return []
        offset = world.judge.now_ms() / 1000 - world.loop.time()
        settled_at = int(record["updated_at"] or 0) / 1000 - offset
        return world.plan.watch.points(settled_at, record["status"] or "")

    def _await(self, seconds: float, what: Callable[..., object], *facts: object) -> None:
        self._awaited += 1

        def done() -> None:
            self._awaited -= 1
            what(*facts)

        self._later(seconds, done)

    def _later(self, seconds: float, what: Callable[..., object], *facts: object) -> None:
        loop = self._world.loop
        loop.call_at(loop.time() + seconds, what, *facts, context=OUTSIDE)


def _names(known: Known) -> list[str]:
    """Return the provider's refunds whose change the watch notices on a settled refund.

    One of an earlier generation is changed only beside a retry that did not succeed: beside one
    that did, money would move twice by the provider's own doing.
    """
    record = known.record
    names = [record.get("provider_refund_id") or ""]
    if record.get("status") in {"failed", "canceled"}:
        names += known.priors
    return [*dict.fromkeys(filter(None, names))]
