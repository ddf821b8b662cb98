"""Decisions by a person or the caller, as steps: cancel, resolve, retry, recover, erase.

Pure functions.

Each step is a move listed in `transitions.TRANSITIONS`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from worker.errors import (
    FieldError,
    InvalidRequest,
    NotCancelable,
    NotInReview,
    NotRetriable,
)
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.request import is_provider_id, shown
from worker.model.steps import Step
from worker.model.times import rfc3339
from worker.rules import contradictions
from worker.rules.attempts import MAX_SERVER_ERRORS
from worker.rules.proofs import (
    NO_READBACKS,
    NO_WORD,
    REVIEW_REMINDER,
    named_again,
    settled_drops,
)

CALLER: Final = "caller"
"""The author of a decision if no person is named: the calling program."""
_MAY_BE_OF_AN_ODD_ONE: Final = frozenset(
    {
        "conflict",
        "refund_missing",
        "contradictory_reply",
        "unknown_status",
        "pending_too_long",
        "owned_elsewhere",
    }
)
"""A refund in conflict has one of the others once a person has named an id in vain."""


def cancel(refund: Refund) -> Step:
    """Return the step that cancels a refund that was never sent, or was provably never done.

    Raises `NotCancelable` with the reason otherwise.
    """
    unsent = (
        refund.stage in {Stage.QUEUED, Stage.WAITING}
        and refund.doubt_since is None
        # An older version let one wait that the provider had reported as pending.
        and refund.processing_since is None
    )
    if unsent and refund.candidates:
        raise NotCancelable(
            f"refund {refund.refund_id} may exist at the provider as {refund.candidates[0]}, which"
            " a webhook named: try again once a worker has read it, which 'refunds status"
            f" {refund.refund_id}' shows"
        )
    if unsent and refund.is_only_said_absent:
        raise NotCancelable(
            f"refund {refund.refund_id} may have moved the money before: only a person says that it"
            " did not, and had it sent again; follow it with 'refunds status"
            f" {refund.refund_id}'"
        )
    if unsent:
        of_before: dict[str, Any] = dict.fromkeys(("error_code", "error_message", "retriable"))
        return Step(
            to=Stage.SETTLED,
            status=Status.CANCELED,
            label="canceled",
            changes=settled_drops() | of_before,
        )
    if refund.settled:
        raise NotCancelable(
            f"refund {refund.refund_id} is already {refund.status}: nothing was changed"
        )
    raise NotCancelable(
        f"refund {refund.refund_id} is in stage {refund.stage}: it may have reached the provider"
        f" and cannot be canceled; follow it with 'refunds status {refund.refund_id}'"
    )


def resolve_succeeded(
    refund: Refund,
    provider_refund_id: str,
    now: datetime,
    *,
    by: str = CALLER,
    unverified: bool = False,
) -> Step:
    """Return the step for a person's claim that the provider's refund is ours.

    The next poll verifies the claim.

    If `unverified`, the refund counts although its amount or currency differs from the request; it
    is still read. A person resolves a contradiction of a settled record in the same way. Raises
    `NotInReview`, and `InvalidRequest` if the id could not be requested or is not one of those that
    contradict each other.
    """
    if refund.stage is Stage.SETTLED and refund.contradicted_by is not None:
        return contradictions.ended(refund, provider_refund_id, now, by)
    _needs_review(refund)
    if not is_provider_id(provider_refund_id):
        rule = "must be the provider's refund id, 1 to 200 of A-Z a-z 0-9 _ -"
        value = shown(provider_refund_id)
        raise InvalidRequest(
            [
                FieldError(
                    field="provider_refund_id", code="provider_refund_id", value=value, rule=rule
                )
            ]
        )
    changes = {
        "provider_refund_id": provider_refund_id,
        "processing_since": now,
        "operator_code": None,
        **contradictions.set_aside(refund, provider_refund_id),
        **contradictions.own_kept(refund),
    }
    if refund.missing_since is not None:
        # That was about another refund of the provider, or is long ago.
        changes["missing_since"] = None
    return _decided(refund, "succeeded", Stage.PROCESSING, changes, by, unverified=unverified)


def resolve_failed(
    refund: Refund, code: str, *, by: str = CALLER, unverified: bool = False
) -> Step:
    """Return the step for a person's decision that the refund was never done and must not be done.

    A refund that may have happened is read back first. It settles as failed once it is proven
    absent, or as the provider shows it if it is found. What was named for a refund is read first
    too. If `unverified`, the decision counts unless something that can be read contradicts it.
    Raises `NotInReview`, and `GuardRefused` if the provider has shown the refund meanwhile.
    """
    contradictions.forbid_other_ends(refund)
    _needs_review(refund)
    if refund.may_have_happened:
        changes: dict[str, Any] = {"operator_code": code} | NO_READBACKS
        is_stuck = refund.error_code == "pending_too_long" and refund.provider_refund_id is not None
        if not is_stuck or refund.absent_by_word:
            # One that is stuck can be given up whatever is odd beside it.
            changes |= _odd_one_again(refund)
        return _decided(refund, "failed", Stage.IN_DOUBT, changes, by, unverified=unverified)
    if refund.prior_ids or refund.candidates:
        changes = {"operator_code": code, "looks": 0}
        return _decided(refund, "failed", Stage.WAITING, changes, by, unverified=unverified)
    changes = {
        "error_code": code,
        "error_message": "settled by a person",
        "retriable": Retriable.NO,
    }
    changes |= {"evidence": "operator", **settled_drops()}
    return Step(
        to=Stage.SETTLED,
        status=Status.FAILED,
        label="operator_says_failed",
        changes=changes,
        source="operator",
        by=by,
    )


def resolve_resend(refund: Refund, *, by: str = CALLER, unverified: bool = False) -> Step:
    """Return the step for a person's claim that the refund never happened.

    It is sent again with same key and contents.

    A refund that may have happened is read back first, and sent once it is proven absent. If
    `unverified`, the claim counts unless something that can be read contradicts it: what was named
    for the refund is read once more before anything is sent. Raises `NotInReview`, and
    `GuardRefused` if the provider has shown the refund meanwhile.
    """
    contradictions.forbid_other_ends(refund)
    _needs_review(refund)
    contradictions.forbid_resend(refund)
    changes: dict[str, Any] = {"lapses": 0, "operator_code": None}
    if refund.may_have_happened:
        changes |= NO_READBACKS
        changes |= _odd_one_again(refund)
        return _decided(refund, "absent", Stage.IN_DOUBT, changes, by, unverified=unverified)
    changes["provider_refund_id"] = None
    if unverified and (refund.prior_ids or refund.candidates):
        # The decision is kept for the reads before the send.
        return _decided(refund, "absent", Stage.WAITING, changes, by, unverified=unverified)
    return Step(
        to=Stage.WAITING,
        status=Status.PENDING,
        label="operator_says_absent",
        delay=timedelta(0),
        changes={**changes, **NO_WORD},
        source="operator",
        by=by,
    )


def _odd_one_again(refund: Refund) -> dict[str, Any]:
    """Return the change by which what a webhook named and contradicted the refund is read again.

    It may show by now that it is this one. So may one that could not be read before a send on a
    person's word.
    """
    is_odd = refund.error_code in _MAY_BE_OF_AN_ODD_ONE
    if refund.error_code == "conflict" and refund.provider_refund_id is not None:
        # Its own is read first, and the other one once that is gone.
        kept = contradictions.kept_as_earlier(refund, *refund.ids_named)
        return kept | (named_again(refund) if refund.absent_by_word else {})
    return named_again(refund) if is_odd or refund.absent_by_word else {}


def _decided(
    refund: Refund, says: str, to: Stage, changes: dict[str, Any], by: str, *, unverified: bool
) -> Step:
    """Return the step that stores a person's decision, which is verified next."""
    word = {"operator_says": says, "operator_by": by, "operator_unverified": unverified}
    doubt: dict[str, Any] = {}
    if to is Stage.IN_DOUBT:
        # A refund whose doubt had ended before review is read back like one still in doubt. Nothing
        # was sent since it came to review, so a read-back counts a settle time after that. Without
        # a start it would never count.
        doubt = {
            "doubt_since": refund.doubt_since or refund.updated_at,
            "quiet_at": refund.quiet_at or refund.updated_at,
        }
    return Step(
        to=to,
        status=Status.PENDING,
        label=f"operator_says_{says}",
        changes={**changes, **word, **doubt},
        delay=timedelta(0),
        source="operator",
        by=by,
    )


