"""What a read-back shows: pure judgements over the provider's list of refunds, or over a payment's totals.

The gateway fetches, the service gathers, this decides. Anything short of proof is inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker.answers import KNOWN_STATUSES, contradiction, read_amount
from worker.model import Baseline, Look, ProviderRefund, Refund, Sight, Stage, Status

_STANDING: Final = frozenset({"pending", "succeeded"})
"""Statuses of a refund whose amount is in the payment's total, if pending ones are counted there."""
_TWO_CURRENCIES: Final = "payment and charge differ in currency"


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
    currency = _currency_of(payload)
    if "amount_refunded" in payload:
        return _totals_of(payload, currency)
    charges = payload.get("charges")
    entries = charges.get("data") if isinstance(charges, Mapping) else None
    if isinstance(entries, list) and entries:
        if len(entries) > 1 or (isinstance(charges, Mapping) and charges.get("has_more")):
            if any(_in_another(entry, currency) for entry in entries):
                return PaymentView(problem=_TWO_CURRENCIES)
            return PaymentView(currency=currency, problem="the payment has several charges")
        if isinstance(entries[0], Mapping):
            return _totals_of(entries[0], currency)
    latest = payload.get("latest_charge")
    if isinstance(latest, Mapping):
        return _totals_of(latest, currency)
    if isinstance(latest, str) and latest:
        return PaymentView(currency=currency, charge=latest)
    return PaymentView(currency=currency, problem="the payment shows no refunded total")


def _currency_of(shown: Mapping[str, Any]) -> str | None:
    currency = shown.get("currency")
    return currency.lower() if isinstance(currency, str) else None


def _in_another(charge: Any, currency: str | None) -> bool:
    """Tell whether a charge shows another currency than its payment."""
    own = _currency_of(charge) if isinstance(charge, Mapping) else None
    return own is not None and currency is not None and own != currency


def _totals_of(charge: Mapping[str, Any], currency: str | None) -> PaymentView:
    refunded = read_amount(charge.get("amount_refunded"))
    if _in_another(charge, currency):
        return PaymentView(problem=_TWO_CURRENCIES)
    own = _currency_of(charge) or currency
    if refunded is None or refunded < 0:
        return PaymentView(currency=own, problem="the charge shows no readable refunded total")
    captured = read_amount(charge.get("amount_captured"))
    if captured is None:
        captured = read_amount(charge.get("amount_received"))
    if captured is None:
        captured = read_amount(charge.get("amount"))
    return PaymentView(refunded=refunded, captured=None if captured == -1 else captured, currency=own)


def look_at_list(
    refund: Refund, entries: Sequence[ProviderRefund], *, complete: bool, siblings: Sequence[Refund] | None
) -> Look:
    """Judge a list of the payment's refunds: found is believed at once, absence only from a list without gaps.

    `siblings` are our other refunds on the payment, None if they are too many to be read.
    """
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
    if siblings is None:
        return Look(sight=Sight.INCONCLUSIVE, reason="the payment has more refunds than are compared with a list")
    listed = {entry.id for entry in entries}
    if missing := _known_ids(siblings) - listed:
        return Look(sight=Sight.INCONCLUSIVE, reason=f"the list leaves out {len(missing)} refund(s) known to exist")
    if any(_unexplained(entry, refund, siblings) for entry in entries):
        return Look(sight=Sight.INCONCLUSIVE, reason="a refund of the payment is not known here and could be this one")
    return Look(sight=Sight.ABSENT, reason="not in the payment's list")


def _is_this(entry: ProviderRefund, refund: Refund) -> bool:
    # An entry that does not say its generation can only be the first: a later one may be confused with one that failed.
    generation = entry.generation or "1"
    return entry.refund_id == refund.refund_id and generation == str(refund.generation)


def _known_ids(siblings: Sequence[Refund]) -> set[str]:
    return {sibling.provider_refund_id for sibling in siblings if sibling.provider_refund_id is not None}


