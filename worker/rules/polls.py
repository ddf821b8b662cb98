"""Rules for the step after a poll of a refund that the provider reported as pending."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Final

from worker.model.answers import Answer, Outcome, ProviderRefund, Reply, TryVerdict
from worker.model.refund import Refund, Stage, Status
from worker.model.steps import Step
from worker.rules import contradictions
from worker.rules.attempts import MAX_PROCESSING
from worker.rules.outcomes import classify, contradiction, is_later
from worker.rules.payloads import STATUSES
from worker.rules.proofs import NO_WORD, done_alone, poll_delay, to_review
from worker.rules.readback import MISSING_FOR
from worker.rules.rechecks import CandidateVerdict, judge_candidate

NAMED_MISSING_FOR: Final = timedelta(minutes=1)
"""How long a 404 means "not yet" for an id that a person named.

It is most likely mistyped, and the person is still waiting.
"""


def after_poll(refund: Refund, answer: Answer, now: datetime, jitter: float) -> Step:
    """Return the step after `GET /v1/refunds/{id}` for a refund in `processing`."""
    outcome = classify(answer, refund)
    found = outcome.found
    if found is not None:
        if found.id != refund.provider_refund_id:
            reason = "the provider answered with another refund's id"
            return _poll_failed(refund, "contradictory_reply", reason, now, may_be_ours=True)
        if outcome.verdict is TryVerdict.DONE and not found.is_pending:
            return done_alone(refund, found, _read_by(refund, found), now)
    if outcome.code in {"contradictory_reply", "unknown_status"}:
        named = _insisted_on(refund, answer)
        if named is None:
            return _contradicted(refund, answer, outcome, now)
        if refund.operator_says is not None or not named.is_pending:
            return _as_named(refund, named, now)
        # It is followed like any other that is pending.
        found = named
    if outcome.verdict is TryVerdict.REFUSED and outcome.http_status == HTTPStatus.NOT_FOUND:
        return _missing(refund, now, jitter)
    return _not_final(refund, found, outcome.retry_after, now, jitter)


def _not_final(
    refund: Refund,
    found: ProviderRefund | None,
    retry_after: timedelta | None,
    now: datetime,
    jitter: float,
) -> Step:
    """Return the step after a poll that shows a pending refund, or none (`found` is None then)."""
    since = refund.processing_since or now
    if now - since >= MAX_PROCESSING:
        reason = "it has been pending for 30 days"
        return _poll_failed(refund, "pending_too_long", reason, now, may_be_ours=True)
    delay = max(poll_delay(now - since) * (1 + jitter / 4), retry_after or timedelta(0))
    changes: dict[str, Any] = {}
    if found is not None and found.status != refund.provider_status:
        changes["provider_status"] = found.status
    if found is not None and refund.operator_says is not None:
        # The id is set again, so that the record now owns the confirmed id.
        changes |= {
            "operator_says": None,
            "provider_refund_id": found.id,
            "evidence": _read_by(refund, found),
        }
    if found is not None and refund.missing_since is not None:
        changes["missing_since"] = None
    return _poll_again("pending", changes, delay)


def _contradicted(refund: Refund, answer: Answer, outcome: Outcome, now: datetime) -> Step:
    """Return the step after a poll that does not show our refund, or shows an unknown status."""
    seen = judge_candidate(refund, refund.provider_refund_id or "", answer).verdict
    # One that is another's, or that carries no id of ours and does not agree, is not ours.
    may_be_ours = seen is not CandidateVerdict.OTHER
    reason = outcome.message or outcome.code
    step = _poll_failed(refund, outcome.code, reason, now, may_be_ours=may_be_ours)
    if outcome.found is None:
        return step
    return replace(step, changes={**step.changes, "provider_status": outcome.found.status or None})


def _as_named(refund: Refund, named: ProviderRefund, now: datetime) -> Step:
    """Return the step for a refund that a person has named although it differs from ours.

    It is recorded as the provider shows it, whether final or not.
    """
    evidence = "operator" if refund.operator_unverified else _read_by(refund, named)
    step = done_alone(replace(refund, currency=None), named, evidence, now)
    changes = dict(step.changes)
    if named.is_pending and refund.operator_unverified:
        # The next polls show the same difference.
        changes |= {"operator_unverified": True, "operator_by": refund.operator_by}
    is_earlier = named.generation not in {None, str(refund.generation)}
    if is_earlier and not is_later(named, refund):
        changes["prior_refund_ids"] = refund.prior_ids_with(named.id)
    return replace(step, changes=changes)


def says_gone(step: Step) -> bool:
    """Return whether a poll's step follows the answer that the provider has no such refund."""
    return step.label in {"missing", "refund_missing"}


