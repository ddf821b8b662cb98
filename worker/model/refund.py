"""What a record holds. What a caller asks for is in `request`.

Records are frozen and keyword-only. Amounts are integers in minor units; times are timezone-aware UTC datetimes
inside and epoch milliseconds at the rim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from worker.model.request import RefundRequest
from worker.model.times import rfc3339


class Status(StrEnum):
    """What the caller asked for; final only when the stage is settled."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Stage(StrEnum):
    """Where a refund is on its way; `rules.transitions` says where it may go."""

    QUEUED = "queued"
    SENDING = "sending"
    WAITING = "waiting"
    IN_DOUBT = "in_doubt"
    PROCESSING = "processing"
    REVIEW = "review"
    SETTLED = "settled"


class Lane(StrEnum):
    """Which queue a refund travels in: single ones, or rows of a file."""

    SINGLE = "refunds"
    BULK = "refunds.bulk"


class Retriable(StrEnum):
    """Whether sending a failed refund again can help."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What a payment looked like just before the first POST: refunded so far, and what was left, in minor units."""

    refunded: int
    currency: str | None
    remaining: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Refund:
    """One record as it stands in Redis. The first block is the contract's; the second is the worker's own."""

    refund_id: str
    status: Status
    stage: Stage
    payment_intent: str
    amount: int | None = None
    currency: str | None = None
    reason: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    provider_refund_id: str | None = None
    provider_status: str | None = None
    failure_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    retriable: Retriable | None = None
    evidence: str | None = None
    contradicted_by: str | None = None
    """A refund that the provider shows for this one against what is recorded, until a person has ended that."""
    doubt_since: datetime | None = None
    attempts: int = 0
    generation: int = 1
    batch_id: str | None = None
    created_at: datetime
    updated_at: datetime
    next_check_at: datetime | None = None
    version: int

    lane: Lane = Lane.SINGLE
    fingerprint: str
    idempotency_key: str
    all_remaining: bool = False
    """Asked for without an amount: `amount` is then the provider's figure, once there is one."""
    asked_currency: str | None = None
    """The currency the caller stated, if any: part of what was asked, unlike one learned from a reply."""
    first_attempt_at: datetime | None = None
    doubted: bool = False
    """Some attempt of this generation may have happened: kept when `doubt_since` is cleared by a proof of absence."""
    quiet_at: datetime | None = None
    """From here on nothing of the last doubtful attempt can still be on its way: lease end or last socket close."""
    verdicts: int = 0
    """Attempts that reached a verdict on this very refund; only these count towards the budget."""
    lapses: int = 0
    """Leases that lapsed in a row without any reply."""
    server_errors: int = 0
    """5xx answers in a row to the same key."""
    looks: int = 0
    """Read-backs in a row that could not tell."""
    absent_at: datetime | None = None
    """First read-back that showed the refund absent; the second, a settle time later, proves it."""
    proven_absent_at: datetime | None = None
    found_at: datetime | None = None
    """First totals look that showed our amount; the second, a settle time later, settles."""
    resends: int = 0
    """Sends after absence was proven."""
    currency_checked: bool = False
    """The payment was read, and is in the currency that the caller stated."""
    unconfirmed_since: datetime | None = None
    """Since when the payment does not confirm what it must before a send."""
    baseline: Baseline | None = None
    processing_since: datetime | None = None
    missing_since: datetime | None = None
    """Since when the provider answers 404 for the refund that it had reported as pending."""
    operator_says: str | None = None
    """A person's decision from review that is being verified: `absent` (send again), `failed` or `succeeded`."""
    operator_by: str | None = None
    """Who decided so."""
    operator_code: str | None = None
    """The code with which the refund shall be settled as failed."""
    operator_unverified: bool = False
    """The person's word shall count if nothing that can be read says otherwise."""

    @property
    def settled(self) -> bool:
        """Tell whether the status is final."""
        return self.stage is Stage.SETTLED

    @property
    def asked_amount(self) -> int | None:
        """Return the amount the caller stated, None for all that is left."""
        return None if self.all_remaining else self.amount

    def as_request(self) -> RefundRequest:
        """Return what the caller asked for, as it was asked."""
        return RefundRequest(
            refund_id=self.refund_id,
            payment_intent=self.payment_intent,
            amount=self.asked_amount,
            currency=self.asked_currency,
            reason=self.reason,
            metadata=self.metadata,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the contract's JSON fields: amounts as integers, times as RFC 3339 UTC, absent values as None."""
        return {name: _json_value(getattr(self, name)) for name in PUBLIC_FIELDS}


PUBLIC_FIELDS: Final = (
    "refund_id",
    "status",
    "stage",
    "payment_intent",
    "amount",
    "currency",
    "reason",
    "metadata",
    "provider_refund_id",
    "provider_status",
    "failure_reason",
    "error_code",
    "error_message",
    "retriable",
    "evidence",
    "doubt_since",
    "attempts",
    "generation",
    "batch_id",
    "created_at",
    "updated_at",
    "next_check_at",
    "version",
    "contradicted_by",
)


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    return value
