"""Types for the provider's answers, and for what an answer or a read-back shows."""

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

    '' (-1 for an amount) marks a field that is present and cannot be read. Such a value agrees with
    nothing.
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
    """The text that the provider gave instead of a code, as clean text."""
    refund_id: str | None = None
    """Our own id, from its metadata."""
    generation: str | None = None
    created: datetime | None = None

    @property
    def is_pending(self) -> bool:
        """Return whether the provider has the refund and says that it is not final yet."""
        return self.status in PENDING_WORDS


PENDING_WORDS: Final = frozenset({"pending", "processing", "requires_action"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderError:
    """An error as the provider words it; at least one of the three fields is present."""

    kind: str | None = None
    code: str | None = None
    message: str | None = None


NO_TOTAL: Final = "the payment shows no refunded total"
NO_TOTAL_IN_CHARGE: Final = "the charge shows no refunded total"
SEVERAL_CHARGES: Final = "the payment has several charges"
WITHOUT_TOTAL: Final = frozenset({NO_TOTAL, NO_TOTAL_IN_CHARGE, SEVERAL_CHARGES})
"""Problems of a `PaymentView` that mean: this provider shows no total for the payment.

Others are contradictions.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaymentView:
    """The refund totals of a payment intent (or of its one charge), in minor units.

    `refunded` is None if the provider's answer does not state it clearly; `problem` then says why.
    `currency` is None if none is shown, and '' if it cannot be read or contradicts itself; neither
    confirms a currency.
    """

    refunded: int | None = None
    captured: int | None = None
    currency: str | None = None
    charge: str | None = None
    """The one charge to be read for the totals, if the payment itself does not carry them."""
    shown_by: str | None = None
    """The id of the charge or payment that shows the totals."""
    problem: str | None = None
    shown: bool = field(default=False, compare=False)
    """Whether the provider showed this very payment, whatever it says about totals."""

    @property
    def baseline(self) -> Baseline | None:
        """Return the totals as a baseline, None if they are not known."""
        if self.refunded is None:
            return None
        remaining = None if self.captured is None else self.captured - self.refunded
        return Baseline(
            refunded=self.refunded,
            currency=self.currency,
            remaining=remaining,
            shown_by=self.shown_by,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page of a list of refunds.

    An entry is None if it does not show a refund. `more` is None if the page does not say whether
    more pages follow.
    """

    entries: tuple[ProviderRefund | None, ...]
    more: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """A reply's JSON object as `payloads.read` parsed it: typed, bounded and clean.

    The rest of it is not kept.
    """

    kind: str | None = None
    """The type that the object states for itself, '' if that is not a name."""
    id: str | None = None
    payment_intent: str | None = None
    refund: ProviderRefund | None = None
    error: ProviderError | None = None
    payment: PaymentView = PaymentView()
    latest_charge: str | None = None
    page: Page | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Every number and boolean by its path; filled for a probe only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A complete HTTP reply; `payload` is its JSON object as `payloads` parsed it, or None."""

    http_status: int
    payload: Payload | None = None
    retry_after: timedelta | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NotSent:
    """The request provably did not reach the provider, not even one byte.

    `reason` says why in a few words.
    """

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NoReply:
    """The request may have been read and executed; no complete reply came back."""

    reason: str


Answer = Reply | NotSent | NoReply


class TryVerdict(StrEnum):
    """What a try proves about the refund, weakest first, for the fold over an attempt's tries."""

    NOT_SENT = "not_sent"
    NOT_DONE = "not_done"
    REFUSED = "refused"
    MAYBE = "may_have_happened"
    MISMATCH = "idempotency_mismatch"
    DONE = "done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What an answer means for its refund."""

    verdict: TryVerdict
    code: str
    message: str | None = None
    http_status: int | None = None
    found: ProviderRefund | None = None
    odd: str | None = None
    """Id of a refund that contradicts ours, and that is not known to be another's."""
    is_unnamed: bool = False
    """The odd one differs and carries no id of ours: only the reply to our send ties it to ours."""
    retry_after: timedelta | None = None
    credentials: bool = False
    """The API key itself may be refused, which concerns every refund and not just this one."""
    server_error: bool = False
    doubt: bool = False
    """Some try of the attempt may have been executed, whatever the strongest one says."""
    tries: int = 1
    server_errors: int = 0
    """5xx answers in a row at the end of the attempt."""
    only_server_errors: bool = False
    """Every answer of the attempt was a 5xx, so its count adds to that of the previous attempt."""


class ReadbackVerdict(StrEnum):
    """What a read-back of a doubtful refund showed."""

    FOUND = "found"
    FOUND_IN_TOTALS = "found_in_totals"
    ABSENT = "absent"
    INCONCLUSIVE = "inconclusive"
    CONFLICT = "conflict"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Readback:
    """The result of a read-back: what was seen, any refund found, and the reason in a few words."""

    verdict: ReadbackVerdict
    reason: str
    found: ProviderRefund | None = None
    retry_after: timedelta | None = None
    credentials: bool = False
    missing: bool = False
    """The provider answered 404, which a lagging replica may also do."""
    source: str | None = None
    """Where the refund was found, if not where `rules.readback` says.

    `lookup` means that it was read by its id.
    """
    odd: tuple[str, ...] = ()
    """Ids of listed refunds that carry our id, and contradict each other or ours."""
