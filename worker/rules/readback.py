"""Rules for the step after a read-back of a doubtful refund."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from worker.model.answers import (
    ProviderRefund,
    Readback,
    ReadbackVerdict,
)
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.request import scrubbed
from worker.model.steps import Step
from worker.rules import contradictions
from worker.rules.attempts import MAX_PROCESSING, MAX_RESENDS, VERDICT_LIFE, Rules, backoff
from worker.rules.proofs import (
    NO_READBACKS,
    NO_WORD,
    done_alone,
    settled_drops,
    to_review,
    unknown_status,
)
from worker.rules.rechecks import MAX_UNREAD

FOUND_WITHIN: Final = 2
"""Settle times after an attempt's end within which a rise of the total is attributed to our refund.
"""
_FOUND_LATE: Final = (
    "the refunded total rose by exactly this amount, but that was first seen more than two settle"
    " times after the attempt: someone else may have made that refund"
)

MAX_READBACKS: Final = 5
"""Consecutive inconclusive read-backs after which the refund goes to review."""
MISSING_FOR: Final = timedelta(hours=1)
"""How long a 404 means "not yet", for a payment or a reported refund, because a replica may lag."""


def after_readback(
    refund: Refund, read_back: Readback, rules: Rules, now: datetime, jitter: float
) -> Step:
    """Return the step after a read-back of a refund in doubt.

    Absence needs two read-backs: one a settle time after the attempt went quiet, and one a settle
    time later. A person's decision is compared with what is read, and never outweighs it. The
    decision counts by itself only if nothing readable settles the question and the person requested
    that with `unverified`.
    """
    if (
        read_back.verdict is ReadbackVerdict.FOUND
        and read_back.found is not None
        and not _is_stuck(refund, read_back.found, now)
    ):
        return done_alone(refund, read_back.found, read_back.source or "list", now)
    if refund.operator_says in {"absent", "failed"}:
        return _after_word(refund, read_back, rules, now, jitter)
    match read_back.verdict:
        case ReadbackVerdict.CONFLICT:
            return _conflict(refund, read_back)
        case ReadbackVerdict.UNREADABLE:
            if refund.tried_since is not None and now - refund.tried_since >= rules.max_age:
                return to_review(
                    {},
                    "unreadable",
                    f"it could not be read back within the allowed age: {read_back.reason}",
                )
            return _read_again_later(refund, read_back, now, jitter)
        case ReadbackVerdict.FOUND_IN_TOTALS:
            return _found_in_totals(refund, rules, now)
        case ReadbackVerdict.ABSENT:
            return _absent(refund, rules, now)
    if read_back.missing and now - (refund.doubt_since or now) < MISSING_FOR:
        return _read_again_later(refund, read_back, now, jitter)
    if rules.readback == "none":
        # What a webhook had named was read and is not ours. Nothing else may be read.
        return to_review({}, "no_readback", "it may have happened, and nothing may be read back")
    return _inconclusive(refund, read_back.reason, rules, now, jitter)


def _is_stuck(refund: Refund, found: ProviderRefund, now: datetime) -> bool:
    """Return whether a person gives up a refund that the provider reported pending for too long."""
    since = refund.processing_since
    too_long = since is not None and now - since >= MAX_PROCESSING
    return (
        refund.operator_says == "failed"
        and refund.operator_unverified
        and found.is_pending
        and too_long
    )


def after_owned(refund: Refund, changes: Mapping[str, Any], alarm: str) -> Step:
    """Return the step if the provider's refund in a proof belongs to another record.

    Review, where a person may end it.

    `changes` are stored on the record; fields that they remove are also removed if this settles the
    refund. `alarm` says which record owns the provider's refund.
    """
    if refund.operator_says == "failed" and refund.operator_unverified:
        step = given_up(refund, "operator", f"settled by a person: {alarm}")
        removed = {name: None for name, value in changes.items() if value is None}
        return replace(step, changes={**step.changes, **removed})
    return to_review({**changes, **NO_WORD}, "owned_elsewhere", alarm)


def _conflict(refund: Refund, read_back: Readback) -> Step:
    if read_back.found is not None:
        return replace(
            unknown_status(read_back.found, read_back.reason, {}), source=read_back.source or "list"
        )
    changes = {"error_code": "conflict", "error_message": read_back.reason}
    # A person may name another one, and a retry must not be sent beside these.
    changes |= contradictions.kept_as_earlier(refund, *read_back.odd)
    return replace(
        to_review(changes, "conflict", read_back.reason), source=read_back.source or "list"
    )


def _read_again_later(
    refund: Refund, read_back: Readback, now: datetime, jitter: float, **changes: Any
) -> Step:
    """Return the step for a read-back that was not answered (yet).

    The delay grows with the age of the doubt.
    """
    doubted = now - (refund.doubt_since or now)
    delay = min(max(doubted / 4, timedelta(seconds=5)), timedelta(minutes=10)) * (1 + jitter / 4)
    delay = max(delay, read_back.retry_after or timedelta(0))
    return Step(
        to=Stage.IN_DOUBT,
        status=Status.PENDING,
        label="unreadable",
        changes=changes,
        delay=delay,
        quiet=True,
    )


def _after_word(
    refund: Refund, read_back: Readback, rules: Rules, now: datetime, jitter: float
) -> Step:
    """Return the step after a read-back of a refund that a person decided to fail or resend."""
    match read_back.verdict:
        case ReadbackVerdict.CONFLICT:
            return _refused_word(_conflict(refund, read_back))
        case ReadbackVerdict.UNREADABLE if read_back.credentials:
            # A refused API key concerns every refund and is soon fixed: no reason to accept a
            # decision unverified.
            return _read_again_later(refund, read_back, now, jitter)
        case ReadbackVerdict.UNREADABLE | ReadbackVerdict.INCONCLUSIVE if (
            read_back.verdict is ReadbackVerdict.UNREADABLE or read_back.missing
        ):
            if refund.looks + 1 < MAX_UNREAD:
                return _read_again_later(refund, read_back, now, jitter, looks=refund.looks + 1)
            return _take_word(
                refund, "unreadable", f"it could not be read back: {read_back.reason}", now
            )
        case ReadbackVerdict.FOUND_IN_TOTALS:
            step = _found_in_totals(refund, rules, now)
            if step.to is not Stage.REVIEW:
                return step
            if refund.operator_says == "absent":
                return _refused_word(step)
            return _take_word(refund, step.label, read_back.reason, now)
        case ReadbackVerdict.ABSENT:
            return _absent(refund, rules, now)
    countable = (refund.quiet_at or now) + rules.settle
    if now < countable and not refund.operator_unverified:
        return _too_early(countable - now)
    return _take_word(refund, "inconclusive", read_back.reason, now)


def _refused_word(step: Step) -> Step:
    """Return a step to review that also drops the person's decision; only what was read remains."""
    return replace(step, changes={**NO_WORD, **step.changes})


