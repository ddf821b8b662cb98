"""Rules for proofs: what follows once the provider has shown how a refund stands.

It settles, is processing, or waits for a person. Pure and total functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from worker.model.answers import ProviderRefund
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules.codes import retriable
from worker.rules.outcomes import FINAL_STATUSES, is_later
from worker.rules.payloads import LONGEST_TEXT

LATE_SUCCESS: Final = timedelta(minutes=2)
"""How long a success that was read still says how the refund stands.

That of a reply counts from the end of its claim's lease, or from the first attempt if the reply may
be that of an earlier send. Any other counts from the read.
"""
REVIEW_REMINDER: Final = timedelta(days=1)
NO_READBACKS: Final[dict[str, Any]] = {
    "looks": 0,
    "absent_at": None,
    "proven_absent_at": None,
    "found_at": None,
}
NO_WORD: Final[dict[str, Any]] = dict.fromkeys(
    ("operator_says", "operator_by", "operator_code", "operator_unverified")
)
"""Changes that clear the fields of a person's decision, once it is verified or rejected."""


def to_review(changes: Mapping[str, Any], label: str, alarm: str) -> Step:
    """Return the step to review by a person, with the reason as the alarm."""
    return Step(
        to=Stage.REVIEW,
        status=Status.PENDING,
        label=label,
        changes=changes,
        delay=REVIEW_REMINDER,
        alarm=alarm,
    )


def unknown_status(found: ProviderRefund, reason: str, changes: Mapping[str, Any]) -> Step:
    """Return the step to review for a refund that the provider shows with an unknown status."""
    shown = {
        "provider_refund_id": found.id,
        "provider_status": found.status or None,
        "error_code": "unknown_status",
        "error_message": reason,
    }
    return to_review({**changes, **shown}, "unknown_status", reason)


def named_again(refund: Refund) -> dict[str, Any]:
    """Return the change by which all that webhooks named is read again before anything is sent.

    Its own and those of earlier generations are read in any case.
    """
    known = {*refund.prior_ids, refund.provider_refund_id}
    named = [one for one in refund.ids_named if one not in known]
    return {"hinted": " ".join(named)} if named else {}


def poll_delay(age: timedelta) -> timedelta:
    """Return the delay to the next poll of a pending refund: a quarter of its age, 2 s to 6 h."""
    return min(max(age / 4, timedelta(seconds=2)), timedelta(hours=6))


def done(refund: Refund, found: ProviderRefund, evidence: str, now: datetime) -> Step:
    """Return the step after a proof that the refund was done.

    Settled, or processing if the provider says pending.
    """
    status = found.status or "pending"
    changes: dict[str, Any] = {
        "provider_refund_id": found.id,
        "provider_status": status,
        "evidence": evidence,
        "error_code": None,
        "error_message": None,
        "retriable": None,
        "doubt_since": None,
        **NO_WORD,
    } | NO_READBACKS
    if found.currency and refund.currency is None:
        changes["currency"] = found.currency
    is_named = refund.operator_by is not None and found.id == refund.provider_refund_id
    if refund.contradicted_by is not None and is_named:
        # A person has named this as the provider's refund that counts.
        changes["contradicted_by"] = None
    final = FINAL_STATUSES.get(status)
    if final is None:
        changes |= {
            "processing_since": refund.processing_since or now,
            "lapses": 0,
            "server_errors": 0,
        }
        if refund.missing_since is not None:
            changes["missing_since"] = None
        delay = poll_delay(timedelta(0))
        return Step(
            to=Stage.PROCESSING,
            status=Status.PENDING,
            label="processing",
            changes=changes,
            delay=delay,
            proof=True,
            source=evidence,
        )
    # A late proof may meet a record that another refund of the provider has settled meanwhile, with
    # another amount.
    amount = refund.asked_amount if found.amount is None else found.amount
    if amount is not None:
        changes["amount"] = amount
    changes |= {name: None for name in _OF_A_FAILURE if getattr(refund, name) is not None}
    if final is not Status.SUCCEEDED:
        # A person may insist on a refund of another amount. A retry would be of that amount. The
        # key of a lost generation stands for what that one sent.
        is_as_asked = found.amount is None or refund.asked_amount in {None, found.amount}
        is_like_ours = is_as_asked and not is_later(found, refund)
        can_be_repeated = (
            is_like_ours
            and refund.can_be_made_again
            and refund.set_aside_ids is None
            and not refund.retry_may_be_lost
        )
        reason = found.failure_reason or ("canceled" if final is Status.CANCELED else "unknown")
        changes |= {
            "failure_reason": reason,
            "error_code": reason,
            "error_message": in_words(f"the provider reports the refund as {status}", found),
            "retriable": retriable(reason) if can_be_repeated else Retriable.NO,
        }
    by = refund.operator_by if evidence == "operator" else None
    dropped = settled_drops()
    return Step(
        to=Stage.SETTLED,
        status=final,
        label=status,
        changes=changes | dropped,
        proof=True,
        source=evidence,
        by=by,
    )


