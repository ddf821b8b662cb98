"""Judges what a read-back shows, by the provider's list of refunds or by a payment's totals.

The functions are pure. The gateway fetches, `ReadbackRunner` gathers, and this module judges.
Anything short of proof is inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.model.answers import (
    NO_TOTAL,
    WITHOUT_TOTAL,
    PaymentView,
    ProviderRefund,
    Readback,
    ReadbackVerdict,
)
from worker.model.refund import Baseline, Refund, Stage, Status
from worker.rules.outcomes import (
    FINAL_STATUSES,
    contradiction,
    is_elsewhere,
    is_later,
    odd_status,
    says_nothing,
)
from worker.rules.payloads import STATUSES


def judge_list(
    refund: Refund,
    entries: Sequence[ProviderRefund],
    *,
    complete: bool,
    siblings: Sequence[Refund] | None,
) -> Readback:
    """Judge a list of the payment's refunds.

    A match is believed at once, absence only from a list without gaps.

    `siblings` are our other refunds on the payment, None if they are too many to be read.
    """
    ours = [
        entry for entry in entries if _is_this(entry, refund) and not says_nothing(entry, refund)
    ]
    if ours:
        return _look_at_ours(refund, ours, entries)
    if not complete:
        return Readback(
            verdict=ReadbackVerdict.INCONCLUSIVE, reason="the list was not read to its end"
        )
    if any(entry.payment_intent != refund.payment_intent for entry in entries):
        return Readback(
            verdict=ReadbackVerdict.INCONCLUSIVE,
            reason="the list holds entries that do not belong to this payment",
        )
    if siblings is None:
        return Readback(
            verdict=ReadbackVerdict.INCONCLUSIVE,
            reason="the payment has too many refunds to compare with a list",
        )
    listed = {entry.id for entry in entries}
    if missing := _known_ids(siblings) - listed:
        return Readback(
            verdict=ReadbackVerdict.INCONCLUSIVE,
            reason=f"the list leaves out {len(missing)} refund(s) that are known to exist",
        )
    if any(_unexplained(entry, refund, siblings) for entry in entries):
        return Readback(
            verdict=ReadbackVerdict.INCONCLUSIVE,
            reason="the list shows a refund that is not known here and could be this one",
        )
    return Readback(verdict=ReadbackVerdict.ABSENT, reason="not in the payment's list")


def judge_absence(
    refund: Refund, entries: Sequence[ProviderRefund], view: PaymentView, *, totals_proof: bool
) -> str | None:
    """Return why a list without our refund proves no absence, judged by the payment's total.

    None if it may.

    A list that lags, ends too early or leaves refunds out does not sum to the payment's total. The
    total may count pending refunds or not, so two sums agree with it. `totals_proof` says that it
    is known to count them.
    """
    if view.refunded is None:
        # Totals that contradict themselves or cannot be read are not the same as none.
        return None if view.problem in WITHOUT_TOTAL else view.problem or NO_TOTAL
    counted = [entry for entry in entries if entry.status not in {"failed", "canceled"}]
    if any(entry.amount is None or entry.amount < 0 for entry in counted):
        return "the list shows a refund whose amount cannot be read"
    every = sum(entry.amount or 0 for entry in counted)
    succeeded = sum(entry.amount or 0 for entry in counted if entry.status == "succeeded")
    if view.refunded not in {succeeded, every}:
        return (
            f"the payment's refunded total is {view.refunded}, and the listed refunds sum to"
            f" {every}"
        )
    hidden = view.refunded - succeeded
    could_be_ours = refund.stage is Stage.IN_DOUBT and hidden >= (refund.asked_amount or 0)
    if hidden and could_be_ours and not totals_proof:
        # The list may leave ours out, and the total the pending ones. Before a first send ours
        # would be old, and listed.
        return (
            f"the payment's refunded total holds {hidden} more than the listed refunds that"
            " succeeded, and it is not known whether it counts the pending ones"
        )
    return None


def _look_at_ours(
    refund: Refund, ours: Sequence[ProviderRefund], entries: Sequence[ProviderRefund]
) -> Readback:
    conflict = None
    odd = tuple(dict.fromkeys(entry.id for entry in ours))
    if len(odd) > 1:
        conflict = "the provider shows two refunds with our id: money may have moved twice"
    elif any(is_later(entry, refund) for entry in entries):
        conflict = (
            "the provider shows a later generation with our id: lost records had sent it again"
        )
    if conflict is not None:
        return Readback(verdict=ReadbackVerdict.CONFLICT, reason=conflict, odd=odd)
    found = ours[0]
    wrong = contradiction(found, refund)
    if wrong is not None or found.status is None:
        return Readback(
            verdict=ReadbackVerdict.CONFLICT,
            reason=f"the provider's refund has our id but another {wrong or 'status'}",
            odd=odd,
        )
    if found.status not in STATUSES:
        return Readback(verdict=ReadbackVerdict.CONFLICT, reason=odd_status(found), found=found)
    return Readback(verdict=ReadbackVerdict.FOUND, reason="listed with our id", found=found)


def _is_this(entry: ProviderRefund, refund: Refund) -> bool:
    # An entry without a generation counts as the first; a later one could be confused with one that
    # failed.
    generation = "1" if entry.generation is None else entry.generation
    return entry.refund_id == refund.refund_id and generation == str(refund.generation)


def _is_over(entry: ProviderRefund) -> bool:
    """Return whether an entry moved nothing."""
    return FINAL_STATUSES.get(entry.status or "") in {Status.FAILED, Status.CANCELED}


def _known_ids(siblings: Sequence[Refund]) -> set[str]:
    return {
        sibling.provider_refund_id for sibling in siblings if sibling.provider_refund_id is not None
    }


def _unexplained(entry: ProviderRefund, refund: Refund, siblings: Sequence[Refund]) -> bool:
    """Return whether an entry may be our refund although our id and generation are missing."""
    # Dates are not used: that would compare two clocks.
    if entry.refund_id == refund.refund_id:
        # A later generation was sent by a record that a restored server lost.
        generation = entry.generation or ""
        is_earlier = generation.isdigit() and int(generation) < refund.generation
        if is_earlier:
            return not _is_over(entry) and entry.id not in refund.prior_ids
        return not says_nothing(entry, refund)
    # An id that a person has only named, and that was not read yet, may be ours as well as the
    # sibling's.
    if entry.id in _known_ids([sibling for sibling in siblings if sibling.operator_says is None]):
        return False
    if entry.refund_id is not None and any(
        sibling.refund_id == entry.refund_id for sibling in siblings
    ):
        return False
    # An unreadable amount is -1, and could be any amount.
    return (
        refund.asked_amount is None
        or entry.amount is None
        or entry.amount in {-1, refund.asked_amount}
    )


def known_refunds_of(sibling: Refund) -> tuple[str, ...]:
    """Return the provider's refunds that a read-back by totals reads again for our other refund.

    Its own comes first, then others that were shown for it. One that had failed may have succeeded
    since, and would raise the total like ours.
    """
    own, others = sibling.provider_refund_id, (sibling.contradicted_by, *sibling.ids_set_aside)
    known = (own, *sibling.prior_ids, *others)
    return tuple(dict.fromkeys(each for each in known if each is not None))


def judge_totals(
    refund: Refund,
    view: PaymentView,
    *,
    siblings: Sequence[Refund] | None,
    reread: Mapping[str, ProviderRefund | None],
    totals_proof: bool,
) -> Readback:
    """Judge a payment's refunded total against the baseline taken before the first POST.

    `siblings` are our other refunds on the payment, None if they are too many to be read. `reread`
    maps their provider ids to what the provider now shows for each, None if it could not be read.
    Others can also change a total. So nothing is concluded unless the whole baseline consists of
    refunds that are known by id and have not changed.
    """
    compared = _compared(refund, view, siblings, reread)
    if isinstance(compared, str):
        return Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason=compared)
    difference, expected = compared
    if difference == expected:
        return Readback(
            verdict=ReadbackVerdict.FOUND_IN_TOTALS,
            reason="the refunded total rose by exactly our amount",
        )
    if difference == 0 and totals_proof:
        return Readback(verdict=ReadbackVerdict.ABSENT, reason="the refunded total is unchanged")
    if difference == 0:
        return Readback(
            verdict=ReadbackVerdict.INCONCLUSIVE,
            reason=(
                "the refunded total is unchanged, which proves nothing under REFUNDS_TOTALS=hint"
            ),
        )
    return Readback(
        verdict=ReadbackVerdict.INCONCLUSIVE,
        reason=f"the refunded total moved by {difference}, not by {expected}",
    )


def _compared(
    refund: Refund,
    view: PaymentView,
    siblings: Sequence[Refund] | None,
    reread: Mapping[str, ProviderRefund | None],
) -> tuple[int, int] | str:
    """Return the total's change and the amount we requested, or why they cannot be compared."""
    baseline = refund.baseline
    if baseline is None:
        return "no totals were read before the first attempt"
    if baseline.is_outdated:
        return "no totals were read before the latest attempt"
    if view.refunded is None:
        return view.problem or NO_TOTAL
    if view.currency != baseline.currency:
        return "the currency of the totals has changed"
    if view.shown_by != baseline.shown_by:
        return "the totals are shown by another charge than before the first attempt"
    captured = None if baseline.remaining is None else baseline.refunded + baseline.remaining
    if captured is not None and view.captured is not None and view.captured != captured:
        return "the captured amount has changed"
    expected = baseline.remaining if refund.all_remaining else refund.amount
    if expected is None or expected <= 0:
        return "it is not known how much was left to refund"
    unknown = _unknown_in(baseline, refund, siblings, reread)
    return unknown or (view.refunded - baseline.refunded, expected)


