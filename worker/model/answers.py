"""What the provider answered, and what an answer or a read-back shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from worker.model.refund import Baseline


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

    `refunded` is None if the provider's answer does not say it clearly; `problem` then says why. `currency` is None if
    none is shown, '' if what is shown cannot be read or contradicts itself: that confirms no currency.
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