def settles_soon_after(step: Step, read_at: datetime) -> Step:
    """Return a step that settles a refund as succeeded only if it is saved soon after the read.

    If it is saved later, as by a worker that was frozen, it is read again.
    """
    if step.status is not Status.SUCCEEDED:
        return step
    return replace(step, settles_until=read_at + LATE_SUCCESS)


def succeeded_long_ago(refund: Refund, found: ProviderRefund, evidence: str, now: datetime) -> Step:
    """Return the step that keeps a success that is saved too late to say how it stands now.

    The money has left, so nothing is sent again. The provider's refund is read at once.
    """
    step = done(refund, replace(found, status="pending"), evidence, now)
    return replace(
        step,
        label="late_success",
        changes={**step.changes, "provider_status": found.status},
        delay=timedelta(0),
    )


def done_alone(refund: Refund, found: ProviderRefund, evidence: str, now: datetime) -> Step:
    """Return `done`'s step, unless what failed may not be all that was made for this refund.

    If only a person says that an earlier send did not happen, a person decides again, and also if
    it may be an earlier send that failed, and not the latest. The failed one is kept like that of
    an earlier generation: it moved nothing, and is read before a send.
    """
    step = done(refund, found, evidence, now)
    is_of_before = _is_of_before(refund, found)
    is_the_one = refund.operator_says == "succeeded" and not is_of_before
    is_another = refund.provider_refund_id not in {None, found.id}
    moved_nothing = step.status in {Status.FAILED, Status.CANCELED}
    may_be_earlier = is_of_before or _may_be_of_an_earlier_send(refund, evidence)
    # A word that no send has followed, since everything is paused or as the version before left it
    # in the record, leaves nothing beside what failed.
    by_word = refund.absent_by_word and refund.resends > 0
    if not moved_nothing or is_the_one or is_another:
        return step
    if not by_word and not may_be_earlier:
        return step
    kept = refund.prior_ids_with(found.id)
    changes = {
        "error_code": step.changes["error_code"],
        "error_message": step.changes["error_message"],
        "retriable": Retriable.NO,
        "doubt_since": refund.doubt_since or now,
        "quiet_at": refund.quiet_at or now,
        "prior_refund_ids": kept,
        "provider_refund_id": None,
        "provider_status": None,
        "processing_since": None,
        "evidence": None,
        # The error code names one that contradicted it no longer, so it is named here.
        **named_again(replace(refund, prior_refund_ids=kept)),
    }
    if "contradicted_by" in step.changes:
        changes["contradicted_by"] = None
    alarm = (
        f"{found.id} is {found.status}, and only a person says that an earlier attempt did not"
        " happen: that one may have moved the money"
        if by_word
        else f"{found.id} is {found.status}, and may be of an earlier attempt than the latest: that"
        " one may have moved the money"
    )
    to_person = to_review({**changes, **NO_WORD, **NO_READBACKS}, step.changes["error_code"], alarm)
    return replace(to_person, source=evidence)


def _is_of_before(refund: Refund, found: ProviderRefund) -> bool:
    """Return whether the record's own refund is of an earlier generation than a send in doubt.

    A person may have named it.
    """
    may_have_left = refund.doubt_since is not None or refund.doubted
    generation = found.generation or ""
    is_earlier = generation.isdigit() and int(generation) < refund.generation
    return is_earlier and may_have_left and found.id == refund.provider_refund_id


def _may_be_of_an_earlier_send(refund: Refund, evidence: str) -> bool:
    """Return whether a refund that was read by its id may not be that of the send in doubt.

    A total proves only that an earlier send moved nothing. That one may have made a refund that
    failed. A list would have shown it. A restored server may have lost a later send or a retry.
    """
    return (
        evidence == "lookup"
        and refund.provider_refund_id is None
        and refund.doubt_since is not None
        and (refund.retry_may_be_lost or (refund.resends > 0 and refund.baseline is not None))
    )


def in_words(sentence: str, found: ProviderRefund) -> str:
    """Return the sentence with the provider's own words for the failure, if it gave any."""
    return f"{sentence}: {found.failure_words}"[:LONGEST_TEXT] if found.failure_words else sentence


_OF_A_FAILURE: Final = ("failure_reason", "reversed_at")
"""What a failed record keeps of its failure until another refund of the provider counts."""


def settled_drops() -> dict[str, Any]:
    """Return the working fields that a settled record no longer needs, each set to None."""
    return dict.fromkeys(_SETTLED_DROPS)


_SETTLED_DROPS: Final = (
    "doubt_since",
    "doubted",
    "quiet_at",
    "verdicts",
    "lapses",
    "server_errors",
    "resends",
    "baseline",
    "processing_since",
    "missing_since",
    "unconfirmed_since",
    "currency_checked",
    "absent_by_word",
    *NO_WORD,
    # The key is derived from the id and the generation, so it need not be stored.
    "idempotency_key",
    "first_attempt_at",
    *NO_READBACKS,
)
