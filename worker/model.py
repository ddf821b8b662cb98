"""The nouns: what a caller asks for, what a record holds, what the provider answered, what to do next.

Records are frozen and keyword-only. Amounts are integers in minor units; times are timezone-aware UTC datetimes
inside and epoch milliseconds at the rim.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from worker.errors import FieldError, InvalidRequest

MAX_AMOUNT: Final = 10**12
MAX_METADATA_KEYS: Final = 48
MAX_METADATA_KEY_LENGTH: Final = 40
MAX_METADATA_VALUE_LENGTH: Final = 500
RESERVED_METADATA: Final = frozenset({"refund_id", "refund_generation"})
REASONS: Final = ("duplicate", "fraudulent", "requested_by_customer", "resolved_dispute")

_REFUND_ID: Final = re.compile(r"[A-Za-z0-9._:\-]{1,200}")
# Goes into a URL path: no separators, no dots, nothing that would need escaping.
_PROVIDER_ID: Final = re.compile(r"[A-Za-z0-9_\-]{1,200}")
_CURRENCY: Final = re.compile(r"[a-z]{3}")
_SHOWN: Final = 60
_SECRET: Final = re.compile(r"\b[sr]k_(?:test|live)_[A-Za-z0-9_*.\-]+|\bBasic\s+[A-Za-z0-9+/=]{8,}")


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


def shown(value: object) -> str:
    """Return a value for a message: quoted, control characters escaped, shortened."""
    try:
        text = repr(value)
    except ValueError:
        # An integer of thousands of digits has no text.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def scrubbed(text: str, limit: int = 300) -> str:
    """Return a foreign text fit to be kept and shown: one line, shortened, without secret keys."""
    line = text
    if not text.isprintable() or "  " in text or text != text.strip():
        line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return _SECRET.sub("***", line)[:limit]


def is_refund_id(value: object) -> bool:
    """Tell whether a value can be a caller's refund id."""
    return isinstance(value, str) and _REFUND_ID.fullmatch(value) is not None


def is_provider_id(value: object) -> bool:
    """Tell whether a value can stand in a URL path as a provider's id."""
    return isinstance(value, str) and _PROVIDER_ID.fullmatch(value) is not None


def _text_problem(value: str, limit: int) -> str | None:
    if len(value) > limit:
        return f"must be at most {limit} characters"
    if value.isascii() and value.isprintable():
        return None
    for character in value:
        category = unicodedata.category(character)
        if category in {"Cc", "Cs"}:
            return "must not hold control characters or broken Unicode"
    return None


def _metadata_errors(metadata: object) -> list[FieldError]:
    if not isinstance(metadata, Mapping):
        return [FieldError(field="metadata", code="metadata_type", value=shown(metadata), rule="must be a mapping")]
    errors = []
    if len(metadata) > MAX_METADATA_KEYS:
        rule = f"must have at most {MAX_METADATA_KEYS} keys"
        errors.append(FieldError(field="metadata", code="metadata_keys", value=f"{len(metadata)} keys", rule=rule))
    for key, value in metadata.items():
        if not isinstance(key, str) or not key:
            rule = "a metadata key must be text of at least one character"
            errors.append(FieldError(field="metadata", code="metadata_key", value=shown(key), rule=rule))
            continue
        if key in RESERVED_METADATA:
            rule = "this metadata key is reserved for the worker"
            errors.append(FieldError(field="metadata", code="metadata_reserved", value=shown(key), rule=rule))
        if problem := _text_problem(key, MAX_METADATA_KEY_LENGTH):
            rule = f"a metadata key {problem}"
            errors.append(FieldError(field="metadata", code="metadata_key", value=shown(key), rule=rule))
        name = f"metadata.{key[:MAX_METADATA_KEY_LENGTH]}" if key.isprintable() else f"metadata.{shown(key)}"
        if not isinstance(value, str):
            errors.append(FieldError(field=name, code="metadata_value", value=shown(value), rule="must be text"))
        elif problem := _text_problem(value, MAX_METADATA_VALUE_LENGTH):
            errors.append(FieldError(field=name, code="metadata_value", value=shown(value), rule=problem))
    return errors


