"""Everybody else who moves the money of the same payments.

At the dashboard, by a dispute, and what falls back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tests.simulation.clock import OUTSIDE

if TYPE_CHECKING:
    from tests.simulation.world import World
    from worker.sandbox.bank import Bank, SandboxRefund

MOST: Final = 6
"""Refunds that others make in one world."""
DAY: Final = 86_400.0
SCENARIOS: Final = ("falls back", "between", "late", "any", "any")
"""What stood before falls back during our doubt.

A part is refunded between a worker's read of the totals and its
request; what we have asked for is refunded long after; anything at any time."""
MADE_AS: Final = ("succeeded", "succeeded", "succeeded", "pending")
_STANDING: Final = frozenset({"pending", "succeeded"})


def refund_elsewhere(
    bank: Bank, payment_id: str, amount: int | None, status: str
) -> SandboxRefund | None:
    """Make a refund that nobody of ours asked for, of all that is left if no amount is given.

    None if it cannot be.
    """
    payment = bank.payment(payment_id)
    wanted = None if payment is None else payment.left if amount is None else amount
    if payment is None or wanted is None or not 0 < wanted <= payment.left:
        return None
    made = bank._add(payment, amount=wanted, status=status)
    bank._enter("effect", made, idempotency_key=None)
    return made


class Others:
    """What others do in one world; most of it near to what workers do, where it can be mistaken for
    theirs.

    A payment with one refund of ours has a scenario of its own (`SCENARIOS`); on the others
    anything may happen.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = world.odd_dice
        self._made = 0
        self._scenario: dict[str, str] = {}

    def begin(self) -> None:
        """Let some of it be done before anything is asked of us."""
        odd, payments = self._world.plan.odd, self._world.plan.payments
        if "others" not in odd:
            return
        if odd.alone:
            scenarios = SCENARIOS[:1] if odd.falls_back else SCENARIOS
            self._scenario = {payment: self._dice.choice(scenarios) for payment in payments}
        for payment in payments:
            scenario = self._scenario.get(payment)
            if odd.known_first or scenario == "falls back":
                amount = self._ours(payment) if scenario else self._some(payment)
                self._refund(payment, amount, "others_before", stays=scenario == "falls back")

    def totals_shown(self, payment: str) -> None:
        """Act, now and then, right after a worker was shown what a payment has given back."""
        dice, scenario = self._dice, self._scenario.get(payment)
        if self._is_at_it() and (
            scenario == "between" or (scenario is None and dice.random() < 0.35)
        ):
            amount = dice.choice((7, 200, 300)) if scenario else self._some(payment)
            self._later(
                dice.choice((0.001, dice.uniform(0, 0.3))),
                self._refund,
                payment,
                amount,
                "others_between",
            )

    def sent(self, payment: str) -> None:
        """Act, now and then, once a worker's request has left.

        At once, during its doubt, or long after.
        """
        scenario, settle = (
            self._scenario.get(payment),
            self._world.plan.rules.settle.total_seconds(),
        )
        dice, uniform = self._dice, self._dice.uniform
        if (
            not self._is_at_it()
            or scenario == "between"
            or (scenario is None and dice.random() >= 0.5)
        ):
            return
        if scenario == "falls back":
            self._later(dice.choice((0.001, uniform(0, settle))), self._fall_back, payment)
            return
        if scenario == "late":
            self._refund_in_parts(payment, dice.choice((uniform(2.5, 6) * settle, uniform(0, DAY))))
            return
        delay = dice.choice((0.001, uniform(0, settle), uniform(0, 4 * settle), uniform(0, DAY)))
        if dice.random() < 0.4:
            self._later(delay, self._fall_back, payment)
        else:
            self._later(delay, self._refund, payment, self._some(payment), "others_meanwhile")

    def _refund_in_parts(self, payment: str, delay: float) -> None:
        """Refund what was asked of us, at once or in two parts."""
        whole = self._ours(payment)
        parts = (
            [whole]
            if whole is None or self._dice.random() < 0.5
            else [whole // 3, whole - whole // 3]
        )
        for part in parts:
            self._later(delay, self._refund, payment, part, "others_meanwhile")

    def _is_at_it(self) -> bool:
        return "others" in self._world.plan.odd and self._world.faulty and self._made < MOST

    def _later(self, seconds: float, what: Callable[..., None], *facts: object) -> None:
        loop = self._world.loop
        loop.call_at(loop.time() + seconds, what, *facts, context=OUTSIDE)

    def _ours(self, payment: str) -> int | None:
        """Return what one refund of ours asks for, None for all that is left."""
        asked = [
            one.request.amount
            for one in self._world.plan.asked
            if one.request.payment_intent == payment
        ]
        return self._dice.choice(asked) if asked else 500

    def _some(self, payment: str) -> int | None:
        """Return what to refund: mostly what could be taken for ours, whole or in parts."""
        return self._dice.choice((self._ours(payment), self._ours(payment), 7, 200, 300, None))

    def _refund(self, payment: str, amount: int | None, when: str, stays: bool = False) -> None:  # noqa: FBT001, FBT002 - a timer passes its arguments by position
        world, dice = self._world, self._dice
        if world.loop.time() > world.plan.faults_end + DAY:
            return
        self._made += 1
        status = "succeeded" if stays else dice.choice(MADE_AS)
        made = refund_elsewhere(world.seam.bank, payment, amount, status)
        if made is None:
            return
        world.happens(when, "others")
        world.tell("others", "refund", payment, made.amount, made.status, made.id)
        world.seam.bank.on_change(made)
        if status == "pending":
            end = dice.choice(("succeeded", "failed", "canceled"))
            self._later(dice.choice((1.0, 60.0, 1800.0)), self._move, made, end)
        elif not stays and dice.random() < 0.3:
            self._later(dice.choice((10.0, 300.0, 3600.0)), self._move, made, "failed")

    def _fall_back(self, payment: str) -> None:
        """Let one of the payment's refunds fail that had succeeded: the card's bank returns it."""
        world = self._world
        known = world.seam.bank.payment(payment)
        standing = [
            one
            for one in (known.refunds if known is not None else ())
            if one.status == "succeeded"
            and ("refund_id" not in one.metadata or self._dice.random() < 0.3)
        ]
        if standing:
            self._move(self._dice.choice(standing), "failed")

    def _move(self, refund: SandboxRefund, status: str) -> None:
        world = self._world
        if refund.status in _STANDING and world.seam.bank.move(refund, status):
            world.tell("others", refund.id, "is", status)
            if status != "succeeded":
                ours = "refund_id" in refund.metadata
                world.happens("ours_fell_back" if ours else "others_fell_back", "others")
