"""The people: callers who cancel or ask again, and operators who resolve what is in review, with
the truth in hand.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tests.simulation.clock import OUTSIDE
from worker.errors import GuardRefused, NotCancelable, NotInReview
from worker.model.refund import Lane, Refund, Stage
from worker.model.steps import Step
from worker.rules import decisions
from worker.sandbox.ledger import STANDING
from worker.store import reads, saves

if TYPE_CHECKING:
    from tests.simulation.plan import Asked
    from tests.simulation.world import World

MOST_RESOLVED: Final = 12
MISREAD_RATE: Final = 0.2
PERSON: Final = "person"


class People:
    """Everybody who acts on refunds beside the workers.

    They see what `refunds status` and a dashboard show.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._resolved = 0
        # Apart from the world's own dice: the moods of people change nothing else of a seed.
        self._mood = random.Random(f"{world.plan.seed}:people")  # noqa: S311 - repeatable, not secret

    def begin(self) -> None:
        """Let operators look at the review list now and then."""
        if self._world.plan.people_every:
            self._later(self._world.plan.people_every, self._operate)

    def expect(self, asked: Asked) -> None:
        """Plan what the caller of one refund will do."""
        identity, now = asked.request.refund_id, self._world.loop.time()
        if asked.cancel_at is not None:
            self._later(max(0.0, asked.cancel_at - now), self._cancel, identity)
        if asked.retry_at is not None:
            self._later(max(0.0, asked.retry_at - now), self.retry, identity)

    def _later(self, seconds: float, what: Callable[..., None], *facts: object) -> None:
        loop = self._world.loop
        loop.call_at(loop.time() + seconds, what, *facts, context=OUTSIDE)

    def _cancel(self, refund_id: str) -> None:
        self._apply(refund_id, decisions.cancel, "canceled_by_caller")

    def retry(self, refund_id: str) -> None:
        """Let the caller of a failed refund have it sent again."""
        self._world.reversals.before_retry(refund_id)
        self._apply(refund_id, decisions.retry_failed, "retried_by_caller")

    def _operate(self) -> None:
        world = self._world
        for refund_id, known in list(world.judge.refunds.items()):
            if known.record.get("stage") == "review" and self._resolved < MOST_RESOLVED:
                self._resolve(refund_id)
        if world.loop.time() < world.plan.faults_end + 4 * world.plan.people_every:
            self._later(world.plan.people_every, self._operate)

    def _resolve(self, refund_id: str) -> None:
        """Decide by what the provider's books say.

        Where something is still on its way, leave it for later.
        """
        world = self._world
        world.judge.effects.read_ledger()
        settle = world.plan.rules.settle.total_seconds()
        known = world.judge.refunds[refund_id]
        if known.posts and known.posts[-1].left_at + 2 * settle + 60 > world.loop.time():
            return
        self._resolved += 1
        generation = known.record["generation"] or "1"
        made = world.judge.effects.made(refund_id)
        here = [refund for refund in made if refund.metadata.get("refund_generation") == generation]
        # A retry may be in review because its earlier refund turned succeeded.
        own = bool(here)
        here = here or [
            refund for refund in made if refund.id in known.priors and refund.status in STANDING
        ]
        if "people" in world.plan.odd and world.odd_dice.random() < 0.6:
            self._decide_wrongly(refund_id, moved=bool(here))
        elif own and self._mood.random() < MISREAD_RATE:
            # Misread, and so to be verified: what the provider shows must outweigh it.
            if self._mood.random() < 0.5:
                self._apply(refund_id, self._resend(unverified=False), "resolved_in_error")
            else:
                self._apply(refund_id, self._failed(unverified=False), "resolved_in_error")
        elif here:
            identity = here[-1].id
            self._apply(
                refund_id,
                lambda refund: decisions.resolve_succeeded(
                    refund, identity, world.loop.wall, by=PERSON
                ),
                "resolved_succeeded",
            )
        elif world.dice.random() < 0.5:
            self._apply(
                refund_id, self._resend(unverified=self._mood.random() < 0.5), "resolved_resend"
            )
        else:
            self._apply(
                refund_id, self._failed(unverified=self._mood.random() < 0.5), "resolved_failed"
            )

    def _decide_wrongly(self, refund_id: str, *, moved: bool) -> None:
        """Insist on what is not so."""
        world, dice = self._world, self._world.odd_dice
        others = [
            refund.id
            for refund in world.seam.bank.refunds.values()
            if refund.metadata.get("refund_id") != refund_id and refund.status == "succeeded"
        ]
        if others and (not moved or dice.random() < 0.3):
            identity, unverified = dice.choice(others), dice.random() < 0.5
            self._apply(
                refund_id,
                lambda refund: decisions.resolve_succeeded(
                    refund, identity, world.loop.wall, by=PERSON, unverified=unverified
                ),
                "misled_succeeded",
            )
        elif moved and dice.random() < 0.5:
            self._apply(refund_id, self._resend(unverified=True), "misled_resend")
        elif moved:
            self._apply(refund_id, self._failed(unverified=True), "misled_failed")

    @staticmethod
    def _resend(*, unverified: bool) -> Callable[[Refund], Step]:
        return lambda refund: decisions.resolve_resend(refund, by=PERSON, unverified=unverified)

    @staticmethod
    def _failed(*, unverified: bool) -> Callable[[Refund], Step]:
        return lambda refund: decisions.resolve_failed(
            refund, "paid_in_cash", by=PERSON, unverified=unverified
        )

    def _apply(self, refund_id: str, decide: Callable[[Refund], Step | None], event: str) -> None:
        world = self._world
        if world.power.is_away:
            self._later(5.0, self._apply, refund_id, decide, event)
            return
        refund = world.run_call(reads.load(refund_id)).refund
        if refund is None:
            return
        try:
            step = decide(refund)
        except (GuardRefused, NotCancelable, NotInReview):
            return
        if step is None:
            return
        saved = world.run_call(saves.save(refund, step, {"by": PERSON}))
        world.tell("person", event, refund_id, saved.result)
        if saved.result != "saved":
            return
        world.happens(event, "person")
        world.judge.told(refund_id, refund.version + 1)
        if step.changes.get("operator_unverified"):
            world.judge.refunds[refund_id].insisted = True
        if event.startswith("misled"):
            world.judge.refunds[refund_id].misled = True
        world.power.tempt()
        if step.to is not Stage.SETTLED:
            world.mail.nudge([refund_id], Lane.SINGLE)
        if saved.woken is not None:
            world.mail.nudge([saved.woken], Lane.SINGLE)