def _no_metadata() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class RefundRequest:
    """One refund as a caller asks for it; raises `InvalidRequest` naming every broken rule.

    `refund_id` is the caller's own and is the idempotency key. Without `amount` (minor units) all that is left of
    the payment is refunded. `currency` is kept and checked, never sent.
    """

    refund_id: str
    payment_intent: str
    amount: int | None = None
    currency: str | None = None
    reason: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)

    def __post_init__(self) -> None:
        if isinstance(self.currency, str) and not self.currency.islower():
            object.__setattr__(self, "currency", self.currency.lower())
        if errors := self._errors():
            raise InvalidRequest(errors)
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    def _errors(self) -> list[FieldError]:
        errors = []
        if not is_refund_id(self.refund_id):
            rule = "must be 1 to 200 of A-Z a-z 0-9 . _ : -"
            errors.append(FieldError(field="refund_id", code="refund_id", value=shown(self.refund_id), rule=rule))
        if not is_provider_id(self.payment_intent):
            rule = "must be the provider's id, 1 to 200 of A-Z a-z 0-9 _ -"
            value = shown(self.payment_intent)
            errors.append(FieldError(field="payment_intent", code="payment_intent", value=value, rule=rule))
        # `type` and not isinstance: True is an int, and no amount of money.
        if self.amount is not None and (type(self.amount) is not int or not 0 < self.amount <= MAX_AMOUNT):
            rule = f"must be a whole number of minor units from 1 to {MAX_AMOUNT}"
            errors.append(FieldError(field="amount", code="amount", value=shown(self.amount), rule=rule))
        if self.currency is not None and (
            not isinstance(self.currency, str) or _CURRENCY.fullmatch(self.currency) is None
        ):
            rule = "must be a three-letter ISO code such as usd"
            errors.append(FieldError(field="currency", code="currency", value=shown(self.currency), rule=rule))
        if self.reason is not None and self.reason not in REASONS:
            rule = f"must be one of {', '.join(REASONS)}"
            errors.append(FieldError(field="reason", code="reason", value=shown(self.reason), rule=rule))
        # An empty mapping is the common case and costs nothing; `()` or `""` is a caller's mistake.
        if self.metadata or type(self.metadata) not in {dict, MappingProxyType}:
            errors.extend(_metadata_errors(self.metadata))
        return errors

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled; producers do hand requests to process pools.
        values = {name.name: getattr(self, name.name) for name in fields(self)}
        return (_rebuild_request, ({**values, "metadata": dict(self.metadata)},))

    @property
    def fingerprint(self) -> str:
        """Return 32 hex digits over every field but the id: equal contents, equal fingerprint."""
        contents = [self.payment_intent, self.amount, self.currency, self.reason, dict(sorted(self.metadata.items()))]
        return hashlib.sha256(_canonical(contents)).hexdigest()[:32]


def _rebuild_request(values: dict[str, Any]) -> RefundRequest:
    return RefundRequest(**values)


def _canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def request_body(request: RefundRequest, generation: int) -> bytes:
    """Return the bytes of `POST /v1/refunds` for one generation; the same request gives the same bytes for ever.

    The provider wants `amount` as text, and gets our id in `metadata.refund_id`.
    """
    body: dict[str, Any] = {"payment_intent": request.payment_intent}
    if request.amount is not None:
        body["amount"] = str(request.amount)
    if request.reason is not None:
        body["reason"] = request.reason
    body["metadata"] = {
        **dict(sorted(request.metadata.items())),
        "refund_id": request.refund_id,
        "refund_generation": str(generation),
    }
    return _canonical(body)


def idempotency_key(refund_id: str, generation: int) -> str:
    """Return the `Idempotency-Key` of one generation of a refund; derived once, then stored."""
    digest = hashlib.sha256(f"{refund_id}\n{generation}".encode("ascii")).hexdigest()
    return f"refund-{digest[:40]}"


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
    baseline: Baseline | None = None
    processing_since: datetime | None = None
    operator_says: str | None = None
    """A person's claim from review, to be verified: `absent` or `succeeded`."""

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
class Reply:
    """A whole HTTP reply. `payload` is the parsed JSON, or None where the body was no JSON object."""

    http_status: int
    payload: Mapping[str, Any] | None = None
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
class ProviderRefund:
    """A refund as the provider shows it; every field but the id is optional."""

    id: str
    status: str | None = None
    amount: int | None = None
    currency: str | None = None
    payment_intent: str | None = None
    failure_reason: str | None = None
    refund_id: str | None = None
    """Our own id, from its metadata."""
    generation: str | None = None
    created: datetime | None = None


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


class Action(StrEnum):
    """What a due refund needs now."""

    NOTHING = "nothing"
    SEND = "send"
    REPLAY = "replay"
    LAPSE = "lapse"
    LOOK = "look"
    POLL = "poll"
    REVIEW = "review"
