"""What a read-back shows: pure judgements over the provider's list of refunds, or over a payment's totals.

The gateway fetches, the service gathers, this decides. Anything short of proof is inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from worker.answers import KNOWN_STATUSES, contradiction, read_amount
from worker.model import Baseline, Look, ProviderRefund, Refund, Sight, Stage

CLOCK_MARGIN: Final = timedelta(minutes=10)
"""How far the provider's clock may be from ours when a foreign refund is dated against our first attempt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaymentView:
    """What a payment intent (or its one charge) shows of money given back, in minor units.

    `refunded` is None where the provider's answer does not say it clearly; `problem` then says why.
    """

    refunded: int | None = None
    captured: int | None = None
    currency: str | None = None
    charge: str | None = None
    """The one charge to be read for the totals, where the payment itself does not carry them."""
    problem: str | None = None

    @property
    def baseline(self) -> Baseline | None:
        """Return the totals as a baseline, None where they cannot be told."""
        if self.refunded is None:
            return None
        remaining = None if self.captured is None else self.captured - self.refunded
        return Baseline(refunded=self.refunded, currency=self.currency, remaining=remaining)


def view_of(payload: Mapping[str, Any]) -> PaymentView:
    """Read a payment intent's or a charge's totals by Stripe's field names; several charges are inconclusive."""
    currency = payload.get("currency")
    currency = currency.lower() if isinstance(currency, str) else None
    if "amount_refunded" in payload:
        return _totals_of(payload, currency)
    charges = payload.get("charges")
    entries = charges.get("data") if isinstance(charges, Mapping) else None
    if isinstance(entries, list) and entries:
        if len(entries) > 1 or (isinstance(charges, Mapping) and charges.get("has_more")):
            return PaymentView(currency=currency, problem="the payment has several charges")
        if isinstance(entries[0], Mapping):
            return _totals_of(entries[0], currency)
    latest = payload.get("latest_charge")
    if isinstance(latest, Mapping):
        return _totals_of(latest, currency)
    if isinstance(latest, str) and latest:
        return PaymentView(currency=currency, charge=latest)
    return PaymentView(currency=currency, problem="the payment shows no refunded total")


def _totals_of(charge: Mapping[str, Any], currency: str | None) -> PaymentView:
    refunded = read_amount(charge.get("amount_refunded"))
    own = charge.get("currency")
    own = own.lower() if isinstance(own, str) else currency
    if refunded is None or refunded < 0:
        return PaymentView(currency=own, problem="the charge shows no readable refunded total")
    if currency is not None and own != currency:
        return PaymentView(problem="payment and charge differ in currency")
    captured = read_amount(charge.get("amount_captured"))
    if captured is None:
        captured = read_amount(charge.get("amount_received"))
    if captured is None:
        captured = read_amount(charge.get("amount"))
    return PaymentView(refunded=refunded, captured=None if captured == -1 else captured, currency=own)


def look_at_list(
    refund: Refund, entries: Sequence[ProviderRefund], *, complete: bool, siblings: Sequence[Refund]
) -> Look:
    """Judge a list of the payment's refunds: found is believed at once, absence only from a list without gaps."""
    ours = [entry for entry in entries if _is_this(entry, refund)]
    if len({entry.id for entry in ours}) > 1:
        return Look(
            sight=Sight.CONFLICT, reason="the provider shows two refunds with our id: money may have moved twice"
        )
    if ours:
        found = ours[0]
        wrong = contradiction(found, refund)
        if wrong is not None or found.status not in KNOWN_STATUSES:
            return Look(
                sight=Sight.CONFLICT, reason=f"the provider's refund has our id and another {wrong or 'status'}"
            )
        return Look(sight=Sight.FOUND, reason="listed with our id", found=found)
    if not complete:
        return Look(sight=Sight.INCONCLUSIVE, reason="the list was not read to its end")
    if any(entry.payment_intent != refund.payment_intent for entry in entries):
        return Look(sight=Sight.INCONCLUSIVE, reason="the list holds entries that are not of this payment")
    listed = {entry.id for entry in entries}
    if missing := _known_ids(siblings) - listed:
        return Look(sight=Sight.INCONCLUSIVE, reason=f"the list leaves out {len(missing)} refund(s) known to exist")
    if any(_unexplained(entry, refund, siblings) for entry in entries):
        return Look(sight=Sight.INCONCLUSIVE, reason="a refund made since our first attempt is not explained")
    return Look(sight=Sight.ABSENT, reason="not in the payment's list")


