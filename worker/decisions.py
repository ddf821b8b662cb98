"""What a person or the caller decides of a refund, as steps: canceled, resolved, retried, recovered. Pure as `policy`.

Each names a move that stands in `policy.TRANSITIONS`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from worker.errors import FieldError, InvalidRequest, NotCancelable, NotInReview
from worker.model import Refund, Retriable, Stage, Status, Step
from worker.policy import MAX_SERVER_ERRORS, NO_LOOKS, REVIEW_REMINDER, settled_drops
from worker.request import is_provider_id, shown


def cancel(refund: Refund) -> Step:
    """Return the step that cancels a refund of which nothing was ever sent, or provably nothing was done.

    Raises `NotCancelable` with the reason otherwise.
    """
    if refund.stage in {Stage.QUEUED, Stage.WAITING} and refund.doubt_since is None:
        return Step(to=Stage.SETTLED, status=Status.CANCELED, label="canceled", changes=settled_drops())
    if refund.settled:
        raise NotCancelable(f"refund {refund.refund_id} is already {refund.status}: nothing was changed")
    raise NotCancelable(
        f"refund {refund.refund_id} is {refund.stage}: it may have reached the provider and cannot be canceled; "
        f"follow it with 'refunds status {refund.refund_id}'"
    )


def resolve_succeeded(refund: Refund, provider_refund_id: str, now: datetime) -> Step:
    """Return the step for a person's claim that the provider's refund is ours; the next poll verifies it.

    Raises `InvalidRequest` where the id could not be asked for, `NotInReview`.
    """
    _needs_review(refund)
    if not is_provider_id(provider_refund_id):
        rule = "must be the provider's refund id, 1 to 200 of A-Z a-z 0-9 _ -"
        value = shown(provider_refund_id)
        raise InvalidRequest(
            [FieldError(field="provider_refund_id", code="provider_refund_id", value=value, rule=rule)]
        )
    changes = {
        "provider_refund_id": provider_refund_id,
        "processing_since": now,
        "operator_says": "succeeded",
    }
    return Step(
        to=Stage.PROCESSING,
        status=Status.PENDING,
        label="operator_says_succeeded",
        changes=changes,
        delay=timedelta(0),
    )


def resolve_failed(refund: Refund, code: str) -> Step:
    """Return the step for a person's decision that the refund was never done and shall not be."""
    _needs_review(refund)
    changes = {"error_code": code, "error_message": "settled by a person", "retriable": Retriable.NO}
    changes |= {"evidence": "operator", **settled_drops()}
    return Step(to=Stage.SETTLED, status=Status.FAILED, label="operator_says_failed", changes=changes)


def resolve_resend(refund: Refund) -> Step:
    """Return the step for a person's claim that it never happened: looked at once more, then sent with the same key."""
    _needs_review(refund)
    if refund.doubt_since is None:
        return Step(
            to=Stage.WAITING,
            status=Status.PENDING,
            label="operator_says_absent",
            delay=timedelta(0),
            changes={"lapses": 0, "provider_refund_id": None, "operator_says": None},
        )
    changes: dict[str, Any] = {"operator_says": "absent", "lapses": 0, "provider_refund_id": None} | NO_LOOKS
    return Step(
        to=Stage.IN_DOUBT, status=Status.PENDING, label="operator_says_absent", changes=changes, delay=timedelta(0)
    )


def _needs_review(refund: Refund) -> None:
    if refund.stage is not Stage.REVIEW:
        raise NotInReview(
            f"refund {refund.refund_id} is {refund.stage}, not in review: only 'refunds review list' can be resolved"
        )


def retry_failed(refund: Refund) -> Step | None:
    """Return the step that sends a failed refund again as a new generation, or None where that cannot help."""
    if refund.stage is not Stage.SETTLED or refund.status is not Status.FAILED or refund.retriable is Retriable.NO:
        return None
    cleared = (
        "provider_refund_id",
        "provider_status",
        "failure_reason",
        "error_code",
        "error_message",
        "retriable",
        "evidence",
        "first_attempt_at",
    )
    changes: dict[str, Any] = dict.fromkeys(cleared) | {"generation": refund.generation + 1}
    if refund.all_remaining:
        changes["amount"] = None
    return Step(to=Stage.QUEUED, status=Status.PENDING, label="retried", changes=changes)


def recovered(refund: Refund, since: datetime, now: datetime) -> Step | None:
    """Return the step for a refund on a server restored from a snapshot of `since`, None where nothing can have left.

    Whatever was not settled then may have been sent since; what was read of its payment before, or said by a person,
    is worth nothing now. A failed refund may have been retried since, so it is not retried again.
    """
    if refund.stage is Stage.SETTLED:
        if refund.status is not Status.FAILED or refund.retriable is Retriable.NO:
            return None
        changes: dict[str, Any] = {"retriable": Retriable.NO}
        return Step(to=refund.stage, status=refund.status, label="recovered", changes=changes, quiet=True)
    changes = {"doubt_since": refund.doubt_since or since, "operator_says": None, "retriable": Retriable.NO}
    if refund.stage is Stage.REVIEW:
        return Step(
            to=refund.stage,
            status=refund.status,
            label="recovered",
            changes=changes,
            delay=REVIEW_REMINDER,
            quiet=True,
        )
    if refund.stage is Stage.PROCESSING:
        return None
    changes |= {
        "first_attempt_at": min(refund.first_attempt_at or since, since),
        "quiet_at": now,
        "baseline": None,
        "lapses": 0,
        # No replay before a look: a retry that the snapshot lost had another key than the one that is known here.
        "server_errors": MAX_SERVER_ERRORS,
    } | NO_LOOKS
    return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="recovered", changes=changes, delay=timedelta(0))
