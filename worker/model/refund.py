"""The refund record and its types. What a caller requests is in `request`.

Records are frozen and keyword-only. Amounts are integers in minor units; times are timezone-aware
UTC datetimes inside and epoch milliseconds in Redis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from worker.model.request import RefundRequest
from worker.model.times import rfc3339


class Status(StrEnum):
    """The refund's status as callers see it; final only if the stage is settled."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Stage(StrEnum):
    """The refund's internal state; `rules.transitions` lists the allowed moves."""

    QUEUED = "queued"
    SENDING = "sending"
    WAITING = "waiting"
    IN_DOUBT = "in_doubt"
    PROCESSING = "processing"
    REVIEW = "review"
    SETTLED = "settled"


class Lane(StrEnum):
    """The Celery queue of a refund: one for single refunds, one for rows of a file."""

    SINGLE = "refunds"
    BULK = "refunds.bulk"


class Retriable(StrEnum):
    """Whether sending a failed refund again can help."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A payment's totals just before the first POST.

    The amount refunded and the amount left, in minor units.

    `shown_by` is the id of the charge or payment that showed them, None if it is not known, '' if
    they could not be read again before the latest POST: then nothing is compared with them.
    """

    refunded: int
    currency: str | None
    remaining: int | None
    shown_by: str | None = None

    @property
    def outdated(self) -> Baseline:
        """Return the same totals as of before an earlier POST only."""
        return replace(self, shown_by="")

    @property
    def is_outdated(self) -> bool:
        """Return whether the totals are only known as of before an earlier POST."""
        return self.shown_by == ""