def _unexplained(entry: ProviderRefund, refund: Refund, siblings: Sequence[Refund]) -> bool:
    """Tell whether an entry may be our refund without saying so. No date decides: two clocks would be compared."""
    if entry.refund_id == refund.refund_id:
        # An earlier generation of ours is known; a later one was sent by a record that a restored server lost.
        return not (entry.generation or "").isdigit() or int(entry.generation or 0) >= refund.generation
    if entry.id in _known_ids(siblings):
        return False
    if entry.refund_id is not None and any(sibling.refund_id == entry.refund_id for sibling in siblings):
        return False
    # An unreadable amount is -1, and could be any.
    return refund.asked_amount is None or entry.amount is None or entry.amount in {-1, refund.asked_amount}


def look_at_totals(
    refund: Refund,
    view: PaymentView,
    *,
    siblings: Sequence[Refund] | None,
    reread: Mapping[str, ProviderRefund | None],
    totals_proof: bool,
) -> Look:
    """Judge a payment's refunded total against the baseline taken before the first POST.

    `siblings` are our other refunds on the payment (None: too many to be read); `reread` maps the provider ids among
    them to what the provider shows of each now (None: could not be read). A total may rise and fall by others too, so
    nothing is concluded unless the whole baseline is made of refunds that are known by id and have not moved.
    """
    compared = _compared(refund, view, siblings, reread)
    if isinstance(compared, str):
        return Look(sight=Sight.INCONCLUSIVE, reason=compared)
    difference, expected = compared
    if difference == expected:
        return Look(sight=Sight.FOUND_IN_TOTALS, reason="the refunded total rose by exactly our amount")
    if difference == 0 and totals_proof:
        return Look(sight=Sight.ABSENT, reason="the refunded total is unchanged")
    if difference == 0:
        return Look(sight=Sight.INCONCLUSIVE, reason="the refunded total is unchanged, which proves nothing here")
    return Look(sight=Sight.INCONCLUSIVE, reason=f"the refunded total moved by {difference}, not by {expected}")


def _compared(
    refund: Refund, view: PaymentView, siblings: Sequence[Refund] | None, reread: Mapping[str, ProviderRefund | None]
) -> tuple[int, int] | str:
    """Return by how much the total moved and how much we asked for, or why that cannot be compared."""
    baseline = refund.baseline
    if baseline is None:
        return "no totals were read before the first attempt"
    if view.refunded is None:
        return view.problem or "the payment shows no refunded total"
    if view.currency != baseline.currency:
        return "the totals changed their currency"
    expected = baseline.remaining if refund.all_remaining else refund.amount
    if expected is None or expected <= 0:
        return "it is not known how much was left to refund"
    unknown = _unknown_in(baseline, refund, siblings, reread)
    return unknown or (view.refunded - baseline.refunded, expected)


def _unknown_in(
    baseline: Baseline, refund: Refund, siblings: Sequence[Refund] | None, reread: Mapping[str, ProviderRefund | None]
) -> str | None:
    """Return why a part of the baseline may have fallen back since, None if all of it is known by id and has not."""
    if siblings is None:
        return "the payment has more refunds than are read again"
    for sibling in siblings:
        if reason := _moving(sibling, refund, reread):
            return f"another refund of the payment {reason}"
    amounts = [entry.amount for entry in reread.values() if entry is not None and entry.status in _STANDING]
    known = [amount for amount in amounts if amount is not None and amount >= 0]
    if len(known) < len(amounts) or sum(known) != baseline.refunded:
        return "the total before the first attempt holds refunds that are not known here, and one may have fallen back"
    return None


def _moving(sibling: Refund, refund: Refund, reread: Mapping[str, ProviderRefund | None]) -> str | None:
    """Return why another refund of ours may have changed the total, None if it is known not to have."""
    if sibling.stage in {Stage.SENDING, Stage.IN_DOUBT, Stage.REVIEW, Stage.PROCESSING}:
        return f"is {sibling.stage}"
    started = refund.first_attempt_at
    if sibling.stage is Stage.SETTLED and sibling.attempts and (started is None or sibling.updated_at >= started):
        return "changed since the first attempt"
    if sibling.provider_refund_id is None:
        # Found in totals alone, or settled by a person who could not verify it.
        unread = sibling.status is Status.SUCCEEDED or sibling.evidence == "operator"
        return "has no id to be read by" if unread else None
    now = reread.get(sibling.provider_refund_id)
    if now is None:
        return "could not be read again"
    return None if now.status == sibling.provider_status else "changed its status"