def _unknown_in(
    baseline: Baseline,
    refund: Refund,
    siblings: Sequence[Refund] | None,
    reread: Mapping[str, ProviderRefund | None],
) -> str | None:
    """Return why a part of the baseline may have been reversed since.

    Returns None if all of it is known by id and was not reversed.
    """
    if siblings is None:
        return "the payment has too many refunds to read again"
    for sibling in siblings:
        if reason := _moving(sibling, refund, reread):
            return f"another refund of the payment {reason}"
    # The total contains refunds that succeeded, and pending ones if the provider counts them. Those
    # of another payment, which a person may have named for ours, are in none of this one.
    standing = (entry for entry in reread.values() if entry is not None)
    # One whose payment cannot be read may be in it or not, so it has no amount here.
    amounts = [
        None if entry.payment_intent == "" else entry.amount
        for entry in standing
        if (entry.is_pending or entry.status == "succeeded")
        and not _is_known_elsewhere(entry, refund)
    ]
    known = [amount for amount in amounts if amount is not None and amount > 0]
    if len(known) < len(amounts) or sum(known) != baseline.refunded:
        return (
            "the total before the first attempt holds refunds that are not known here, and one may"
            " have been reversed"
        )
    return None


def _is_known_elsewhere(entry: ProviderRefund, refund: Refund) -> bool:
    """Return whether a refund is of another payment; one that cannot be read may be of this."""
    return entry.payment_intent != "" and is_elsewhere(entry, refund)