def _needs_review(refund: Refund) -> None:
    if refund.stage is not Stage.REVIEW:
        raise NotInReview(
            f"refund {refund.refund_id} is {refund.stage}, not in review: only those in 'refunds"
            " review list' can be resolved"
        )


def retry_failed(refund: Refund) -> Step | None:
    """Return the step that resends a failed refund as a new generation, None if it cannot help."""
    if (
        refund.stage is not Stage.SETTLED
        or refund.status is not Status.FAILED
        or refund.retriable is Retriable.NO
    ):
        return None
    if refund.contradicted_by is not None:
        # The provider shows that the refund was done after all.
        return None
    if refund.set_aside_ids is not None:
        # The provider showed others beside it, and each of them may have moved the money.
        return None
    if refund.retry_may_be_lost:
        # A worker may have settled it that had read it before the recovery, or that is of an older
        # version and does not know what that forbids.
        return None
    if not refund.can_be_made_again:
        # What is sent is what the caller asked for, never what a provider's refund shows.
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
        "reversed_at",
        "hints_used",
    )
    changes: dict[str, Any] = dict.fromkeys(cleared) | {"generation": refund.generation + 1}
    if refund.provider_refund_id is not None:
        # The provider may change it to succeeded later. It is read again before the retry is sent.
        changes["prior_refund_ids"] = " ".join(
            dict.fromkeys((*refund.prior_ids, refund.provider_refund_id))
        )
    if refund.all_remaining:
        changes["amount"] = None
    return Step(to=Stage.QUEUED, status=Status.PENDING, label="retried", changes=changes)


