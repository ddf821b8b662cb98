"""The sandbox's payments and refunds.

Which exist, what is left to refund, and how a refund's status changes.

A payment intent exists as soon as it is named: captured at 100000 usd, and refunds of it succeed.
Ids that begin as in `MAGIC` behave differently, so a file of refunds can show every outcome without
any setup.
"""

from __future__ import annotations

import heapq
import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from worker.sandbox.ledger import STANDING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.sandbox.ledger import Ledger

CAPTURED: Final = 100_000
CURRENCY: Final = "usd"
FAILURE_REASONS: Final = ("lost_or_stolen_card", "expired_or_canceled_card", "unknown")


class Outcome(StrEnum):
    """The outcome of every refund on a payment.

    The `pending_then` ones settle after a delay or at an advance.
    """

    SUCCEEDED = "succeeded"
    PENDING = "pending"
    PENDING_THEN_SUCCEEDED = "pending_then_succeeded"
    PENDING_THEN_FAILED = "pending_then_failed"
    PENDING_THEN_CANCELED = "pending_then_canceled"
    FAILED = "failed"
    CANCELED = "canceled"
    DECLINED = "declined"


# Outcome → the status a refund is created with, and the status it settles to by itself.
COURSE: Final[dict[Outcome, tuple[str, str | None]]] = {
    Outcome.SUCCEEDED: ("succeeded", None),
    Outcome.PENDING: ("pending", None),
    Outcome.PENDING_THEN_SUCCEEDED: ("pending", "succeeded"),
    Outcome.PENDING_THEN_FAILED: ("pending", "failed"),
    Outcome.PENDING_THEN_CANCELED: ("pending", "canceled"),
    Outcome.FAILED: ("failed", None),
    Outcome.CANCELED: ("canceled", None),
}
# Status → what it may become later. The card's bank can still return a succeeded refund, and a
# failed one can turn out to have been paid.
LATER: Final[dict[str, frozenset[str]]] = {
    "pending": frozenset({"succeeded", "failed", "canceled"}),
    "succeeded": frozenset({"failed", "canceled"}),
    "failed": frozenset({"succeeded"}),
    "canceled": frozenset({"succeeded"}),
}
# Beginning of a payment intent's id → how that payment differs. The longest beginning wins; None
# does not exist.
MAGIC: Final[dict[str, dict[str, Any] | None]] = {
    "pi_missing": None,
    "pi_declined": {"outcome": Outcome.DECLINED},
    "pi_pending": {"outcome": Outcome.PENDING},
    "pi_pending_succeeded": {"outcome": Outcome.PENDING_THEN_SUCCEEDED},
    "pi_pending_failed": {"outcome": Outcome.PENDING_THEN_FAILED},
    "pi_pending_canceled": {"outcome": Outcome.PENDING_THEN_CANCELED},
    "pi_failed": {"outcome": Outcome.FAILED},
    "pi_canceled": {"outcome": Outcome.CANCELED},
    "pi_refunded": {"refunded": CAPTURED},
    "pi_two_charges": {"charges": 2},
    "pi_eur": {"currency": "eur"},
}
_LONGEST_FIRST: Final = sorted(MAGIC, key=len, reverse=True)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why the provider refuses to make a refund, with the fields of its error."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """The refund that a request asks for; without an amount, of all that is left."""

    payment_intent: str
    amount: int | None
    reason: str | None
    metadata: Mapping[str, str]
    idempotency_key: str | None


@dataclass(slots=True, kw_only=True)
class SandboxRefund:
    """One refund as the provider stores it.

    `is_in_ledger` says whether an `effect` entry of the ledger shows it.
    """

    id: str
    payment: SandboxPayment
    amount: int
    created: float
    status: str
    reason: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    failure_reason: str | None = None
    is_in_ledger: bool = False


@dataclass(slots=True, kw_only=True)
class SandboxPayment:
    """One captured payment; `settle_ms` overrides the sandbox's own delay."""

    id: str
    created: float
    amount: int = CAPTURED
    currency: str = CURRENCY
    charges: int = 1
    outcome: Outcome = Outcome.SUCCEEDED
    failure_reason: str = "unknown"
    settle_ms: float | None = None
    refunds: list[SandboxRefund] = field(default_factory=list)
    succeeded: int = 0
    pending: int = 0

    @property
    def left(self) -> int:
        """What can still be refunded; a pending refund keeps its amount reserved."""
        return self.amount - self.succeeded - self.pending

    def charge_ids(self) -> list[str]:
        """Return the ids of the charges, the latest last."""
        first = "ch_" + self.id.removeprefix("pi_")
        return [first if index == 0 else f"{first}__{index + 1}" for index in range(self.charges)]

    def count(self, status: str, amount: int) -> None:
        """Add an amount, which may be negative, to the total of one status."""
        if status == "succeeded":
            self.succeeded += amount
        elif status == "pending":
            self.pending += amount


