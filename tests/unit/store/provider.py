"""A provider whose ledger is the judge of every journey, and what may become of what is sent to
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from hypothesis import strategies as st

from tests.factories import (
    BAD_KEY,
    MAYBE,
    MISMATCH,
    NOT_DONE,
    NOT_SENT,
    REFUSED,
    SERVER_ERROR,
    a_reply,
    an_error,
    found,
)
from worker.model.answers import Answer, Outcome, PaymentView, ProviderRefund
from worker.model.refund import Refund

CAPTURED = 100_000


@dataclass
class Provider:
    """Moves money once for each request it executes, or once for each key where it honours keys."""

    honours_keys: bool
    counts_pending: bool
    """Whether a payment's refunded total holds what is still pending."""
    ledger: dict[str, list[ProviderRefund]] = field(default_factory=dict)
    """By idempotency key: what was executed under it."""

    def entries(self) -> list[ProviderRefund]:
        return [entry for entries in self.ledger.values() for entry in entries]

    def execute(self, refund: Refund, now: datetime) -> ProviderRefund | None:
        """Give money back for a request, None where none is left."""
        made = self.ledger.setdefault(refund.idempotency_key, [])
        if made and self.honours_keys:
            return made[0]
        left = CAPTURED - sum(entry.amount or 0 for entry in self.listed(refund.payment_intent))
        amount = refund.asked_amount or left
        if not 0 < amount <= left:
            return None
        number = len(self.entries())
        made.append(
            found(
                id=f"re_{number}",
                status="pending" if number % 2 else "succeeded",
                amount=amount,
                payment_intent=refund.payment_intent,
                refund_id=refund.refund_id,
                generation=str(refund.generation),
                created=now,
            )
        )
        return made[-1]

    def shown(self, refund: Refund) -> list[ProviderRefund]:
        """What was executed of this generation of a refund."""
        return self.ledger.get(refund.idempotency_key, [])

    def moved(self, refund_id: str) -> int:
        """How often money moved for a refund, whatever the generation."""
        return sum(entry.refund_id == refund_id for entry in self.entries())

    def listed(self, payment_intent: str) -> list[ProviderRefund]:
        return [entry for entry in self.entries() if entry.payment_intent == payment_intent]

    def view(self, payment_intent: str) -> PaymentView:
        counted = [
            entry.amount or 0
            for entry in self.listed(payment_intent)
            if self.counts_pending or entry.status == "succeeded"
        ]
        return PaymentView(refunded=sum(counted), captured=CAPTURED, currency="usd")

    def finish(self, identity: str) -> None:
        """Let a pending refund become final."""
        for entries in self.ledger.values():
            entries[:] = [
                replace(entry, status="succeeded") if entry.id == identity else entry
                for entry in entries
            ]

    def answer(self, identity: str) -> Answer:
        """What a question for one refund is answered with."""
        for entry in self.entries():
            if entry.id == identity:
                return a_reply(
                    200,
                    {
                        "id": entry.id,
                        "object": "refund",
                        "amount": entry.amount,
                        "currency": entry.currency,
                        "payment_intent": entry.payment_intent,
                        "metadata": {
                            "refund_id": entry.refund_id,
                            "refund_generation": entry.generation,
                        },
                        "status": entry.status,
                    },
                )
        return an_error(404, "resource_missing")


UNDONE = st.sampled_from(
    [
        MAYBE,
        NOT_SENT,
        NOT_DONE,
        BAD_KEY,
        SERVER_ERROR,
        REFUSED,
        replace(REFUSED, code="lock_timeout"),
        MISMATCH,
    ]
)
Reading = Literal["clear", "blurred", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a nudge's work.

    Whether the provider executes what is sent, answers at once, and can be read.
    """

    executes: bool
    prompt: bool
    undone: Outcome
    reading: Reading


FATES = st.builds(
    Fate,
    executes=st.booleans(),
    prompt=st.booleans(),
    undone=UNDONE,
    reading=st.sampled_from(["clear", "clear", "blurred", "unreadable"]),
)


@dataclass
class Flight:
    """One attempt on the wire: the record as it was claimed, and what the provider did of it."""

    refund: Refund
    effect: ProviderRefund | None