def retry_one(refund: Refund, *, unknown: bool) -> Step:
    """Return the step that sends one failed refund again.

    If `unknown`, this includes a refund for which it is not known whether sending again can help.
    Raises `NotRetriable`, and `GuardRefused` if the provider shows that the refund was done after
    all.
    """
    contradictions.forbid_other_ends(refund)
    step = retry_failed(refund)
    subject = f"refund {refund.refund_id}"
    if refund.status is not Status.FAILED:
        raise NotRetriable(
            f"{subject} is {refund.status}, not failed: only a failed refund can be sent again"
        )
    code = refund.error_code or "unknown"
    if refund.set_aside_ids is not None:
        raise NotRetriable(
            f"{subject} failed with {code}, but the provider also showed"
            f" {' and '.join(refund.ids_set_aside)} for it, which may have moved the money: find"
            " out in its dashboard; if the customer has nothing, submit a new refund under a new id"
        )
    if refund.metadata_erased_at is not None:
        raise NotRetriable(
            f"{subject} failed with {code}, and its metadata were erased on"
            f" {rfc3339(refund.metadata_erased_at)} (REFUNDS_METADATA_DAYS), so it cannot be sent"
            " again with the same contents: submit a new refund under a new id"
        )
    if not refund.can_be_made_again:
        raise NotRetriable(
            f"{subject} failed with {code}, and a person had settled it as a provider's refund of"
            " another amount, so it cannot be sent again with the same contents: submit a new"
            " refund under a new id"
        )
    if step is None and refund.retry_may_be_lost:
        raise NotRetriable(
            f"{subject} failed with {code}, and a retry of it may have been lost when the server"
            " was restored: find out in the provider's dashboard; if the customer has nothing,"
            " submit a new refund under a new id"
        )
    if step is None:
        raise NotRetriable(
            f"{subject} failed with {code}, and sending it again cannot help: submit a new refund"
            f" under a new id, or see 'refunds status {refund.refund_id} --history'"
        )
    if refund.retriable is not Retriable.YES and not unknown:
        raise NotRetriable(
            f"{subject} failed with {code}, and it is not known whether sending it again can help:"
            f" find out why it failed, then run 'refunds retry {refund.refund_id} --unknown'"
        )
    return step


