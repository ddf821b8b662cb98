"""Words for a refund in review: the evidence, and what each decision does."""

from __future__ import annotations

from typing import Any, Final

from worker.model.refund import Refund
from worker.model.times import rfc3339
from worker.rules import contradictions, preflight
from worker.wording import reasons


def evidence(refund: Refund, entries: reasons.Entries) -> dict[str, Any]:
    """Return the ids, times and counts that a person needs to find a refund at the provider."""
    times = {
        "first_attempt_at": refund.first_attempt_at,
        "doubt_since": refund.doubt_since,
        "quiet_at": refund.quiet_at,
        "absent_at": refund.absent_at,
        "found_at": refund.found_at,
        "processing_since": refund.processing_since,
    }
    baseline = refund.baseline
    return {
        "idempotency_key": refund.idempotency_key,
        "metadata": {"refund_id": refund.refund_id, "refund_generation": str(refund.generation)},
        **{name: None if value is None else rfc3339(value) for name, value in times.items()},
        "earlier_doubts": reasons.earlier_doubts(entries),
        "possible_refund_id": refund.possible_refund_id,
        "attempts": refund.attempts,
        "attempts_with_an_answer": reasons.answered(entries),
        "lapsed_leases": reasons.lapsed(entries),
        "server_errors_in_a_row": refund.server_errors,
        "inconclusive_looks": refund.looks,
        "resends": refund.resends,
        "baseline": (
            None
            if baseline is None
            else {
                "refunded": baseline.refunded,
                "remaining": baseline.remaining,
                "currency": baseline.currency,
            }
        ),
        "operator_says": refund.operator_says,
        "operator_by": refund.operator_by,
    }


def shown_for(refund: Refund) -> list[str]:
    """Return the provider's refunds of which a person names the one that counts."""
    names = (refund.contradicted_by, *refund.ids_set_aside, refund.provider_refund_id)
    return [name for name in names if name is not None]


_COMES_BACK: Final = (
    "if neither can be shown, it returns to review, or with --unverified your decision counts"
)


def resolutions(refund: Refund) -> dict[str, str]:
    """Return what each decision does to a refund in review or one that the provider contradicts."""
    if refund.contradicted_by is not None:
        names = " or ".join(shown_for(refund))
        counts = (
            f"RE_ID ({names}) is the provider's refund that counts: a worker reads it, and this"
            " refund settles as the provider shows it; nothing is sent"
        )
        return {"--succeeded RE_ID": counts}
    succeeded = (
        "RE_ID at the provider is this refund: a worker reads it, and this refund settles as the"
        " provider shows it; if the payment, amount or id differs, it returns to review;"
        " --unverified accepts another amount or currency"
    )
    if not refund.may_have_happened:
        failed = (
            "the refund did not happen and must not: it is settled as failed with CODE; nothing is"
            " sent"
        )
        resend = "the refund is sent again with the same key and contents; it was never in doubt"
        if named := (*refund.prior_ids, *refund.candidates):
            first = (
                f"; a worker first reads {' and '.join(named)} at the provider: if that was done"
                " after all, this refund settles as the provider shows it; if the provider does not"
                " know it any more, this refund returns to review, or with --unverified your"
                " decision counts; while it cannot be read, this refund waits"
            )
            failed, resend = failed + first, resend + first
        if preflight.wants_currency(refund):
            resend += (
                "; the payment is read first, and nothing is sent unless it is in"
                f" {refund.asked_currency}"
            )
    else:
        failed = (
            "the refund did not happen and must not: a worker first looks for it at the provider;"
            " if it is proven absent, it settles as failed with CODE; if it is found, it settles"
            f" as the provider shows it; {_COMES_BACK}; nothing is sent"
        )
        resend = (
            "the refund did not happen: a worker first looks for it at the provider; if it is"
            " proven absent, it is sent again with the same key and contents; if it is found, it"
            f" settles as the provider shows it; {_COMES_BACK}, and if it did happen unseen, the"
            " money moves twice if the provider ignores keys"
        )
    effects = {
        "succeeded": ("--succeeded RE_ID", succeeded),
        "failed": ("--failed CODE", failed),
        "resend": ("--resend", resend),
    }
    return dict(effects[name] for name in contradictions.possible_decisions(refund))