# Without slots, so that `of` sets all fields at once.
@dataclass(frozen=True, kw_only=True)
class Refund:
    """A refund record as stored in Redis.

    The first block of fields is public; the second is internal to the worker.
    """

    refund_id: str
    status: Status
    stage: Stage
    payment_intent: str
    amount: int | None = None
    currency: str | None = None
    reason: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    metadata_erased_at: datetime | None = None
    """When the caller's metadata were erased; the fingerprint still identifies the request."""
    provider_refund_id: str | None = None
    provider_status: str | None = None
    failure_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    retriable: Retriable | None = None
    evidence: str | None = None
    contradicted_by: str | None = None
    """Id of a provider's refund that contradicts this record, until a person has resolved it."""
    reversed_at: datetime | None = None
    """When the worker saw that the provider had changed the succeeded refund to failed."""
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
    """The request had no amount; `amount` is then the provider's figure, once it is known."""
    asked_currency: str | None = None
    """The currency the caller stated, if any.

    Part of the request, unlike a currency learned from a reply.
    """
    first_attempt_at: datetime | None = None
    doubted: bool = False
    """Some attempt of this generation may have been executed.

    Kept when a proof of absence clears `doubt_since`.
    """
    quiet_at: datetime | None = None
    """When the last doubtful attempt can no longer have anything in transit.

    Lease end or last socket close.
    """
    verdicts: int = 0
    """Attempts with a verdict on this very refund; only these count towards the budget."""
    lapses: int = 0
    """Consecutive leases that lapsed without any reply."""
    server_errors: int = 0
    """Consecutive 5xx answers to the same idempotency key."""
    looks: int = 0
    """Consecutive inconclusive read-backs."""
    absent_at: datetime | None = None
    """First read-back that showed the refund absent; the second, a settle time later, proves it."""
    proven_absent_at: datetime | None = None
    found_at: datetime | None = None
    """First read-back whose totals showed our amount.

    The second, a settle time later, settles the refund.
    """
    resends: int = 0
    """Sends after absence was proven."""
    currency_checked: bool = False
    """Whether the payment was read and is in the currency that the caller stated."""
    unconfirmed_since: datetime | None = None
    """Since when the payment has not confirmed what a send requires."""
    baseline: Baseline | None = None
    processing_since: datetime | None = None
    missing_since: datetime | None = None
    """Since when the provider has answered 404 for the refund that it had reported as pending."""
    operator_says: str | None = None
    """A person's decision from review that is being verified.

    `absent` (send again), `failed` or `succeeded`.
    """
    operator_by: str | None = None
    """Who made that decision."""
    operator_code: str | None = None
    """The code with which the refund shall be settled as failed."""
    operator_unverified: bool = False
    """The person's statement counts unless something that can be read contradicts it."""
    absent_by_word: bool = False
    """It was sent again, and only a person says that what was sent before did not happen."""
    retry_may_be_lost: bool = False
    """A server was restored from a snapshot, and a later retry of it may be lost.

    It was not settled in the snapshot, or was, and turned out to have failed after the recovery.
    """
    hinted: str | None = None
    """Ids of provider refunds, between spaces, that webhooks named for this refund.

    Each is read before anything is sent, and removed once it is read.
    """
    hints_used: str | None = None
    """All ids that webhooks named in this generation, between spaces; few count.

    A `?` follows one that had moved nothing when it was read, or that a person named: it may be
    read again.
    """
    possible_refund_id: str | None = None
    """A provider refund that may be this one: it agrees, and carries no id of ours."""
    prior_refund_ids: str | None = None
    """Provider refunds of earlier generations, between spaces; read again before a send.

    Also one that failed while only a person said that an earlier send did not happen, one that a
    person named and that was not confirmed, and one that only the reply to a send ties to ours.
    """
    set_aside_ids: str | None = None
    """Provider refunds shown for this one beside the one that a person named, between spaces.

    Until a person has named one, those shown beside `contradicted_by`. They may have moved money
    too, so a refund that has any is not sent again.
    """

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Refund:
        """Return the record with these fields, as the constructor does, in a fifth of its time.

        The constructor of a frozen class makes a call for each of its fields.
        """
        if not (_REQUIRED <= values.keys() <= _FIELDS):
            # The constructor names what is missing or unknown.
            return cls(**values)
        refund = object.__new__(cls)
        refund.__dict__.update(_DEFAULTS, metadata={})
        refund.__dict__.update(values)
        return refund

    @property
    def settled(self) -> bool:
        """Return whether the status is final."""
        return self.stage is Stage.SETTLED

    @property
    def rests(self) -> bool:
        """Return whether waiting for it is over: it is settled or needs review."""
        return self.settled or self.stage is Stage.REVIEW

    @property
    def candidates(self) -> tuple[str, ...]:
        """Return the provider's refunds that webhooks named and that were not read yet."""
        return tuple((self.hinted or "").split())

    @property
    def ids_named(self) -> tuple[str, ...]:
        """Return the provider's refunds that webhooks named in this generation, read or not."""
        return tuple(word.removesuffix("?") for word in (self.hints_used or "").split())

    @property
    def prior_ids(self) -> tuple[str, ...]:
        """Return the provider's refunds of earlier generations."""
        return tuple((self.prior_refund_ids or "").split())

    def prior_ids_with(self, *ids: str) -> str:
        """Return the `prior_refund_ids` with these added, each once."""
        return " ".join(dict.fromkeys((*self.prior_ids, *ids)))

    @property
    def ids_set_aside(self) -> tuple[str, ...]:
        """Return the provider's refunds that a person knew of when they named another one."""
        return tuple((self.set_aside_ids or "").split())

    @property
    def ids_reported(self) -> tuple[str, ...]:
        """Return the provider's refunds beside this one that were already reported to a person.

        The person has said which one counts, or has yet to say it.
        """
        was_reported = self.status is Status.SUCCEEDED or self.contradicted_by is not None
        return self.ids_set_aside if was_reported else ()

    @property
    def can_be_made_again(self) -> bool:
        """Return whether the record still holds what the caller asked for, to send it again.

        It does not once the metadata are erased, or once a person settled it as a provider's refund
        of another amount.
        """
        return self.metadata_erased_at is None and self.as_request().fingerprint == self.fingerprint

    @property
    def is_only_said_absent(self) -> bool:
        """Return whether only a person says that no money moved before.

        Then the refund may have happened all the same, and no later refusal ends it.
        """
        if self.doubted:
            return self.evidence not in _PROVES_ABSENCE
        return self.operator_says == "absent"

    @property
    def may_have_happened(self) -> bool:
        """Return whether a person's decision about it counts only after a read-back."""
        return (
            self.doubt_since is not None
            or self.doubted
            # The provider may have reported it as pending, and so have it. An older version left a
            # review with this, or because of a refund with our id, without a doubt.
            or self.processing_since is not None
            or self.error_code == "conflict"
        )

    @property
    def tried_since(self) -> datetime | None:
        """Return since when its allowed age counts, None if it was never sent.

        One that a restored server accepted again may have been sent long before that.
        """
        first = self.first_attempt_at
        return None if first is None else max(first, self.created_at)

    @property
    def asked_amount(self) -> int | None:
        """Return the amount the caller stated, None if the caller requested all that is left."""
        return None if self.all_remaining else self.amount

    def as_request(self) -> RefundRequest:
        """Return the caller's original request, without its metadata if they were erased."""
        return RefundRequest(
            refund_id=self.refund_id,
            payment_intent=self.payment_intent,
            amount=self.asked_amount,
            currency=self.asked_currency,
            reason=self.reason,
            metadata=self.metadata,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the contract's JSON fields.

        Amounts as integers, times as RFC 3339 UTC, absent values as None.
        """
        return {name: _json_value(getattr(self, name)) for name in PUBLIC_FIELDS}


_PROVES_ABSENCE: Final = frozenset({"list", "totals"})
_FIELDS: Final = frozenset(each.name for each in fields(Refund))
_DEFAULTS: Final = {
    each.name: each.default for each in fields(Refund) if each.default is not MISSING
}
_REQUIRED: Final = _FIELDS - _DEFAULTS.keys() - {"metadata"}

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
    "reversed_at",
    "metadata_erased_at",
)


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    return value
