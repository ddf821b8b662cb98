"""Rules for rechecks: a refund is read again outside its own schedule.

A webhook named a provider's refund for it, or the watch of settled refunds reached it. A webhook is
never evidence: only the answer to our own read changes a record. Pure functions, as in `attempts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

from worker.model.answers import (
    Answer,
    Outcome,
    ProviderRefund,
    Readback,
    ReadbackVerdict,
    Reply,
    TryVerdict,
)
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules.outcomes import (
    FINAL_STATUSES,
    classify,
    contradiction,
    is_anothers,
    is_later,
    is_not_ours,
    moved_nothing,
    odd_status,
    says_nothing,
)
from worker.rules.payloads import STATUSES
from worker.rules.proofs import NO_WORD, done, in_words, to_review

WAITS: Final = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1))
"""Delays after a recheck that was not answered; after the last of them it is given up."""
MAX_UNREAD: Final = 3
"""Consecutive unanswered reads after which a person's decision is judged without one."""


class CandidateVerdict(StrEnum):
    """What a read showed about a provider's refund that a webhook named for ours."""

    OURS = "ours"
    EARLIER = "earlier"
    """It moved money, or may, in an earlier generation of our refund."""
    LATER = "later"
    """It is of a generation that lost records had sent."""
    OTHER = "other"
    """It is not ours, or an earlier generation's that moved nothing."""
    UNNAMED = "unnamed"
    """It agrees with our refund, and carries no id of ours."""
    CONTRADICTS = "contradicts"
    MISSING = "missing"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A provider's refund that a webhook named, as the provider shows it."""

    id: str
    verdict: CandidateVerdict
    outcome: Outcome
    """What the answer means as such; for a read without an answer it says why."""
    found: ProviderRefund | None = None
    reason: str = ""

    @property
    def is_read(self) -> bool:
        """Return whether the provider answered, so that the candidate need not be read again."""
        return self.verdict not in {CandidateVerdict.MISSING, CandidateVerdict.UNREADABLE}


def judge_candidate(refund: Refund, provider_refund_id: str, answer: Answer) -> Candidate:
    """Judge the answer to a read of a provider's refund that a webhook named.

    It is ours only if its metadata carry our id and generation, and nothing contradicts.
    """
    outcome = classify(answer, refund)
    found = shown_refund(answer)
    if found is None or found.id != provider_refund_id:
        unread = CandidateVerdict.MISSING if is_gone(outcome) else CandidateVerdict.UNREADABLE
        return Candidate(id=provider_refund_id, verdict=unread, outcome=outcome)
    verdict, reason = _judge_found(refund, found)
    return Candidate(id=found.id, verdict=verdict, outcome=outcome, found=found, reason=reason)


def _judge_found(refund: Refund, found: ProviderRefund) -> tuple[CandidateVerdict, str]:
    """Judge a provider's refund that was read, and say what contradicts ours if anything."""
    if is_anothers(found, refund):
        return CandidateVerdict.OTHER, ""
    if found.refund_id is None:
        agrees = contradiction(found, refund) is None
        return (CandidateVerdict.UNNAMED if agrees else CandidateVerdict.OTHER), ""
    return _judge_ours(refund, found)


def _judge_ours(refund: Refund, found: ProviderRefund) -> tuple[CandidateVerdict, str]:
    """Judge a provider's refund that carries our id, and say what contradicts it if anything."""
    # A refund without a generation counts as the first, as in a list.
    generation = "1" if found.generation is None else found.generation
    if not generation.isdigit():
        return CandidateVerdict.CONTRADICTS, "its metadata carry an unreadable generation"
    if int(generation) > refund.generation:
        return CandidateVerdict.LATER, ""
    if int(generation) < refund.generation:
        if moved_nothing(found):
            return CandidateVerdict.OTHER, ""
        if (wrong := contradiction(replace(found, generation=None), refund)) is not None:
            return CandidateVerdict.CONTRADICTS, f"it has our id but another {wrong}"
        return CandidateVerdict.EARLIER, ""
    if says_nothing(found, refund):
        return CandidateVerdict.OTHER, ""
    wrong = contradiction(found, refund)
    if wrong is not None or found.status is None:
        so_far = f", and moved nothing so far ({found.status})" if moved_nothing(found) else ""
        reason = f"it has our id but another {wrong or 'status'}{so_far}"
        return CandidateVerdict.CONTRADICTS, reason
    if found.status not in STATUSES:
        return CandidateVerdict.CONTRADICTS, odd_status(found)
    return CandidateVerdict.OURS, ""