def account_lost() -> Step:
    """Return the step of a poll while the account is in question.

    A missing refund then proves nothing.
    """
    return _poll_again("account_lost", {}, timedelta(minutes=1))


def _missing(refund: Refund, now: datetime, jitter: float) -> Step:
    """Return the step after a 404.

    A 404 means "not yet" for a while, and only then that the refund is gone.
    """
    since = refund.missing_since or now
    if now - since >= (MISSING_FOR if refund.operator_says is None else NAMED_MISSING_FOR):
        return _poll_failed(
            refund,
            "refund_missing",
            "the provider does not know the refund that was named",
            now,
            may_be_ours=False,
        )
    delay = min(max((now - since) / 2, timedelta(seconds=5)), timedelta(minutes=15)) * (
        1 + jitter / 4
    )
    return _poll_again("missing", {"missing_since": since}, delay)


def _poll_again(label: str, changes: dict[str, Any], delay: timedelta) -> Step:
    return Step(
        to=Stage.PROCESSING,
        status=Status.PENDING,
        label=label,
        changes=changes,
        delay=delay,
        quiet=True,
    )


def _read_by(refund: Refund, found: ProviderRefund) -> str:
    """Return the evidence that a refund read by its id is ours: `operator` or `lookup`.

    For an id that a person named, the only evidence is that statement, unless the provider's refund
    carries our own id.
    """
    named = refund.operator_says is not None or refund.evidence == "operator"
    return "operator" if named and found.refund_id != refund.refund_id else "lookup"


def _insisted_on(refund: Refund, answer: Answer) -> ProviderRefund | None:
    """Return the provider's refund that a person claims as ours although it differs.

    Returns None if it cannot be ours. Amount and currency may differ if the claim is `unverified`.
    The generation may differ if this refund is the one that contradicted the record.
    """
    payload = answer.payload if isinstance(answer, Reply) else None
    found = payload.refund if payload is not None and payload.kind in {None, "refund"} else None
    if found is None or found.id != refund.provider_refund_id or found.status not in STATUSES:
        return None
    taken = refund
    if refund.operator_unverified:
        taken = replace(taken, all_remaining=True, currency=None)
    generation = found.generation or ""
    if found.id == refund.contradicted_by and generation.isdigit():
        # The refund was discovered after a retry.
        taken = replace(taken, generation=int(generation))
    return found if contradiction(found, taken) is None else None


def _poll_failed(
    refund: Refund, code: str, reason: str, now: datetime, *, may_be_ours: bool
) -> Step:
    """Return the step to review after a failed poll.

    The provider had the refund, so it may have happened. One that a person named and that
    `may_be_ours` all the same is read before anything is sent.
    """
    changes: dict[str, Any] = {
        "error_code": code,
        "error_message": reason,
        "doubt_since": refund.doubt_since or now,
    }
    if refund.missing_since is not None:
        changes["missing_since"] = None
    if refund.operator_says is not None:
        # A person named this id, and the provider did not confirm it.
        changes |= {"provider_refund_id": None, "processing_since": None, **NO_WORD}
        if may_be_ours and refund.provider_refund_id is not None:
            changes |= contradictions.kept_as_earlier(refund, refund.provider_refund_id)
    return replace(to_review(changes, code, reason), source="lookup")
