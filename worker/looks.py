"""The rules for what was read: where a look at a doubt leads, and a poll of a refund that is processing."""

from __future__ import annotations

from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Final

from worker.answers import classify
from worker.model import (
    Answer,
    Look,
    Refund,
    Seen,
    Sight,
    Stage,
    Status,
    Step,
)
from worker.policy import (
    MAX_PROCESSING,
    MAX_RESENDS,
    NO_LOOKS,
    VERDICT_LIFE,
    Rules,
    backoff,
    done,
    poll_delay,
    settled_drops,
    to_review,
)

FOUND_WITHIN: Final = 2
"""Settle times after the end of an attempt within which a rise of the total is believed to be ours."""
_FOUND_LATE: Final = (
    "the refunded total rose by exactly this amount, but that was first seen more than two settle times after the "
    "attempt: it may be somebody else's refund"
)

MAX_LOOKS: Final = 5
"""Looks in a row that could not tell, after which a person must."""
MISSING_FOR: Final = timedelta(hours=1)
"""How long a 404 only says "not yet", for a refund that the provider reported or a payment: a replica may lag."""
NAMED_MISSING_FOR: Final = timedelta(minutes=1)
"""The same for an id that a person named: most likely it is mistyped, and the person still waits."""


def after_look(refund: Refund, look: Look, rules: Rules, now: datetime, jitter: float) -> Step:
    """Return where a read-back leads a refund in doubt.

    Absence needs two looks: the first a settle time after the attempt went quiet, the second as long after the first.
    """
    match look.sight:
        case Sight.FOUND if look.found is not None:
            return done(refund, look.found, "list", now)
        case Sight.CONFLICT:
            return to_review({"error_code": "conflict", "error_message": look.reason}, "conflict", look.reason)
        case Sight.UNREADABLE:
            if refund.first_attempt_at is not None and now - refund.first_attempt_at >= rules.max_age:
                return to_review({}, "unreadable", f"it could not be read back within the allowed age: {look.reason}")
            return _unread(refund, look, now, jitter)
        case Sight.FOUND_IN_TOTALS:
            return _found_in_totals(refund, rules, now)
    if refund.operator_says == "absent":
        return _absence_proven(refund, "operator_says_absent", now)
    if look.sight is Sight.ABSENT:
        return _absent(refund, rules, now)
    if look.missing and now - (refund.doubt_since or now) < MISSING_FOR:
        return _unread(refund, look, now, jitter)
    return _inconclusive(refund, look.reason, rules, now, jitter)


def _unread(refund: Refund, look: Look, now: datetime, jitter: float) -> Step:
    """Return the step for a read-back that was not answered (yet): no look is counted, and the next is later."""
    doubted = now - (refund.doubt_since or now)
    delay = min(max(doubted / 4, timedelta(seconds=5)), timedelta(minutes=10)) * (1 + jitter / 4)
    delay = max(delay, look.retry_after or timedelta(0))
    return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="unreadable", delay=delay, quiet=True)


def _found_in_totals(refund: Refund, rules: Rules, now: datetime) -> Step:
    if refund.found_at is None:
        if refund.quiet_at is None or now > refund.quiet_at + FOUND_WITHIN * rules.settle:
            changes: dict[str, Any] = {"error_code": "found_late", "error_message": _FOUND_LATE}
            return to_review(changes, "found_late", _FOUND_LATE)
        changes = NO_LOOKS | {"found_at": now}
        return Step(
            to=Stage.IN_DOUBT, status=Status.PENDING, label="found_in_totals", changes=changes, delay=rules.settle
        )
    wait = refund.found_at + rules.settle - now
    if wait > timedelta(0):
        return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="found_in_totals", delay=wait, quiet=True)
    changes = {
        "evidence": "totals",
        "provider_status": None,
        "error_code": None,
        "error_message": None,
        "retriable": None,
    } | settled_drops()
    # A refund of all that was left keeps no amount: another refund may have taken a part of what the total rose by.
    if refund.currency is None and refund.baseline is not None:
        changes["currency"] = refund.baseline.currency
    # No proof by the provider's own word: it holds only for the version that was looked at.
    return Step(to=Stage.SETTLED, status=Status.SUCCEEDED, label="found_in_totals", changes=changes)