def _take_word(refund: Refund, label: str, reason: str, now: datetime) -> Step:
    """Return the step for a decision that nothing confirms.

    Back to review, unless it was made as `unverified`.
    """
    if not refund.operator_unverified:
        alarm = (
            f"the decision could not be verified ({reason}): decide again with --unverified if it"
            " must count"
        )
        return _refused_word(to_review({}, label, alarm))
    if refund.operator_says == "absent":
        step = _absence_proven(refund, "operator_says_absent", "operator", now)
        if label == "unreadable":
            # What a webhook named and could not be read may be ours.
            unread = contradictions.own_kept(refund, *refund.candidates)
            if refund.baseline is not None:
                # Somebody else may have raised the total since, so it says nothing of the next
                # send.
                unread["baseline"] = None
            step = replace(step, changes={**step.changes, **unread})
        return step
    return given_up(refund, "operator", f"settled by a person, not verified: {reason}")


def given_up(refund: Refund, source: str, message: str) -> Step:
    """Return the step that fails a refund that a person has given up."""
    changes = {
        "error_code": refund.operator_code,
        "error_message": scrubbed(message),
        "retriable": Retriable.NO,
    }
    return Step(
        to=Stage.SETTLED,
        status=Status.FAILED,
        label="operator_says_failed",
        changes=changes | {"evidence": source} | settled_drops(),
        source=source,
        by=refund.operator_by,
    )