def may_succeed_yet(refund: Refund, candidate: Candidate) -> bool:
    """Return whether a candidate is an unknown refund of ours that moved nothing so far."""
    found = candidate.found
    return (
        found is not None
        and found.refund_id == refund.refund_id
        and found.id not in refund.prior_ids
        and moved_nothing(found)
    )


def shown_refund(answer: Answer) -> ProviderRefund | None:
    """Return the refund in a successful answer, if it shows one."""
    if not isinstance(answer, Reply) or answer.payload is None:
        return None
    is_success = HTTPStatus.OK <= answer.http_status < HTTPStatus.MULTIPLE_CHOICES
    return answer.payload.refund if is_success else None


def is_gone(outcome: Outcome) -> bool:
    """Return whether the provider answered that it does not know the refund."""
    return outcome.verdict is TryVerdict.REFUSED and outcome.http_status == HTTPStatus.NOT_FOUND


def prior_done(
    refund: Refund, found: ProviderRefund, now: datetime, evidence: str = "lookup"
) -> Step:
    """Return the step for an unsent retry whose earlier provider refund was done after all.

    The record takes that refund as its own, and nothing is sent. `evidence` is `operator` if only a
    person says that it is ours.
    """
    step = done(refund, found, evidence, now)
    earlier = {"prior_refund_ids": refund.prior_ids_with(found.id)}
    alarm = (
        f"the provider's refund {found.id} of an earlier generation was done after all:"
        " the retry was not sent"
    )
    return replace(
        step, label="prior_succeeded", changes={**step.changes, **earlier}, proof=False, alarm=alarm
    )


def prior_done_long_ago(refund: Refund, found: ProviderRefund, now: datetime) -> Step:
    """Return the same for one whose success is saved too late to say how it stands now.

    The provider's refund is read at once.
    """
    step = prior_done(refund, replace(found, status="pending"), now)
    changes = {**step.changes, "provider_status": found.status}
    return replace(step, changes=changes, delay=timedelta(0))


def is_insisted(refund: Refund) -> bool:
    """Return whether a person says that the refund did not happen, even if nothing shows that."""
    return refund.operator_says in {"absent", "failed"} and refund.operator_unverified


def was_never_sent(refund: Refund) -> bool:
    """Return whether no attempt of the refund's generation can have reached the provider."""
    return (
        refund.stage in {Stage.QUEUED, Stage.WAITING}
        and refund.first_attempt_at is None
        and not refund.doubted
        and refund.doubt_since is None
    )


def in_conflict(refund: Refund, candidate: Candidate, now: datetime) -> Step | None:
    """Return the step to review for a provider's refund that names ours and contradicts it.

    A settled refund keeps its status. The provider's refund is read before a retry of it is sent,
    like that of an earlier generation. None if there is nothing to change. A further one is added
    to the review's message, so that the person who decides knows of each.
    """
    if refund.stage is Stage.SETTLED:
        return _read_before_retry(refund, candidate)
    if refund.stage is Stage.SENDING or is_told(refund, candidate):
        return None
    reason = f"the provider's refund {_said(candidate)}"
    known = refund.error_message if _waits_in_conflict(refund) else None
    changes: dict[str, Any] = {
        "error_code": "conflict",
        "error_message": reason if known is None else f"{known}; {reason}",
        # A refund with our id exists, so it may have happened.
        "doubt_since": refund.doubt_since or now,
        **NO_WORD,
    }
    if refund.operator_says == "succeeded":
        # A person named an id, and it was not read yet. It is read before anything is sent.
        changes |= {"provider_refund_id": None, "processing_since": None, "missing_since": None}
        if (named := refund.provider_refund_id) is not None:
            changes["prior_refund_ids"] = refund.prior_ids_with(named)
    return replace(to_review(changes, "conflict", reason), source="lookup")


def is_told(refund: Refund, candidate: Candidate) -> bool:
    """Return whether a refund in review says already what was read about a candidate."""
    return _waits_in_conflict(refund) and f" {_said(candidate)};" in f" {refund.error_message};"