def _absent(refund: Refund, rules: Rules, now: datetime) -> Step:
    countable = (refund.quiet_at or now) + rules.settle
    if now < countable:
        return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="absent_early", delay=countable - now, quiet=True)
    if refund.absent_at is None:
        changes: dict[str, Any] = NO_LOOKS | {"absent_at": now}
        return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="absent", changes=changes, delay=rules.settle)
    wait = refund.absent_at + rules.settle - now
    if wait > timedelta(0):
        return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="absent", delay=wait, quiet=True)
    if refund.resends >= MAX_RESENDS:
        return to_review({}, "resends_spent", "it vanished after every resend")
    return _absence_proven(refund, "absence_proven", now)


def _absence_proven(refund: Refund, label: str, now: datetime) -> Step:
    # Still in doubt: the claim that follows clears it, if it comes while the verdict is fresh.
    changes: dict[str, Any] = NO_LOOKS | {"absent_at": refund.absent_at or now, "proven_absent_at": now}
    return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label=label, changes=changes, delay=VERDICT_LIFE)


def _inconclusive(refund: Refund, reason: str, rules: Rules, now: datetime, jitter: float) -> Step:
    countable = (refund.quiet_at or now) + rules.settle
    if now < countable:
        return Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="too_early", delay=countable - now, quiet=True)
    looks = refund.looks + 1
    if looks >= MAX_LOOKS:
        return to_review({"looks": looks}, "inconclusive", f"it cannot be told whether it happened: {reason}")
    delay = backoff(looks, base=rules.settle, cap=timedelta(hours=6), jitter=jitter)
    changes: dict[str, Any] = {"looks": looks, "absent_at": None, "found_at": None, "proven_absent_at": None}
    return Step(
        to=Stage.IN_DOUBT, status=Status.PENDING, label="inconclusive", changes=changes, delay=delay, quiet=True
    )


def after_poll(refund: Refund, answer: Answer, now: datetime, jitter: float) -> Step:
    """Return where `GET /v1/refunds/{id}` leads a refund in `processing`."""
    since = refund.processing_since or now
    outcome = classify(answer, refund)
    if outcome.seen is Seen.DONE and outcome.found is not None:
        if outcome.found.id != refund.provider_refund_id:
            return _poll_failed(refund, "contradictory_reply", "the provider answered with another refund's id", now)
        if outcome.found.status != "pending":
            evidence = "operator" if refund.operator_says else refund.evidence or "reply"
            return done(refund, outcome.found, evidence, now)
    if outcome.code == "contradictory_reply":
        return _poll_failed(refund, outcome.code, outcome.message or outcome.code, now)
    if outcome.seen is Seen.REFUSED and outcome.http_status == HTTPStatus.NOT_FOUND:
        return _missing(refund, now, jitter)
    if now - since >= MAX_PROCESSING:
        return _poll_failed(refund, "pending_too_long", "it has not become final for 30 days", now)
    delay = max(poll_delay(now - since) * (1 + jitter / 4), outcome.retry_after or timedelta(0))
    changes: dict[str, Any] = {}
    if outcome.seen is Seen.DONE and refund.operator_says is not None:
        # Named once more, so that the confirmed id is now owned.
        changes = {"operator_says": None, "provider_refund_id": refund.provider_refund_id}
    if outcome.seen is Seen.DONE and refund.missing_since is not None:
        changes["missing_since"] = None
    return _poll_again("pending", changes, delay)


def _missing(refund: Refund, now: datetime, jitter: float) -> Step:
    """Return where a 404 leads: it says "not yet" for a while, and only then that the refund is gone."""
    since = refund.missing_since or now
    if now - since >= (MISSING_FOR if refund.operator_says is None else NAMED_MISSING_FOR):
        return _poll_failed(refund, "refund_missing", "the provider does not know the refund that was named", now)
    delay = min(max((now - since) / 2, timedelta(seconds=5)), timedelta(minutes=15)) * (1 + jitter / 4)
    return _poll_again("missing", {"missing_since": since}, delay)


def _poll_again(label: str, changes: dict[str, Any], delay: timedelta) -> Step:
    return Step(to=Stage.PROCESSING, status=Status.PENDING, label=label, changes=changes, delay=delay, quiet=True)


def _poll_failed(refund: Refund, code: str, reason: str, now: datetime) -> Step:
    """Return the step to a person: the provider had it, so whatever comes next, it may have happened."""
    changes: dict[str, Any] = {"error_code": code, "error_message": reason, "doubt_since": refund.doubt_since or now}
    if refund.missing_since is not None:
        changes["missing_since"] = None
    if refund.operator_says is not None:
        # It was a person's word, and the provider did not bear it out.
        changes |= {"provider_refund_id": None, "operator_says": None, "processing_since": None}
    return to_review(changes, code, reason)
