"""The provider's webhooks: an event for each refund made and each change, and their receiver.

Most come out of order, some twice or never. A thief of the secret sends some too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.clock import OUTSIDE
from worker.model import hints
from worker.sandbox import shapes
from worker.sandbox.webhooks import EVENT
from worker.store import rechecks

if TYPE_CHECKING:
    from tests.simulation.world import World
    from worker.sandbox.bank import SandboxRefund
    from worker.sandbox.config import WebhookShape

MODES: Final = ("early", "late", "twice", "shuffled", "never", "mixed", "mixed")
"""How the events of one world come; `mixed` draws it for each."""
SHAPES: Final[tuple[WebhookShape, ...]] = ("refund", "refund", "refund", "charge", "bare")
UNNAMED_RATE: Final = 0.2
"""Of events that show a refund, those that leave its metadata out."""
FORGED_SHARE: Final = 0.3
MOST_FORGED: Final = 6
MOST_TRIES: Final = 18
TWO_HOURS: Final = 7200.0
MISSING: Final = "re_nobody_made"
FATES: Final = ("webhook_not_received", "receiver_killed", "webhook_answer_lost")
"""What befalls a delivery.

It is not received; or it is received, and the nudge or the answer is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event; `names` is the provider's refund that it shows with our metadata, if it does."""

    body: bytes
    names: str | None = None


class Webhooks:
    """Sends and receives the events of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_on = "webhooks" in world.plan.odd
        self._dice = dice = random.Random(f"webhooks-world:{world.plan.seed}")  # noqa: S311 - repeatable, not secret
        self._mode = dice.choice(MODES)
        self._is_forged = dice.random() < FORGED_SHARE
        self._under_way = 0
        self._made = 0
        self.tampered: set[str] = set()
        """Refunds of ours that a forged event has named."""

    @property
    def over(self) -> bool:
        """Whether nothing is on its way any more."""
        return not self._under_way

    def begin(self) -> None:
        """Listen to the provider, and plan what is forged."""
        if not self._is_on:
            return
        self._world.seam.bank.on_change = self._changed
        if self._is_forged:
            for _ in range(self._dice.randint(1, MOST_FORGED)):
                within = self._dice.choice((5.0, 60.0, 1200.0))
                self._later(within * self._dice.random(), self._forge)

    # Sending

    def _changed(self, refund: SandboxRefund) -> None:
        """Send the event of a refund's present state."""
        if refund.status == "pending":
            # Otherwise it would settle at the next read only.
            self._later((self._world.plan.sandbox.settle_ms or 0) / 1000 + 0.001, self._settle)
        dice, mode = self._dice, self._mode
        if mode == "mixed":
            mode = dice.choice(MODES[:5])
        self._world.happens(f"webhook_{mode}", "provider")
        match mode:
            case "never":
                return
            case "early":
                # Before the reply to the POST has left.
                delays = [dice.random() * 0.001]
            case "late":
                delays = [dice.choice((1.0, 60.0, TWO_HOURS)) * dice.random()]
            case "twice":
                delays = [dice.random() * 0.1, dice.choice((0.1, 40.0, TWO_HOURS)) * dice.random()]
            case _:
                delays = [dice.random() * 600]
        event = self._event(refund)
        for delay in delays:
            self._send(event, delay)

    def _settle(self) -> None:
        self._world.judge.effects.read_ledger()

    def _event(self, refund: SandboxRefund) -> Event:
        dice = self._dice
        shape = dice.choice(SHAPES)
        config = replace(self._world.plan.sandbox, webhook_shape=shape)
        self._made += 1
        event = shapes.event(config, f"evt_{self._made}", EVENT, refund)
        if shape != "refund":
            self._world.happens(f"webhook_{shape}", "provider")
        elif dice.random() < UNNAMED_RATE:
            self._world.happens("webhook_unnamed", "provider")
            del event["data"]["object"]["metadata"]
        elif "refund_id" in refund.metadata:
            return Event(body=json.dumps(event).encode(), names=refund.id)
        return Event(body=json.dumps(event).encode())

    def _forge(self) -> None:
        """Send what the provider never sent: the secret was stolen."""
        world, dice = self._world, self._dice
        known = [*world.judge.refunds.items()]
        if not known or not world.faulty:
            return
        refund_id, ours = dice.choice(known)
        made = [*world.seam.bank.refunds]
        shown: dict[str, Any] = {
            "id": dice.choice((MISSING, *made[:20])),
            "object": "refund",
            "status": dice.choice(("succeeded", "failed", "pending")),
            "amount": dice.choice((500, 1)),
            "payment_intent": dice.choice((ours.payment, ours.payment, None, "pi_other")),
            "metadata": {"refund_id": refund_id, "refund_generation": dice.choice(("1", "2", "x"))},
        }
        self.tampered.add(refund_id)
        # Without an id of ours it may be noted with any refund of the payment.
        self.tampered |= {name for name, one in known if one.payment == ours.payment}
        world.happens("webhook_forged", "thief")
        event = {"type": EVENT, "data": {"object": shown}}
        self._send(Event(body=json.dumps(event).encode()), dice.random())

    def _send(self, event: Event, delay: float, tries: int = 1) -> None:
        self._under_way += 1
        self._later(delay, self._arrive, event, tries)

    def _later(self, seconds: float, what: Callable[..., None], *facts: object) -> None:
        loop = self._world.loop
        loop.call_at(loop.time() + seconds, what, *facts, context=OUTSIDE)

    # Receiving

    def _arrive(self, event: Event, tries: int) -> None:
        """Receive a delivery as the HTTP server does: its ids are on disk before the answer."""
        self._under_way -= 1
        world, dice = self._world, self._dice
        fate = ""
        if world.power.is_away:
            fate = FATES[0]
        elif world.faulty and dice.random() < world.plan.redis_rate + 0.05:
            fate = dice.choice(FATES)
        if fate:
            world.happens(fate, "door")
        if fate != FATES[0]:
            self._receive(event, nudges=fate != FATES[1])
        # The provider repeats what was not answered.
        if fate and tries < MOST_TRIES:
            self._send(event, dice.choice((1.0, 60.0, 1800.0)), tries + 1)

    def _receive(self, event: Event, *, nudges: bool) -> None:
        world, judge = self._world, self._world.judge
        for hint in hints.read_all(json.loads(event.body))[: hints.MOST]:
            before = {refund_id: known.record for refund_id, known in judge.refunds.items()}
            hinted = world.run_call(rechecks.hint(hint))
            world.tell("door", "hint", hint, hinted.result, [due.refund_id for due in hinted.due])
            judge.webhooks.noted(before, judge.refunds)
            if nudges:
                for due in hinted.due:
                    world.mail.nudge([due.refund_id], due.lane)
        if event.names is not None:
            judge.webhooks.named(event.names)
