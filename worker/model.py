"""The nouns: what a record holds, what the provider answered, what to do next. What a caller asks for is in `request`.

Records are frozen and keyword-only. Amounts are integers in minor units; times are timezone-aware UTC datetimes
inside and epoch milliseconds at the rim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from worker.request import RefundRequest


class Status(StrEnum):
    """What the caller asked for; final only when the stage is settled."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Stage(StrEnum):
    """Where a refund is on its way; `policy.TRANSITIONS` says where it may go."""

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


def rfc3339(moment: datetime) -> str:
    """Return a time as RFC 3339 UTC with milliseconds, such as `2026-01-31T09:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_ms(milliseconds: int) -> datetime:
    """Return epoch milliseconds as a UTC time."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC) + timedelta(milliseconds=milliseconds % 1000)


def to_ms(moment: datetime) -> int:
    """Return a time as epoch milliseconds, exactly."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderRefund:
    """A refund as the provider shows it; every field but the id is optional.

    '' (of an amount -1) stands for what is there and cannot be read: it agrees with nothing.
    """

    id: str
    status: str | None = None
    """One of `payloads.STATUSES`, or the provider's own word in clean text."""
    amount: int | None = None
    currency: str | None = None
    payment_intent: str | None = None
    failure_reason: str | None = None
    """A code, never a sentence."""
    failure_words: str | None = None
    """What stands in place of that code, as clean text."""
    refund_id: str | None = None
    """Our own id, from its metadata."""
    generation: str | None = None
    created: datetime | None = None

    @property
    def is_pending(self) -> bool:
        """Tell whether the provider has it and says that it is not final yet."""
        return self.status in PENDING_WORDS


PENDING_WORDS: Final = frozenset({"pending", "processing", "requires_action"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderError:
    """An error as the provider words it; at least one of the three is there."""

    kind: str | None = None
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PaymentView:
    """What a payment intent (or its one charge) shows of money given back, in minor units.

    `refunded` is None if the provider's answer does not say it clearly; `problem` then says why.
    """

    refunded: int | None = None
    captured: int | None = None
    currency: str | None = None
    charge: str | None = None
    """The one charge to be read for the totals, if the payment itself does not carry them."""
    problem: str | None = None
    shown: bool = field(default=False, compare=False)
    """The provider showed this very payment, whatever it says of money."""

    @property
    def baseline(self) -> Baseline | None:
        """Return the totals as a baseline, None if they cannot be told."""
        if self.refunded is None:
            return None
        remaining = None if self.captured is None else self.captured - self.refunded
        return Baseline(refunded=self.refunded, currency=self.currency, remaining=remaining)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page of a list of refunds: None for an entry that shows none; `more` is None if it does not say so."""

    entries: tuple[ProviderRefund | None, ...]
    more: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """A reply's JSON object as `payloads.read` understood it: typed, bounded and clean. Nothing else of it is kept."""

    kind: str | None = None
    """What the object calls itself, '' if that is not a name."""
    id: str | None = None
    payment_intent: str | None = None
    refund: ProviderRefund | None = None
    error: ProviderError | None = None
    payment: PaymentView = PaymentView()
    latest_charge: str | None = None
    page: Page | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    """By its path every number and truth value; filled for a probe only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A whole HTTP reply. `payload` is what `payloads` understood of its JSON object, None if there is none."""

    http_status: int
    payload: Payload | None = None
    retry_after: timedelta | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NotSent:
    """Not one byte of the request can have reached the provider; `reason` says why in a few words."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NoReply:
    """The request may have been read and executed; no whole reply came back."""

    reason: str


Answer = Reply | NotSent | NoReply


class Seen(StrEnum):
    """What a try says of the refund, from weakest to strongest in the fold over an attempt's tries."""

    NOT_SENT = "not_sent"
    NOT_DONE = "not_done"
    REFUSED = "refused"
    MAYBE = "may_have_happened"
    MISMATCH = "idempotency_mismatch"
    DONE = "done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What an answer means for the refund it is about."""

    seen: Seen
    code: str
    message: str | None = None
    http_status: int | None = None
    found: ProviderRefund | None = None
    retry_after: timedelta | None = None
    credentials: bool = False
    """The key itself may be refused: everyone's trouble, not this refund's."""
    server_error: bool = False
    doubt: bool = False
    """Some try of the attempt may have happened, whatever the strongest one says."""
    tries: int = 1
    server_errors: int = 0
    """5xx answers in a row at the end of the attempt."""
    only_server_errors: bool = False
    """Every answer of the attempt was a 5xx: the row goes on from the attempt before."""


class Sight(StrEnum):
    """What a read-back of a doubtful refund showed."""

    FOUND = "found"
    FOUND_IN_TOTALS = "found_in_totals"
    ABSENT = "absent"
    INCONCLUSIVE = "inconclusive"
    CONFLICT = "conflict"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The result of a read-back: what was seen, the refund where one was found, and why in a few words."""

    sight: Sight
    reason: str
    found: ProviderRefund | None = None
    retry_after: timedelta | None = None
    credentials: bool = False
    missing: bool = False
    """The provider answered 404: one of its replicas may lag."""
    source: str | None = None
    """Where a refund was found, if not in what `rules.readback` names: `lookup`, read by its id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A decision as data: where the refund goes, what changes on it, and when to look again.

    `to` equal to the present stage with `quiet` set only moves `next_check_at` (and counters): no version, no history.
    A `None` in `changes` removes the field.
    """

    to: Stage
    status: Status
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    delay: timedelta | None = None
    quiet: bool = False
    proof: bool = False
    """Proof of done: accepted at any version while the refund is unsettled."""
    alarm: str | None = None
    source: str | None = None
    """What concluded this: `reply`, `list`, `totals`, `lookup` (read by id) or `operator`; None if nothing did."""
    by: str | None = None
    """The person on whose word or decision this rests."""


class Action(StrEnum):
    """What a due refund needs now."""

    NOTHING = "nothing"
    SEND = "send"
    REPLAY = "replay"
    LAPSE = "lapse"
    LOOK = "look"
    POLL = "poll"
    REVIEW = "review"
