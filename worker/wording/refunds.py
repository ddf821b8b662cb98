"""Words for a refund as it is: its facts, its state, and what came of it."""

from __future__ import annotations

from worker.model.refund import Refund, Stage
from worker.wording import reasons
from worker.wording.values import amount_of, moment


def state_of(refund: Refund) -> str:
    """Return the status and, until the refund is settled, the stage."""
    return (
        refund.status.value if refund.settled else f"{refund.status.value} · {refund.stage.value}"
    )


def facts_of(refund: Refund, entries: reasons.Entries = ()) -> list[tuple[str, object]]:
    """Return the named facts of a refund without its state; its history says why it is in review.

    None and an empty text mean that there is nothing to say.
    """
    provider = refund.provider_refund_id
    if provider and refund.provider_status:
        provider = f"{provider} ({refund.provider_status})"
    error = refund.error_code
    if error and refund.error_message:
        error = f"{error}: {refund.error_message}"
    in_review = refund.stage is Stage.REVIEW
    why = reasons.review_reason(entries) if in_review else None
    rows: list[tuple[str, object]] = [
        ("why", ": ".join(why) if why else None),
        ("payment", refund.payment_intent),
        ("amount", amount_of(refund)),
        ("reason", refund.reason),
        ("metadata", _metadata(refund)),
        ("provider", provider),
        (
            "possibly",
            (
                f"{refund.possible_refund_id}, which agrees and names no refund of yours"
                if refund.possible_refund_id
                else None
            ),
        ),
        ("evidence", refund.evidence),
        (
            "reversed",
            f"seen {moment(refund.reversed_at)}, after it had succeeded"
            if refund.reversed_at
            else None,
        ),
        (
            "contradicted",
            (
                f"by {' and '.join((refund.contradicted_by, *refund.ids_set_aside))},"
                " which the provider shows"
                if refund.contradicted_by
                else None
            ),
        ),
        # In review the code is what the last attempt or read-back showed, which is often not the
        # reason for the review.
        ("last seen" if in_review else "error", error),
        ("retriable", refund.retriable if refund.settled else None),
        ("in doubt", f"since {moment(refund.doubt_since)}" if refund.doubt_since else None),
        (
            "in doubt before",
            reasons.in_words(reasons.earlier_doubts(entries)) if refund.doubt_since else None,
        ),
        (
            "named",
            (
                f"{' and '.join(refund.candidates)} by a webhook: read before anything is sent"
                if refund.candidates
                else None
            ),
        ),
        ("attempts", refund.attempts or None),
        ("generation", refund.generation if refund.generation > 1 else None),
        ("batch", refund.batch_id),
        ("accepted", moment(refund.created_at)),
        ("changed", moment(refund.updated_at)),
        (
            "next check",
            (
                moment(refund.next_check_at)
                if refund.stage is not Stage.REVIEW
                else "after its review"
            ),
        ),
    ]
    if refund.settled:
        rows.pop()
    return rows


def _metadata(refund: Refund) -> str:
    if refund.metadata_erased_at is not None:
        return f"erased {moment(refund.metadata_erased_at)}"
    return " ".join(f"{name}={value}" for name, value in refund.metadata.items())


def result_of(refund: Refund) -> str:
    """Return in a few words what came of a refund so far."""
    result = refund.error_code if refund.error_code is not None else refund.provider_refund_id
    if refund.stage is Stage.REVIEW and refund.error_code is not None:
        result = f"after {refund.error_code}"
    if refund.reversed_at is not None:
        result = f"reversed: {result}"
    if refund.stage is Stage.REVIEW and refund.possible_refund_id is not None:
        result = f"possibly {refund.possible_refund_id}"
    if refund.contradicted_by is not None:
        result = f"contradicted by {refund.contradicted_by}"
    return result or ""