def _waits_in_conflict(refund: Refund) -> bool:
    return refund.stage is Stage.REVIEW and refund.error_code == "conflict"


def _said(candidate: Candidate) -> str:
    return f"{candidate.id} was read: {candidate.reason}"


def _read_before_retry(refund: Refund, candidate: Candidate) -> Step | None:
    is_over = candidate.found is not None and candidate.found.status in {"failed", "canceled"}
    # A canceled one is never retried, and one that succeeded may be reversed and retried.
    if refund.status is Status.CANCELED or is_over or candidate.id in refund.prior_ids:
        return None
    return Step(
        to=Stage.SETTLED,
        status=refund.status,
        label="conflict",
        changes={"prior_refund_ids": " ".join((*refund.prior_ids, candidate.id))},
        source="lookup",
        quiet=True,
    )


def unreadable_hint(refund: Refund) -> Step:
    """Return the step to review for an unsent refund whose named provider refund is unreadable."""
    reason = (
        f"a webhook named {' and '.join(refund.candidates)} for it, which could not be read:"
        " it was not sent"
    )
    changes = {"error_code": "hint_unreadable", "error_message": reason, **NO_WORD}
    return to_review(changes, "hint_unreadable", reason)


RESULTS: Final = (
    "confirmed",
    "reversed",
    "unreversed",
    "identified",
    "found",
    "refuted",
    "contradicts",
    "again",
    "given_up",
)
"""The results under which rechecks are counted."""


class RecheckResult(StrEnum):
    """What a recheck of a settled refund showed."""

    CONFIRMED = "confirmed"
    CHANGED = "changed"
    CONTRADICTS = "contradicts"
    AGAIN = "again"


def after_recheck(
    refund: Refund, answer: Answer, now: datetime
) -> tuple[RecheckResult, Step | None]:
    """Return what a read of a settled refund by its own provider id shows, and the step if any."""
    found = shown_refund(answer)
    if found is None or found.id != refund.provider_refund_id:
        return RecheckResult.AGAIN, None
    if _differs(refund, found):
        return RecheckResult.CONTRADICTS, None
    step = changed_by_provider(refund, found, "lookup", now)
    if step is not None:
        return RecheckResult.CHANGED, step
    is_final = found.status in FINAL_STATUSES
    return (RecheckResult.CONFIRMED if is_final else RecheckResult.AGAIN), None


def _differs(refund: Refund, found: ProviderRefund) -> bool:
    """Return whether a settled refund's provider refund is shown with other contents.

    If the amount of a refund of all that was left is known by now, it must agree too.
    """
    return contradiction(found, replace(refund, all_remaining=False)) is not None


def priors_of(refund: Refund) -> tuple[str, ...]:
    """Return the provider's refunds of earlier generations that a recheck reads too.

    Those that a person set aside are read if the one that counted has failed.
    """
    known = {refund.provider_refund_id, refund.contradicted_by, *refund.ids_reported}
    others = dict.fromkeys((*refund.prior_ids, *refund.ids_set_aside))
    return tuple(other for other in others if other not in known)


def after_prior_recheck(
    refund: Refund, provider_refund_id: str, answer: Answer, owner: str | None = None
) -> tuple[RecheckResult, ProviderRefund | None]:
    """Return what a read of a settled refund's earlier provider refund shows, and that refund.

    `CHANGED` if it moved money after all, or may: it had failed before the retry. One that is not
    ours, as one whose id was mistyped, says nothing of this refund. `owner` is the refund whose
    record has it.
    """
    found = shown_refund(answer)
    if found is None or found.id != provider_refund_id:
        return RecheckResult.AGAIN, None
    if moved_nothing(found) or is_not_ours(found, refund, owner):
        return RecheckResult.CONFIRMED, found
    if found.status not in STATUSES or contradiction(replace(found, generation=None), refund):
        return RecheckResult.CONTRADICTS, found
    return RecheckResult.CHANGED, found