def _found_in_totals(refund: Refund, rules: Rules, now: datetime) -> Step:
    if refund.found_at is None:
        # What the provider reported as pending had been sent before that.
        quiet_at = refund.processing_since or refund.quiet_at
        if quiet_at is None or now > quiet_at + FOUND_WITHIN * rules.settle:
            changes: dict[str, Any] = {"error_code": "found_late", "error_message": _FOUND_LATE}
            return replace(to_review(changes, "found_late", _FOUND_LATE), source="totals")
        changes = NO_READBACKS | {"found_at": now}
        return Step(
            to=Stage.IN_DOUBT,
            status=Status.PENDING,
            label="found_in_totals",
            changes=changes,
            delay=rules.settle,
            source="totals",
        )
    wait = refund.found_at + rules.settle - now
    if wait > timedelta(0):
        return Step(
            to=Stage.IN_DOUBT,
            status=Status.PENDING,
            label="found_in_totals",
            delay=wait,
            quiet=True,
        )
    changes = {
        "evidence": "totals",
        "provider_status": None,
        "error_code": None,
        "error_message": None,
        "retriable": None,
    } | settled_drops()
    # A refund of all that was left keeps no amount, because another refund may account for a part
    # of the rise.
    if refund.currency is None and refund.baseline is not None:
        changes["currency"] = refund.baseline.currency
    # The provider did not confirm this refund itself, so this holds only for the version that was
    # read back.
    return Step(
        to=Stage.SETTLED,
        status=Status.SUCCEEDED,
        label="found_in_totals",
        changes=changes,
        source="totals",
    )


def _absent(refund: Refund, rules: Rules, now: datetime) -> Step:
    countable = (refund.quiet_at or now) + rules.settle
    if now < countable:
        return Step(
            to=Stage.IN_DOUBT,
            status=Status.PENDING,
            label="absent_early",
            delay=countable - now,
            quiet=True,
        )
    if refund.absent_at is None:
        changes: dict[str, Any] = NO_READBACKS | {"absent_at": now}
        return Step(
            to=Stage.IN_DOUBT,
            status=Status.PENDING,
            label="absent",
            changes=changes,
            delay=rules.settle,
            source=rules.readback,
        )
    wait = refund.absent_at + rules.settle - now
    if wait > timedelta(0):
        return Step(
            to=Stage.IN_DOUBT, status=Status.PENDING, label="absent", delay=wait, quiet=True
        )
    if refund.operator_says == "failed":
        return given_up(
            refund,
            rules.readback,
            "settled by a person, and the provider does not show such a refund",
        )
    if refund.resends >= MAX_RESENDS and refund.operator_says != "absent":
        return to_review({}, "resends_spent", "no resend was ever found at the provider")
    return _absence_proven(refund, "absence_proven", rules.readback, now)


def _absence_proven(refund: Refund, label: str, source: str, now: datetime) -> Step:
    # The refund stays in doubt until the next claim clears it, if that comes while the verdict is
    # fresh. The source is stored on the record, because an end without a further answer rests on
    # it.
    changes: dict[str, Any] = NO_READBACKS | {
        "absent_at": refund.absent_at or now,
        "proven_absent_at": now,
        "evidence": source,
    }
    if source == "operator":
        changes["absent_by_word"] = True
    elif refund.absent_by_word:
        # What was sent before that word is absent too.
        changes["absent_by_word"] = None
    if source != "operator" and refund.retry_may_be_lost:
        # A list would have shown what a retry made, as of any generation.
        changes["retry_may_be_lost"] = None
    if source == "operator" and refund.hinted is not None:
        # What a webhook named could not be read, and a person insists all the same.
        changes["hints_dropped"] = refund.hinted
    if refund.provider_refund_id is not None:
        # That id led nowhere, and the next send gets a new one. One that only could not be read may
        # move money yet.
        changes |= {"provider_refund_id": None, "provider_status": None, "processing_since": None}
        if source == "operator":
            changes |= contradictions.own_kept(refund)
    return Step(
        to=Stage.IN_DOUBT,
        status=Status.PENDING,
        label=label,
        changes=changes,
        delay=VERDICT_LIFE,
        source=source,
        by=refund.operator_by,
    )


def _too_early(wait: timedelta) -> Step:
    return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="too_early", delay=wait, quiet=True)


def _inconclusive(refund: Refund, reason: str, rules: Rules, now: datetime, jitter: float) -> Step:
    countable = (refund.quiet_at or now) + rules.settle
    if now < countable:
        return _too_early(countable - now)
    looks = refund.looks + 1
    if looks >= MAX_READBACKS:
        return to_review(
            {"looks": looks}, "inconclusive", f"it is unknown whether it happened: {reason}"
        )
    delay = backoff(looks, base=rules.settle, cap=timedelta(hours=6), jitter=jitter)
    changes: dict[str, Any] = {
        "looks": looks,
        "absent_at": None,
        "found_at": None,
        "proven_absent_at": None,
    }
    return Step(
        to=Stage.IN_DOUBT,
        status=Status.PENDING,
        label="inconclusive",
        changes=changes,
        delay=delay,
        quiet=True,
    )