def _moving(
    sibling: Refund, refund: Refund, reread: Mapping[str, ProviderRefund | None]
) -> str | None:
    """Return why our other refund may have changed the total, None if it is known not to have."""
    if sibling.stage in {Stage.SENDING, Stage.IN_DOUBT, Stage.REVIEW, Stage.PROCESSING}:
        return f"is {sibling.stage}"
    started = refund.first_attempt_at
    if (
        sibling.stage is Stage.SETTLED
        and sibling.attempts
        and (started is None or sibling.updated_at >= started)
    ):
        return "changed since the first attempt"
    for other in known_refunds_of(sibling):
        shown = reread.get(other)
        if shown is None:
            return "could not be read again"
        is_final = shown.status in FINAL_STATUSES or _is_known_elsewhere(shown, refund)
        if other != sibling.provider_refund_id and not is_final:
            status = shown.status or "of an unknown status"
            return f"has another refund of the provider, {other}, which is {status}"
    if sibling.provider_refund_id is None:
        # Such a refund was found only in totals, or was settled by a person who could not verify
        # it.
        unread = sibling.status is Status.SUCCEEDED or sibling.evidence == "operator"
        return "has no provider id to read it by" if unread else None
    now = reread[sibling.provider_refund_id]
    is_same = now is not None and now.status == sibling.provider_status
    return None if is_same else "changed its status"