@dataclass(kw_only=True)
class Bank:
    """All payments and refunds.

    Whatever moves or reserves money is in the ledger before a method returns. `on_change` is called
    with each refund made and each one whose status changed, once the ledger has it.
    """

    ledger: Ledger
    clock: Callable[[], float] = time.monotonic
    payments: dict[str, SandboxPayment] = field(default_factory=dict)
    refunds: dict[str, SandboxRefund] = field(default_factory=dict)
    on_change: Callable[[SandboxRefund], None] = lambda _refund: None
    _charges: dict[str, str] = field(default_factory=dict)
    _settling: list[tuple[float, int, str, str]] = field(default_factory=list)
    _made: int = 0
    # Ids differ between two runs of the sandbox, since records may outlive the first run.
    _life: str = field(default_factory=lambda: secrets.token_hex(4))

    def payment(self, payment_id: str) -> SandboxPayment | None:
        """Return the payment of that id, created at first use; None if it cannot exist."""
        known = self.payments.get(payment_id)
        if known is not None:
            return known
        if not payment_id.startswith("pi_") or payment_id == "pi_":
            return None
        magic = next((MAGIC[start] for start in _LONGEST_FIRST if payment_id.startswith(start)), {})
        return None if magic is None else self.create_payment(payment_id, **magic)

    def create_payment(self, payment_id: str, *, refunded: int = 0, **facts: Any) -> SandboxPayment:
        """Create a payment with these facts.

        `refunded` is an earlier refund that is not in the ledger.
        """
        payment = SandboxPayment(id=payment_id, created=time.time(), **facts)
        self.payments[payment_id] = payment
        for charge_id in payment.charge_ids():
            self._charges[charge_id] = payment_id
        if refunded:
            self._add(payment, amount=refunded, status="succeeded")
        return payment

    def payment_of_charge(self, charge_id: str) -> SandboxPayment | None:
        """Return the payment that a charge belongs to, None if there is none."""
        known = self._charges.get(charge_id)
        if known is None and charge_id.startswith("ch_"):
            payment = self.payment("pi_" + charge_id.removeprefix("ch_"))
            return payment if payment is not None and charge_id in payment.charge_ids() else None
        return None if known is None else self.payments[known]

    def refund(self, order: Order, *, settle_ms: float | None) -> SandboxRefund | Refusal:
        """Make a refund, or return why not. Without an amount it is of all that is left.

        `settle_ms` is the delay if the payment has none of its own; without either, only an advance
        settles.
        """
        payment = self.payment(order.payment_intent)
        if payment is None:
            return Refusal(
                status=404,
                type="invalid_request_error",
                code="resource_missing",
                message=f"No such payment_intent: '{order.payment_intent}'",
                param="payment_intent",
            )
        if payment.left == 0:
            return Refusal(
                status=400,
                type="invalid_request_error",
                code="charge_already_refunded",
                message=f"Charge {payment.charge_ids()[-1]} has already been refunded.",
            )
        wanted = payment.left if order.amount is None else order.amount
        if wanted > payment.left:
            return Refusal(
                status=400,
                type="invalid_request_error",
                code="amount_too_large",
                message=(
                    f"Refund amount ({wanted}) is greater than unrefunded amount on charge"
                    f" ({payment.left})."
                ),
                param="amount",
            )
        if payment.outcome is Outcome.DECLINED:
            return Refusal(
                status=402,
                type="card_error",
                code="card_declined",
                message="The card's bank declined the refund.",
            )
        status, later = COURSE[payment.outcome]
        made = self._add(payment, amount=wanted, status=status, order=order)
        if status == "failed":
            made.failure_reason = payment.failure_reason
        if status in {"succeeded", "pending"}:
            self._enter("effect", made, idempotency_key=order.idempotency_key)
        delay = payment.settle_ms if payment.settle_ms is not None else settle_ms
        if later is not None:
            due = float("inf") if delay is None else self.clock() + delay / 1000
            heapq.heappush(self._settling, (due, self._made, made.id, later))
        self.on_change(made)
        return made

    def settle_due(self) -> None:
        """Settle the pending refunds whose delay is over; called before anything is read."""
        while self._settling and self._settling[0][0] <= self.clock():
            self._settle_next()

    def advance(self) -> int:
        """Settle every pending refund that would settle by itself, and return how many."""
        return sum(self._settle_next() for _ in range(len(self._settling)))

    def move(self, refund: SandboxRefund, status: str, failure_reason: str | None = None) -> bool:
        """Change a refund's status and add it to the ledger.

        Return False, unchanged, if `why_not` gives a reason.
        """
        if self.why_not(refund, status) is not None:
            return False
        was = refund.status
        refund.payment.count(was, -refund.amount)
        refund.payment.count(status, refund.amount)
        refund.status = status
        refund.failure_reason = (
            failure_reason or refund.payment.failure_reason if status == "failed" else None
        )
        facts: dict[str, Any] = {"was": was, "failure_reason": refund.failure_reason}
        if status in STANDING and not refund.is_in_ledger:
            # Made without an effect, so this change is the one that moves its money.
            self._enter("effect", refund, idempotency_key=None, **facts)
        else:
            self._enter("status", refund, **facts)
        self.on_change(refund)
        return True

    def why_not(self, refund: SandboxRefund, status: str) -> str | None:
        """Return why a refund cannot become that status, None if it can."""
        if status not in LATER[refund.status]:
            return f"a {refund.status} refund cannot become {status}"
        left = refund.payment.left
        if refund.status not in STANDING and status in STANDING and refund.amount > left:
            return f"its amount is {refund.amount}, and only {left} of the payment is left"
        return None

    def _settle_next(self) -> bool:
        _, _, refund_id, status = heapq.heappop(self._settling)
        refund = self.refunds[refund_id]
        # A refund that was moved by hand has settled already.
        return refund.status == "pending" and self.move(refund, status)

    def _add(
        self, payment: SandboxPayment, *, amount: int, status: str, order: Order | None = None
    ) -> SandboxRefund:
        self._made += 1
        refund = SandboxRefund(
            id=f"re_{self._life}{self._made:08d}",
            payment=payment,
            amount=amount,
            created=time.time(),
            status=status,
            reason=order.reason if order else None,
            metadata=order.metadata if order else {},
        )
        payment.refunds.append(refund)
        payment.count(status, amount)
        self.refunds[refund.id] = refund
        return refund

    def _enter(self, event: str, refund: SandboxRefund, **facts: object) -> None:
        refund.is_in_ledger = refund.is_in_ledger or event == "effect"
        self.ledger.append(
            event,
            refund=refund.id,
            payment_intent=refund.payment.id,
            amount=refund.amount,
            currency=refund.payment.currency,
            status=refund.status,
            refund_id=refund.metadata.get("refund_id"),
            **facts,
        )