def _is_this(entry: ProviderRefund, refund: Refund) -> bool:
    return entry.refund_id == refund.refund_id and entry.generation in {None, str(refund.generation)}


def _known_ids(siblings: Sequence[Refund]) -> set[str]:
    return {sibling.provider_refund_id for sibling in siblings if sibling.provider_refund_id is not None}


def _unexplained(entry: ProviderRefund, refund: Refund, siblings: Sequence[Refund]) -> bool:
    if entry.refund_id == refund.refund_id:
        # An earlier generation of ours is known; a later one was sent by a record that a restored server lost.
        return not (entry.generation or "").isdigit() or int(entry.generation or 0) >= refund.generation
    if entry.id in _known_ids(siblings):
        return False
    if entry.refund_id is not None and any(sibling.refund_id == entry.refund_id for sibling in siblings):
        return False
    started = refund.first_attempt_at
    return entry.created is None or started is None or entry.created >= started - CLOCK_MARGIN


def look_at_totals(
    refund: Refund,
    view: PaymentView,
    *,
    siblings: Sequence[Refund],
    reread: Mapping[str, ProviderRefund | None],
    totals_proof: bool,
) -> Look:
    """Judge a payment's refunded total against the baseline taken before the first POST.

    `siblings` are our other refunds on the payment; `reread` maps the provider ids among them to what the provider
    shows of each now (None: could not be read). Any of them moving makes the look inconclusive.
    """
    baseline = refund.baseline
    if baseline is None:
        return Look(sight=Sight.INCONCLUSIVE, reason="no totals were read before the first attempt")
    if view.refunded is None:
        return Look(sight=Sight.INCONCLUSIVE, reason=view.problem or "the payment shows no refunded total")
    if view.currency != baseline.currency:
        return Look(sight=Sight.INCONCLUSIVE, reason="the totals changed their currency")
    expected = baseline.remaining if refund.all_remaining else refund.amount
    if expected is None or expected <= 0:
        return Look(sight=Sight.INCONCLUSIVE, reason="it is not known how much was left to refund")
    for sibling in siblings:
        if reason := _moving(sibling, refund, reread):
            return Look(sight=Sight.INCONCLUSIVE, reason=f"another refund of the payment {reason}")
    difference = view.refunded - baseline.refunded
    if difference == expected:
        return Look(sight=Sight.FOUND_IN_TOTALS, reason="the refunded total rose by exactly our amount")
    if difference == 0 and totals_proof:
        return Look(sight=Sight.ABSENT, reason="the refunded total is unchanged")
    if difference == 0:
        return Look(sight=Sight.INCONCLUSIVE, reason="the refunded total is unchanged, which proves nothing here")
    return Look(sight=Sight.INCONCLUSIVE, reason=f"the refunded total moved by {difference}, not by {expected}")


def _moving(sibling: Refund, refund: Refund, reread: Mapping[str, ProviderRefund | None]) -> str | None:
    if sibling.stage in {Stage.SENDING, Stage.IN_DOUBT, Stage.REVIEW, Stage.PROCESSING}:
        return f"is {sibling.stage}"
    started = refund.first_attempt_at
    if sibling.stage is Stage.SETTLED and sibling.attempts and (started is None or _changed_since(sibling, started)):
        return "changed since the first attempt"
    if sibling.provider_refund_id is None:
        return None
    now = reread.get(sibling.provider_refund_id)
    if now is None:
        return "could not be read again"
    return None if now.status == sibling.provider_status else "changed its status"


def _changed_since(sibling: Refund, started: datetime) -> bool:
    return sibling.updated_at >= started
