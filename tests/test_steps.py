"""Each decision in full: where it leads, everything that it changes, and when the refund is looked at next."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import (
    BAD_KEY,
    BLIND,
    HOUR,
    MAYBE,
    MINUTE,
    MISMATCH,
    NOT_DONE,
    NOT_SENT,
    NOW,
    REFUSED,
    SECOND,
    SERVER_ERROR,
    TRUST,
    VERIFY,
    a_refund,
    a_reply,
    an_error,
    done_as,
    found,
    refund_payload,
)
from worker import policy
from worker.answers import fold
from worker.decisions import cancel, recovered, resolve_failed, resolve_resend, resolve_succeeded, retry_failed
from worker.errors import IllegalMove, InvalidRequest, NotCancelable
from worker.model import (
    Action,
    Baseline,
    Look,
    Outcome,
    Refund,
    Retriable,
    Seen,
    Sight,
    Stage,
    Status,
    Step,
)
from worker.policy import (
    Rules,
    after_attempt,
    after_lapse,
    after_look,
    after_poll,
    backoff,
    check_move,
    done,
    may_replay,
    may_try_again,
    next_action,
    poll_delay,
    refused_unsent,
    reversed_by_provider,
    to_review,
)

DAY = 24 * HOUR
TOLD = "told"
"""Stands for whatever a person is told."""

ANEW = {"looks": 0, "absent_at": None, "proven_absent_at": None, "found_at": None}
DROPPED = dict.fromkeys(
    (
        "doubt_since",
        "quiet_at",
        "verdicts",
        "lapses",
        "server_errors",
        "resends",
        "baseline",
        "processing_since",
        "operator_says",
        "idempotency_key",
        "first_attempt_at",
        "looks",
        "absent_at",
        "proven_absent_at",
        "found_at",
    )
)


def plain(step: Step | None) -> Step | None:
    """A step without the words in which a person is told of it."""
    if step is None:
        return None
    changes = {name: TOLD if name == "error_message" and value else value for name, value in step.changes.items()}
    return replace(step, changes=changes, alarm=TOLD if step.alarm else step.alarm)


def pending(to: Stage, label: str, changes: dict[str, Any], delay: timedelta, **fields: Any) -> Step:
    return Step(to=to, status=Status.PENDING, label=label, changes=changes, delay=delay, **fields)


def settled(status: Status, label: str, changes: dict[str, Any], **fields: Any) -> Step:
    return Step(to=Stage.SETTLED, status=status, label=label, changes=changes, **fields)


# What the design fixes


def test_limits_are_those_of_the_design() -> None:
    assert (policy.MAX_SERVER_ERRORS, policy.MAX_LAPSES, policy.MAX_RESENDS, policy.MAX_LOOKS) == (3, 3, 3, 5)
    assert (policy.MAX_PROCESSING, policy.REVIEW_REMINDER) == (30 * DAY, DAY)
    assert (policy.VERDICT_LIFE, policy.SPARE, policy.PARKED, policy.EARLY_LOOK) == (
        30 * SECOND,
        3 * SECOND,
        15 * SECOND,
        10 * SECOND,
    )


def test_rules_unless_told_otherwise_are_the_careful_ones() -> None:
    assert Rules() == Rules(
        idempotency="verify",
        readback="totals",
        totals_proof=False,
        settle=300 * SECOND,
        key_window=23 * HOUR,
        request_timeout=20 * SECOND,
        lease=45 * SECOND,
        max_attempts=12,
        max_age=72 * HOUR,
    )


@pytest.mark.parametrize(
    ("idempotency", "readback", "wanted"),
    [
        ("verify", "totals", True),
        ("verify", "list", False),
        ("verify", "none", False),
        ("trust", "totals", False),
        ("trust", "list", False),
    ],
)
def test_totals_are_read_before_the_first_send_only_where_they_are_the_proof(
    idempotency: Any, readback: Any, *, wanted: bool
) -> None:
    assert Rules(idempotency=idempotency, readback=readback).wants_baseline is wanted


def test_server_restored_from_a_snapshot_may_have_sent_what_waits() -> None:
    check_move("a", Stage.QUEUED, Stage.IN_DOUBT)
    check_move("a", Stage.WAITING, Stage.IN_DOUBT)


@pytest.mark.parametrize(
    ("code", "retriable"),
    [
        ("charge_already_refunded", Retriable.NO),
        ("amount_too_large", Retriable.NO),
        ("amount_too_small", Retriable.NO),
        ("resource_missing", Retriable.NO),
        ("parameter_invalid_integer", Retriable.NO),
        ("currency_mismatch", Retriable.NO),
        ("expired_or_canceled_card", Retriable.NO),
        ("lost_or_stolen_card", Retriable.NO),
        ("budget_spent", Retriable.YES),
        ("balance_insufficient", Retriable.YES),
        ("insufficient_funds", Retriable.YES),
        ("lock_timeout", Retriable.YES),
    ],
)
def test_failure_with_a_known_code_says_whether_a_retry_can_help(code: str, retriable: Retriable) -> None:
    assert after_attempt(a_refund(), replace(REFUSED, code=code), VERIFY, NOW, 0).changes["retriable"] is retriable


@pytest.mark.parametrize(
    ("attempt", "jitter", "seconds"),
    [
        (-3, 0, 5),
        (0, 0, 5),
        (1, 0, 5),
        (1, 0.5, 7.5),
        (2, 0.5, 15),
        (3, 0, 20),
        (4, 0.25, 50),
        (9, 0, 500),
        (99, 0.5, 750),
    ],
)
def test_backoff_doubles_from_its_base_to_its_cap(attempt: int, jitter: float, seconds: float) -> None:
    wait = backoff(attempt, base=10 * SECOND, cap=1000 * SECOND, jitter=jitter)
    assert wait == seconds * SECOND


def test_backoff_of_any_attempt_can_be_told() -> None:
    assert backoff(31, base=timedelta(microseconds=1), cap=10 * DAY, jitter=0) == timedelta(microseconds=1 << 29)
    assert backoff(32, base=timedelta(microseconds=1), cap=10 * DAY, jitter=0) == timedelta(microseconds=1 << 29)


@pytest.mark.parametrize(("age", "delay"), [(0, 2), (8, 2), (12, 3), (40, 10), (86_400, 21_600), (86_404, 21_600)])
def test_pending_refund_is_polled_after_a_quarter_of_its_age(age: int, delay: int) -> None:
    assert poll_delay(age * SECOND) == delay * SECOND


# What is due


@pytest.mark.parametrize(
    ("stage", "action"),
    [
        (Stage.WAITING, Action.SEND),
        (Stage.SENDING, Action.LAPSE),
        (Stage.PROCESSING, Action.POLL),
        (Stage.IN_DOUBT, Action.LOOK),
        (Stage.REVIEW, Action.NOTHING),
        (Stage.SETTLED, Action.NOTHING),
    ],
)
def test_refund_is_due_from_its_time_on_or_where_it_has_none(stage: Stage, action: Action) -> None:
    assert next_action(a_refund(stage, next_check_at=NOW), VERIFY, NOW) is action
    assert next_action(a_refund(stage, next_check_at=None), VERIFY, NOW) is action
    later = a_refund(stage, next_check_at=NOW + timedelta(milliseconds=1))
    assert next_action(later, VERIFY, NOW) is Action.NOTHING


def test_doubt_without_a_read_back_is_looked_at_once_a_person_has_spoken() -> None:
    refund = a_refund(Stage.IN_DOUBT, operator_says="absent")
    assert next_action(refund, BLIND, NOW) is Action.LOOK
    assert next_action(replace(refund, operator_says=None), BLIND, NOW) is Action.REVIEW


@pytest.mark.parametrize(
    ("fields", "replayed"),
    [
        ({}, True),
        ({"first_attempt_at": None}, False),
        ({"operator_says": "absent"}, False),
        ({"server_errors": 2}, True),
        ({"server_errors": 3}, False),
        ({"verdicts": 11}, True),
        ({"verdicts": 12}, False),
        ({"first_attempt_at": NOW - 23 * HOUR + 23 * SECOND}, False),
        ({"first_attempt_at": NOW - 23 * HOUR + 24 * SECOND}, True),
    ],
)
def test_doubt_is_replayed_only_while_nothing_speaks_against_it(fields: dict[str, Any], *, replayed: bool) -> None:
    refund = a_refund(Stage.IN_DOUBT, **fields)
    assert may_replay(refund, TRUST, NOW) is replayed
    assert not may_replay(refund, VERIFY, NOW)


def test_only_the_last_try_says_whether_another_may_follow() -> None:
    assert may_try_again([REFUSED, MAYBE], a_refund(), TRUST) is True
    assert may_try_again([MAYBE, REFUSED], a_refund(), TRUST) is False
    assert may_try_again([MAYBE, NOT_SENT], a_refund(), VERIFY) is True
    assert may_try_again([NOT_SENT, MAYBE], a_refund(), VERIFY) is False


# Attempts


SEEN = {"error_code": "not_sent", "error_message": None, "lapses": 0, "server_errors": 0}
DOUBTED = {
    "error_code": "no_reply",
    "error_message": None,
    "lapses": 0,
    "server_errors": 0,
    "verdicts": 1,
    "doubt_since": NOW,
    "quiet_at": NOW,
    "retriable": Retriable.NO,
    **ANEW,
}
AGAIN = {"error_code": "not_sent", "error_message": None, "lapses": 0, "server_errors": 0}
"""What a try that never left changes on a refund in doubt."""


@pytest.mark.parametrize(
    ("refund", "outcome", "rules", "step"),
    [
        (a_refund(attempts=3), NOT_SENT, VERIFY, pending(Stage.WAITING, "not_sent", SEEN, 30 * SECOND)),
        (
            a_refund(attempts=3),
            replace(NOT_DONE, retry_after=8 * SECOND),
            VERIFY,
            pending(Stage.WAITING, "rate_limited", SEEN | {"error_code": "rate_limited"}, 9 * SECOND),
        ),
        (
            a_refund(attempts=9),
            NOT_SENT,
            VERIFY,
            pending(Stage.WAITING, "not_sent", SEEN, 1920 * SECOND),
        ),
        (a_refund(attempts=10), NOT_SENT, VERIFY, pending(Stage.WAITING, "not_sent", SEEN, 2700 * SECOND)),
        (
            a_refund(first_attempt_at=None, verdicts=11),
            NOT_SENT,
            VERIFY,
            pending(Stage.WAITING, "not_sent", SEEN, 7.5 * SECOND),
        ),
        (
            a_refund(verdicts=4, lapses=2),
            replace(REFUSED, message="too much"),
            VERIFY,
            settled(
                Status.FAILED,
                "amount_too_large",
                DROPPED | {"error_code": "amount_too_large", "error_message": TOLD, "retriable": Retriable.NO},
            ),
        ),
        (
            a_refund(verdicts=12),
            NOT_SENT,
            VERIFY,
            settled(
                Status.FAILED,
                "budget_spent",
                DROPPED | {"error_code": "budget_spent", "error_message": TOLD, "retriable": Retriable.YES},
            ),
        ),
        (
            a_refund(verdicts=12),
            BAD_KEY,
            VERIFY,
            pending(Stage.WAITING, "credentials_refused", SEEN | {"error_code": "credentials_refused"}, 7.5 * SECOND),
        ),
        (a_refund(), MAYBE, VERIFY, pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 10 * SECOND)),
        (
            a_refund(verdicts=3, doubt_since=NOW - HOUR),
            MAYBE,
            VERIFY,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED | {"verdicts": 4, "doubt_since": NOW - HOUR}, 10 * SECOND),
        ),
        (
            a_refund(),
            MAYBE,
            replace(VERIFY, settle=5 * SECOND),
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 5 * SECOND),
        ),
        (
            a_refund(),
            replace(MAYBE, retry_after=HOUR),
            VERIFY,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, HOUR),
        ),
        (
            a_refund(),
            replace(MAYBE, retry_after=SECOND),
            VERIFY,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 10 * SECOND),
        ),
        (a_refund(attempts=3), MAYBE, TRUST, pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 30 * SECOND)),
        # Its replay would come after the window has closed.
        (
            a_refund(attempts=12, first_attempt_at=NOW - 23 * HOUR + 30 * MINUTE),
            MAYBE,
            TRUST,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 10 * SECOND),
        ),
        (
            a_refund(attempts=3),
            replace(MAYBE, retry_after=HOUR),
            TRUST,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, HOUR),
        ),
        (
            a_refund(attempts=3),
            replace(MAYBE, retry_after=SECOND),
            TRUST,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 30 * SECOND),
        ),
        (
            a_refund(server_errors=1),
            fold([SERVER_ERROR]),
            TRUST,
            pending(Stage.IN_DOUBT, "http_500", DOUBTED | {"error_code": "http_500", "server_errors": 2}, 7.5 * SECOND),
        ),
        (
            a_refund(doubt_since=NOW - HOUR),
            NOT_SENT,
            VERIFY,
            pending(Stage.IN_DOUBT, "not_sent", AGAIN, 10 * SECOND),
        ),
        (
            a_refund(doubt_since=NOW - HOUR),
            REFUSED,
            TRUST,
            pending(
                Stage.IN_DOUBT,
                "amount_too_large",
                AGAIN | {"error_code": "amount_too_large", "verdicts": 1, "server_errors": 3},
                10 * SECOND,
            ),
        ),
        (a_refund(), MAYBE, BLIND, pending(Stage.REVIEW, "no_reply", DOUBTED, DAY, alarm=TOLD)),
        (
            a_refund(operator_says="absent"),
            MAYBE,
            BLIND,
            pending(Stage.IN_DOUBT, "no_reply", DOUBTED, 10 * SECOND),
        ),
        (
            a_refund(verdicts=1),
            MISMATCH,
            TRUST,
            pending(
                Stage.REVIEW,
                "idempotency_error",
                AGAIN | {"error_code": "idempotency_error", "verdicts": 2},
                DAY,
                alarm=TOLD,
            ),
        ),
    ],
)
def test_attempt_leads_to_this_step_and_no_other(refund: Refund, outcome: Outcome, rules: Rules, step: Step) -> None:
    assert plain(after_attempt(refund, outcome, rules, NOW, 0.5)) == step


def test_success_without_a_refund_in_it_proves_nothing() -> None:
    bare = Outcome(seen=Seen.DONE, code="done")
    assert after_attempt(a_refund(doubt_since=NOW), bare, VERIFY, NOW, 0).to is Stage.IN_DOUBT
    shown = replace(MAYBE, found=found())
    assert after_attempt(a_refund(), shown, VERIFY, NOW, 0).to is Stage.IN_DOUBT


def test_refund_that_a_guard_refuses_is_failed_in_its_words_with_secrets_taken_out() -> None:
    step = refused_unsent(a_refund(Stage.QUEUED), "currency_mismatch", "sk_live_0123456789abcdef is wrong")
    assert plain(step) == settled(
        Status.FAILED,
        "currency_mismatch",
        DROPPED | {"error_code": "currency_mismatch", "error_message": TOLD, "retriable": Retriable.NO},
    )
    assert "sk_live_0123456789abcdef" not in step.changes["error_message"]
    with pytest.raises(IllegalMove) as caught:
        refused_unsent(a_refund(Stage.IN_DOUBT), "currency_mismatch", "no")
    assert (caught.value.source, caught.value.target) == (Stage.IN_DOUBT, Stage.SETTLED)


def test_review_is_brought_to_mind_again_a_day_later() -> None:
    assert to_review({"a": 1}, "why", "a person must") == pending(
        Stage.REVIEW, "why", {"a": 1}, DAY, alarm="a person must"
    )


LAPSED = {
    "lapses": 1,
    "doubt_since": NOW,
    "quiet_at": NOW - MINUTE,
    "error_code": "lease_lapsed",
    "error_message": TOLD,
    "retriable": Retriable.NO,
    **ANEW,
}


@pytest.mark.parametrize(
    ("refund", "rules", "step"),
    [
        (
            a_refund(next_check_at=NOW - MINUTE),
            VERIFY,
            pending(Stage.IN_DOUBT, "lease_lapsed", LAPSED, timedelta(0)),
        ),
        (
            a_refund(next_check_at=NOW - MINUTE, lapses=1, doubt_since=NOW - HOUR),
            TRUST,
            pending(Stage.IN_DOUBT, "lease_lapsed", LAPSED | {"lapses": 2, "doubt_since": NOW - HOUR}, timedelta(0)),
        ),
        (
            a_refund(next_check_at=None),
            VERIFY,
            pending(Stage.IN_DOUBT, "lease_lapsed", LAPSED | {"quiet_at": NOW}, timedelta(0)),
        ),
        (
            a_refund(next_check_at=NOW - MINUTE, lapses=2),
            VERIFY,
            pending(Stage.REVIEW, "lease_lapsed", LAPSED | {"lapses": 3}, DAY, alarm=TOLD),
        ),
        (
            a_refund(next_check_at=NOW - MINUTE),
            BLIND,
            pending(Stage.REVIEW, "lease_lapsed", LAPSED, DAY, alarm=TOLD),
        ),
    ],
)
def test_lapse_leads_to_this_step_and_no_other(refund: Refund, rules: Rules, step: Step) -> None:
    assert plain(after_lapse(refund, rules, NOW, 0.5)) == step


# Proofs of done

DONE = {
    "provider_refund_id": "re_1",
    "provider_status": "succeeded",
    "evidence": "reply",
    "error_code": None,
    "error_message": None,
    "retriable": None,
    "doubt_since": None,
    "operator_says": None,
    **ANEW,
}
FAILED = {"failure_reason": "unknown", "error_code": "unknown", "error_message": TOLD, "retriable": Retriable.UNKNOWN}


@pytest.mark.parametrize(
    ("refund", "seen", "step"),
    [
        (
            a_refund(),
            found(),
            settled(Status.SUCCEEDED, "succeeded", DONE | {"amount": 500} | DROPPED, proof=True),
        ),
        (
            a_refund(currency=None),
            found(amount=None),
            settled(Status.SUCCEEDED, "succeeded", DONE | {"currency": "usd"} | DROPPED, proof=True),
        ),
        (
            a_refund(currency=None),
            found(amount=0, currency=None),
            settled(Status.SUCCEEDED, "succeeded", DONE | {"amount": 0} | DROPPED, proof=True),
        ),
        (
            a_refund(),
            found(status="failed"),
            settled(
                Status.FAILED,
                "failed",
                DONE | {"amount": 500, "provider_status": "failed"} | FAILED | DROPPED,
                proof=True,
            ),
        ),
        (
            a_refund(),
            found(status="failed", failure_reason="insufficient_funds"),
            settled(
                Status.FAILED,
                "failed",
                DONE
                | {"amount": 500, "provider_status": "failed"}
                | FAILED
                | {
                    "failure_reason": "insufficient_funds",
                    "error_code": "insufficient_funds",
                    "retriable": Retriable.YES,
                }
                | DROPPED,
                proof=True,
            ),
        ),
        (
            a_refund(),
            found(status="canceled"),
            settled(
                Status.CANCELED,
                "canceled",
                DONE
                | {"amount": 500, "provider_status": "canceled"}
                | FAILED
                | {"failure_reason": "canceled", "error_code": "canceled"}
                | DROPPED,
                proof=True,
            ),
        ),
        (
            a_refund(lapses=2, server_errors=1, currency=None),
            found(status=None),
            pending(
                Stage.PROCESSING,
                "processing",
                DONE
                | {
                    "provider_status": "pending",
                    "currency": "usd",
                    "processing_since": NOW,
                    "lapses": 0,
                    "server_errors": 0,
                },
                2 * SECOND,
                proof=True,
            ),
        ),
        (
            a_refund(processing_since=NOW - HOUR),
            found(status="pending"),
            pending(
                Stage.PROCESSING,
                "processing",
                DONE
                | {
                    "provider_status": "pending",
                    "processing_since": NOW - HOUR,
                    "lapses": 0,
                    "server_errors": 0,
                },
                2 * SECOND,
                proof=True,
            ),
        ),
    ],
)
def test_proof_of_done_leads_to_this_step_and_no_other(refund: Refund, seen: Any, step: Step) -> None:
    assert plain(done(refund, seen, "reply", NOW)) == step


def test_proof_keeps_where_it_comes_from() -> None:
    assert done(a_refund(), found(), "list", NOW).changes["evidence"] == "list"
    assert after_attempt(a_refund(), done_as(), VERIFY, NOW, 0).changes["evidence"] == "reply"


@pytest.mark.parametrize(("reason", "kept"), [("lost_or_stolen_card", "lost_or_stolen_card"), (None, "unknown")])
def test_reversal_leads_to_this_step_and_no_other(reason: str | None, kept: str) -> None:
    step = reversed_by_provider(a_refund(Stage.SETTLED), found(status="failed", failure_reason=reason))
    changes = {"provider_status": "failed", **FAILED, "failure_reason": kept, "error_code": kept}
    assert plain(step) == settled(Status.FAILED, "reversed", changes, alarm=TOLD)


def test_refund_of_no_status_reverses_nothing() -> None:
    assert reversed_by_provider(a_refund(Stage.SETTLED), found(status=None)) is None


# Looks


SETTLE = VERIFY.settle
FOUND = Look(sight=Sight.FOUND_IN_TOTALS, reason="so")
ABSENT = Look(sight=Sight.ABSENT, reason="so")
UNSURE = Look(sight=Sight.INCONCLUSIVE, reason="so")
UNREAD = Look(sight=Sight.UNREADABLE, reason="so")
LONG_QUIET = {"quiet_at": NOW - HOUR, "doubt_since": NOW - HOUR}


def quiet(label: str, delay: timedelta, changes: dict[str, Any] | None = None) -> Step:
    return pending(Stage.IN_DOUBT, label, changes or {}, delay, quiet=True)


@pytest.mark.parametrize(
    ("fields", "look", "rules", "step"),
    [
        # Not readable
        ({"doubt_since": NOW - 8 * MINUTE}, UNREAD, VERIFY, quiet("unreadable", 135 * SECOND)),
        ({"doubt_since": NOW}, UNREAD, VERIFY, quiet("unreadable", 5.625 * SECOND)),
        ({"doubt_since": None}, UNREAD, VERIFY, quiet("unreadable", 5.625 * SECOND)),
        ({"doubt_since": NOW - 9 * HOUR}, UNREAD, VERIFY, quiet("unreadable", 675 * SECOND)),
        (
            {"doubt_since": NOW - 8 * MINUTE},
            replace(UNREAD, retry_after=HOUR),
            VERIFY,
            quiet("unreadable", HOUR),
        ),
        (
            {"doubt_since": NOW - 8 * MINUTE},
            replace(UNREAD, retry_after=SECOND),
            VERIFY,
            quiet("unreadable", 135 * SECOND),
        ),
        ({"doubt_since": NOW, "first_attempt_at": None}, UNREAD, VERIFY, quiet("unreadable", 5.625 * SECOND)),
        (
            {"first_attempt_at": NOW - 72 * HOUR},
            UNREAD,
            VERIFY,
            pending(Stage.REVIEW, "unreadable", {}, DAY, alarm=TOLD),
        ),
        # Contradictory
        (
            {},
            Look(sight=Sight.CONFLICT, reason="two"),
            VERIFY,
            pending(Stage.REVIEW, "conflict", {"error_code": "conflict", "error_message": TOLD}, DAY, alarm=TOLD),
        ),
        # In the totals
        (
            {"found_at": None, "looks": 3},
            FOUND,
            VERIFY,
            pending(Stage.IN_DOUBT, "found_in_totals", ANEW | {"found_at": NOW}, SETTLE),
        ),
        ({"found_at": NOW - SETTLE + SECOND}, FOUND, VERIFY, quiet("found_in_totals", SECOND)),
        (
            {"found_at": NOW - SETTLE, "baseline": Baseline(refunded=0, currency="eur", remaining=9)},
            FOUND,
            VERIFY,
            settled(
                Status.SUCCEEDED,
                "found_in_totals",
                DROPPED
                | {
                    "evidence": "totals",
                    "provider_status": None,
                    "error_code": None,
                    "error_message": None,
                    "retriable": None,
                },
            ),
        ),
        (
            {
                "found_at": NOW - SETTLE,
                "baseline": Baseline(refunded=0, currency="eur", remaining=9),
                "all_remaining": True,
                "amount": None,
                "currency": None,
            },
            FOUND,
            VERIFY,
            settled(
                Status.SUCCEEDED,
                "found_in_totals",
                DROPPED
                | {
                    "evidence": "totals",
                    "provider_status": None,
                    "error_code": None,
                    "error_message": None,
                    "retriable": None,
                    "amount": 9,
                    "currency": "eur",
                },
            ),
        ),
        (
            {
                "found_at": NOW - SETTLE,
                "baseline": Baseline(refunded=0, currency="eur", remaining=None),
                "all_remaining": True,
            },
            FOUND,
            VERIFY,
            settled(
                Status.SUCCEEDED,
                "found_in_totals",
                DROPPED
                | {
                    "evidence": "totals",
                    "provider_status": None,
                    "error_code": None,
                    "error_message": None,
                    "retriable": None,
                },
            ),
        ),
        (
            {"found_at": NOW - SETTLE, "baseline": None, "all_remaining": True, "currency": None},
            FOUND,
            VERIFY,
            settled(
                Status.SUCCEEDED,
                "found_in_totals",
                DROPPED
                | {
                    "evidence": "totals",
                    "provider_status": None,
                    "error_code": None,
                    "error_message": None,
                    "retriable": None,
                },
            ),
        ),
        # Absent
        ({"quiet_at": None}, ABSENT, VERIFY, quiet("absent_early", SETTLE)),
        ({"quiet_at": NOW - SETTLE + SECOND}, ABSENT, VERIFY, quiet("absent_early", SECOND)),
        (
            {"quiet_at": NOW - SETTLE, "looks": 2, "found_at": NOW},
            ABSENT,
            VERIFY,
            pending(Stage.IN_DOUBT, "absent", ANEW | {"absent_at": NOW}, SETTLE),
        ),
        (LONG_QUIET | {"absent_at": NOW - SETTLE + SECOND}, ABSENT, VERIFY, quiet("absent", SECOND)),
        (
            LONG_QUIET | {"absent_at": NOW - SETTLE},
            ABSENT,
            VERIFY,
            pending(
                Stage.IN_DOUBT,
                "absence_proven",
                ANEW | {"absent_at": NOW - SETTLE, "proven_absent_at": NOW},
                30 * SECOND,
            ),
        ),
        (
            LONG_QUIET | {"absent_at": NOW - SETTLE, "resends": 3},
            ABSENT,
            VERIFY,
            pending(Stage.REVIEW, "resends_spent", {}, DAY, alarm=TOLD),
        ),
        # A person says that it is absent
        (
            LONG_QUIET | {"operator_says": "absent"},
            UNSURE,
            VERIFY,
            pending(
                Stage.IN_DOUBT,
                "operator_says_absent",
                ANEW | {"absent_at": NOW, "proven_absent_at": NOW},
                30 * SECOND,
            ),
        ),
        (
            LONG_QUIET | {"operator_says": "succeeded"},
            ABSENT,
            VERIFY,
            pending(Stage.IN_DOUBT, "absent", ANEW | {"absent_at": NOW}, SETTLE),
        ),
        # Not to be told
        ({"quiet_at": None}, UNSURE, VERIFY, quiet("too_early", SETTLE)),
        ({"quiet_at": NOW - SETTLE + SECOND}, UNSURE, VERIFY, quiet("too_early", SECOND)),
        (
            {"quiet_at": NOW - SETTLE},
            UNSURE,
            VERIFY,
            quiet(
                "inconclusive",
                225 * SECOND,
                {"looks": 1, "absent_at": None, "found_at": None, "proven_absent_at": None},
            ),
        ),
        (
            LONG_QUIET | {"looks": 2, "quiet_at": NOW - 9 * HOUR},
            UNSURE,
            replace(VERIFY, settle=3 * HOUR),
            quiet(
                "inconclusive",
                4.5 * HOUR,
                {"looks": 3, "absent_at": None, "found_at": None, "proven_absent_at": None},
            ),
        ),
        (
            LONG_QUIET | {"looks": 4},
            UNSURE,
            VERIFY,
            pending(Stage.REVIEW, "inconclusive", {"looks": 5}, DAY, alarm=TOLD),
        ),
        # Found, with nothing to show for it
        (
            LONG_QUIET | {"looks": 4},
            Look(sight=Sight.FOUND, reason="so"),
            VERIFY,
            pending(Stage.REVIEW, "inconclusive", {"looks": 5}, DAY, alarm=TOLD),
        ),
    ],
)
def test_look_leads_to_this_step_and_no_other(fields: dict[str, Any], look: Look, rules: Rules, step: Step) -> None:
    assert plain(after_look(a_refund(Stage.IN_DOUBT, **fields), look, rules, NOW, 0.5)) == step


def test_refund_found_in_the_list_is_done_by_that_evidence() -> None:
    look = Look(sight=Sight.FOUND, reason="so", found=found())
    refund = a_refund(Stage.IN_DOUBT)
    assert after_look(refund, look, VERIFY, NOW, 0) == done(refund, found(), "list", NOW)


# Polls


def lost(code: str, changes: dict[str, Any] | None = None) -> Step:
    """The step of a poll to a person."""
    noted = {"error_code": code, "error_message": TOLD, "doubt_since": NOW}
    return pending(Stage.REVIEW, code, noted | (changes or {}), DAY, alarm=TOLD)


def polled(delay: timedelta, changes: dict[str, Any] | None = None) -> Step:
    return pending(Stage.PROCESSING, "pending", changes or {}, delay, quiet=True)


STILL = a_reply(200, refund_payload(status="pending"))


@pytest.mark.parametrize(
    ("fields", "answer", "step"),
    [
        ({}, STILL, polled(16.875 * SECOND)),
        ({"processing_since": None}, STILL, polled(2.25 * SECOND)),
        ({}, replace(an_error(429), retry_after=HOUR), polled(HOUR)),
        ({}, replace(an_error(429), retry_after=SECOND), polled(16.875 * SECOND)),
        ({"processing_since": NOW - 30 * DAY + SECOND}, STILL, polled(24300 * SECOND)),
        ({"processing_since": NOW - 30 * DAY}, STILL, lost("pending_too_long")),
        (
            {"operator_says": "succeeded"},
            STILL,
            polled(16.875 * SECOND, {"operator_says": None, "provider_refund_id": "re_1"}),
        ),
        ({"operator_says": "succeeded"}, a_reply(503), polled(16.875 * SECOND)),
        ({}, an_error(404), lost("refund_missing")),
        ({"doubt_since": NOW - HOUR}, an_error(404), lost("refund_missing", {"doubt_since": NOW - HOUR})),
        (
            {"operator_says": "succeeded"},
            an_error(404),
            lost("refund_missing", {"provider_refund_id": None, "operator_says": None, "processing_since": None}),
        ),
        ({}, an_error(400), polled(16.875 * SECOND)),
        ({}, a_reply(200, refund_payload(id="re_2")), lost("contradictory_reply")),
        ({}, a_reply(200, refund_payload(id="re_2", status="pending")), lost("contradictory_reply")),
        ({}, a_reply(200, refund_payload(amount=1)), lost("contradictory_reply")),
        ({}, a_reply(200, {"id": "re_1", "object": "charge"}), lost("contradictory_reply")),
    ],
)
def test_poll_leads_to_this_step_and_no_other(fields: dict[str, Any], answer: Any, step: Step) -> None:
    assert plain(after_poll(a_refund(Stage.PROCESSING, **fields), answer, NOW, 0.5)) == step


def test_person_is_told_what_contradicts_the_record() -> None:
    step = after_poll(a_refund(Stage.PROCESSING), a_reply(200, refund_payload(amount=1)), NOW, 0)
    assert step.alarm is not None
    assert "amount" in step.alarm


@pytest.mark.parametrize(
    ("fields", "evidence"),
    [
        ({}, "reply"),
        ({"evidence": "list"}, "list"),
        ({"evidence": None}, "reply"),
        ({"evidence": "list", "operator_says": "succeeded"}, "operator"),
    ],
)
def test_poll_that_says_final_settles_by_the_evidence_that_led_to_it(fields: dict[str, Any], evidence: str) -> None:
    refund = a_refund(Stage.PROCESSING, **fields)
    assert after_poll(refund, a_reply(), NOW, 0) == done(refund, found(created=None), evidence, NOW)


# What a person or the caller decides


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_cancel_leads_to_this_step_and_no_other(stage: Stage) -> None:
    assert cancel(a_refund(stage)) == settled(Status.CANCELED, "canceled", DROPPED)


def test_refusal_to_cancel_says_whether_it_is_over_or_on_its_way() -> None:
    with pytest.raises(NotCancelable, match="already succeeded"):
        cancel(a_refund(Stage.SETTLED))
    with pytest.raises(NotCancelable, match="may have reached the provider"):
        cancel(a_refund(Stage.WAITING, doubt_since=NOW))
    with pytest.raises(NotCancelable, match="may have reached the provider"):
        cancel(a_refund(Stage.SENDING))


def test_person_who_names_the_providers_refund_leads_to_this_step_and_no_other() -> None:
    changes = {"provider_refund_id": "re_7", "processing_since": NOW, "operator_says": "succeeded"}
    assert resolve_succeeded(a_refund(Stage.REVIEW), "re_7", NOW) == pending(
        Stage.PROCESSING, "operator_says_succeeded", changes, timedelta(0)
    )


def test_id_that_could_not_be_asked_for_is_refused_with_all_that_is_known_of_it() -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_succeeded(a_refund(Stage.REVIEW), "re 7", NOW)
    (error,) = caught.value.errors
    assert (error.field, error.code, error.value) == ("provider_refund_id", "provider_refund_id", "'re 7'")
    assert error.rule


def test_person_who_says_failed_leads_to_this_step_and_no_other() -> None:
    changes = {
        **DROPPED,
        "error_code": "declined",
        "error_message": TOLD,
        "retriable": Retriable.NO,
        "evidence": "operator",
    }
    assert plain(resolve_failed(a_refund(Stage.REVIEW), "declined")) == settled(
        Status.FAILED, "operator_says_failed", changes
    )


def test_person_who_says_absent_leads_to_these_steps_and_no_others() -> None:
    never = a_refund(Stage.REVIEW, doubt_since=None)
    assert resolve_resend(never) == pending(
        Stage.WAITING,
        "operator_says_absent",
        {"lapses": 0, "provider_refund_id": None, "operator_says": None},
        timedelta(0),
    )
    doubted = a_refund(Stage.REVIEW, doubt_since=NOW)
    assert resolve_resend(doubted) == pending(
        Stage.IN_DOUBT,
        "operator_says_absent",
        {"operator_says": "absent", "lapses": 0, "provider_refund_id": None, **ANEW},
        timedelta(0),
    )


@pytest.mark.parametrize(("all_remaining", "amount"), [(True, {"amount": None}), (False, {})])
def test_retry_leads_to_this_step_and_no_other(*, all_remaining: bool, amount: dict[str, Any]) -> None:
    failed = a_refund(
        Stage.SETTLED, status=Status.FAILED, retriable=Retriable.UNKNOWN, generation=2, all_remaining=all_remaining
    )
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
    assert retry_failed(failed) == Step(
        to=Stage.QUEUED,
        status=Status.PENDING,
        label="retried",
        changes=dict.fromkeys(cleared) | {"generation": 3} | amount,
    )


SINCE = NOW - HOUR
RECOVERED = {
    "doubt_since": SINCE,
    "operator_says": None,
    "retriable": Retriable.NO,
    "first_attempt_at": SINCE,
    "quiet_at": NOW,
    "baseline": None,
    "lapses": 0,
    "server_errors": 3,
    **ANEW,
}


@pytest.mark.parametrize(
    ("refund", "step"),
    [
        (a_refund(Stage.QUEUED), pending(Stage.IN_DOUBT, "recovered", RECOVERED, timedelta(0))),
        (a_refund(Stage.SENDING), pending(Stage.IN_DOUBT, "recovered", RECOVERED, timedelta(0))),
        (
            a_refund(Stage.IN_DOUBT, doubt_since=SINCE - HOUR, first_attempt_at=SINCE - HOUR),
            pending(
                Stage.IN_DOUBT,
                "recovered",
                RECOVERED | {"doubt_since": SINCE - HOUR, "first_attempt_at": SINCE - HOUR},
                timedelta(0),
            ),
        ),
        (
            a_refund(Stage.REVIEW),
            pending(
                Stage.REVIEW,
                "recovered",
                {"doubt_since": SINCE, "operator_says": None, "retriable": Retriable.NO},
                DAY,
                quiet=True,
            ),
        ),
        (a_refund(Stage.PROCESSING), None),
        (a_refund(Stage.SETTLED), None),
        (a_refund(Stage.SETTLED, status=Status.FAILED, retriable=Retriable.NO), None),
        (
            a_refund(Stage.SETTLED, status=Status.FAILED, retriable=Retriable.YES),
            settled(Status.FAILED, "recovered", {"retriable": Retriable.NO}, quiet=True),
        ),
    ],
)
def test_recovery_leads_to_this_step_and_no_other(refund: Refund, step: Step | None) -> None:
    assert recovered(refund, SINCE, NOW) == step