def recovered(refund: Refund, since: datetime, now: datetime) -> Step | None:
    """Return the step a refund needs on a server restored from a snapshot of `since`, if any.

    A refund that was not settled then may have been sent since. What was read of its payment
    before, or stated by a person, no longer counts. A failed refund may have been retried since, so
    it is not retried again, nor is one that turns out to have failed.
    """
    if refund.stage is Stage.SETTLED:
        if refund.status is not Status.FAILED or refund.retriable is Retriable.NO:
            return None
        changes: dict[str, Any] = {"retriable": Retriable.NO, "retry_may_be_lost": True}
        return Step(
            to=refund.stage, status=refund.status, label="recovered", changes=changes, quiet=True
        )
    if refund.stage is Stage.PROCESSING:
        # What the provider shows ends it, but if that has failed, it may have been retried.
        if refund.retry_may_be_lost and refund.baseline is None:
            return None
        return Step(
            to=refund.stage,
            status=refund.status,
            label="recovered",
            changes={"retry_may_be_lost": True, "baseline": None},
            delay=timedelta(0),
            quiet=True,
        )
    # A worker that runs beside the recovery may still be sending it, also if that is repeated.
    lease_end = refund.next_check_at if refund.stage is Stage.SENDING else None
    changes = {
        "doubt_since": refund.doubt_since or since,
        "quiet_at": max(now, refund.quiet_at or now, lease_end or now),
        "retriable": Retriable.NO,
        "retry_may_be_lost": True,
        # A lost record of the same payment may have raised the total since.
        "baseline": None,
        **NO_WORD,
    }
    if refund.stage is Stage.REVIEW:
        # A move, so that a decision of a person who did not know of the doubt is refused. A repeat
        # of the same recovery tells nothing new: it adds no line to the history and no callback.
        is_repeated = (
            refund.updated_at > since
            and refund.retry_may_be_lost
            and refund.doubt_since is not None
            and refund.retriable is Retriable.NO
            and refund.operator_says is None
        )
        return Step(
            to=refund.stage,
            status=refund.status,
            label="recovered",
            changes=changes,
            delay=REVIEW_REMINDER,
            quiet=is_repeated,
        )
    changes |= {
        "first_attempt_at": min(refund.first_attempt_at or since, since),
        "lapses": 0,
        # No replay before a read-back: a retry that the snapshot lost had another key than the one
        # known here.
        "server_errors": MAX_SERVER_ERRORS,
    } | NO_READBACKS
    return Step(
        to=Stage.IN_DOUBT,
        status=Status.PENDING,
        label="recovered",
        changes=changes,
        delay=timedelta(0),
    )


def erased(refund: Refund, now: datetime) -> Step:
    """Return the step that erases a settled refund's metadata and keeps its fingerprint.

    The fingerprint still identifies a repeat of the request. A failed refund cannot be sent again
    then, because its body could not be made again.
    """
    changes: dict[str, Any] = {
        "metadata": None,
        "fingerprint": refund.fingerprint,
        "metadata_erased_at": now,
    }
    if refund.status is Status.FAILED:
        changes["retriable"] = Retriable.NO
    return Step(
        to=refund.stage,
        status=refund.status,
        label="metadata_erased",
        changes=changes,
        quiet=True,
    )