def changed_by_provider(
    refund: Refund, found: ProviderRefund, source: str, now: datetime
) -> Step | None:
    """Return the step for a settled refund that the provider shows with the opposite end.

    None if there is nothing to change. `source` says where it was read: `list` or `lookup`.
    """
    if refund.stage is not Stage.SETTLED or found.id != refund.provider_refund_id:
        return None
    if _differs(refund, found):
        return None
    final = FINAL_STATUSES.get(found.status or "")
    if refund.status is Status.SUCCEEDED and final in {Status.FAILED, Status.CANCELED}:
        return _reversed(refund, found, source, now)
    if refund.status is not Status.SUCCEEDED and final is Status.SUCCEEDED:
        return _unreversed(refund, found, source)
    return None


def _reversed(refund: Refund, found: ProviderRefund, source: str, now: datetime) -> Step:
    reason = found.failure_reason or ("canceled" if found.status == "canceled" else "unknown")
    can_be_repeated = (
        refund.can_be_made_again
        and refund.set_aside_ids is None
        and not refund.retry_may_be_lost
        # The key of a lost generation stands for what that one sent.
        and not is_later(found, refund)
    )
    changes = {
        "provider_status": found.status,
        "failure_reason": reason,
        "error_code": reason,
        "error_message": in_words(
            f"the provider changed a succeeded refund to {found.status}", found
        ),
        "retriable": Retriable.UNKNOWN if can_be_repeated else Retriable.NO,
        "evidence": source,
        "reversed_at": now,
    }
    return Step(
        to=Stage.SETTLED,
        status=Status.FAILED,
        label="reversed",
        changes=changes,
        alarm="a refund that had succeeded was reversed by the provider",
        source=source,
    )


def _unreversed(refund: Refund, found: ProviderRefund, source: str) -> Step:
    removed = ("failure_reason", "error_code", "error_message", "retriable", "reversed_at")
    changes: dict[str, Any] = dict.fromkeys(removed)
    changes |= {"provider_status": found.status, "evidence": source}
    if found.amount is not None:
        changes["amount"] = found.amount
    return Step(
        to=Stage.SETTLED,
        status=Status.SUCCEEDED,
        label="unreversed",
        changes=changes,
        alarm=f"a refund that was recorded as {refund.status} succeeded at the provider after all",
        source=source,
    )


def identified(refund: Refund, found: ProviderRefund) -> Step | None:
    """Return the step by which a refund that totals proved learns its provider id, else None."""
    if (
        refund.stage is not Stage.SETTLED
        or refund.status is not Status.SUCCEEDED
        or refund.provider_refund_id is not None
        or FINAL_STATUSES.get(found.status or "") is not Status.SUCCEEDED
    ):
        return None
    changes: dict[str, Any] = {
        "provider_refund_id": found.id,
        "provider_status": found.status,
        "evidence": "lookup",
    }
    if found.amount is not None:
        changes["amount"] = found.amount
    return Step(
        to=Stage.SETTLED,
        status=Status.SUCCEEDED,
        label="identified",
        changes=changes,
        source="lookup",
    )


def as_readback(candidates: Sequence[Candidate]) -> Readback | None:
    """Return what the candidates of a refund in doubt show together.

    None if none of them is ours: then the refund is read back as if no webhook had named any.
    """
    ours = [one for one in candidates if one.verdict is CandidateVerdict.OURS]
    for one in candidates:
        if one.verdict is CandidateVerdict.CONTRADICTS:
            return Readback(verdict=ReadbackVerdict.CONFLICT, reason=_said(one), source="lookup")
    generations = {CandidateVerdict.EARLIER, CandidateVerdict.LATER}
    others = [one for one in candidates if one.verdict in generations]
    if others or len(ours) > 1:
        names = " and ".join(one.id for one in (*ours, *others))
        reason = f"the provider shows {names} with our id: money may move twice"
        return Readback(verdict=ReadbackVerdict.CONFLICT, reason=reason, source="lookup")
    if ours:
        return Readback(
            verdict=ReadbackVerdict.FOUND,
            reason="read by the id that a webhook named",
            found=ours[0].found,
            source="lookup",
        )
    for one in candidates:
        if not one.is_read:
            return Readback(
                verdict=ReadbackVerdict.UNREADABLE,
                reason=f"{one.id}, which a webhook named, was not shown: {one.outcome.code}",
                retry_after=one.outcome.retry_after,
                credentials=one.outcome.credentials,
            )
    return None
