"""The limits that the design fixes, and what is due."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import (
    BLIND,
    HOUR,
    MAYBE,
    NOT_SENT,
    NOW,
    REFUSED,
    SECOND,
    TRUST,
    VERIFY,
    a_refund,
)
from tests.unit.rules.stepping import DAY
from worker.model.refund import Retriable, Stage
from worker.model.steps import Action
from worker.rules import attempts, payloads, proofs, readback, rechecks
from worker.rules.attempts import (
    Rules,
    after_attempt,
    backoff,
    may_replay,
    may_try_again,
    next_action,
)
from worker.rules.proofs import poll_delay
from worker.rules.transitions import check_move

# What the design fixes


def test_limits_are_those_of_the_design() -> None:
    assert (
        attempts.MAX_SERVER_ERRORS,
        attempts.MAX_LAPSES,
        attempts.MAX_RESENDS,
        readback.MAX_READBACKS,
    ) == (
        3,
        3,
        3,
        5,
    )
    assert (attempts.MAX_PROCESSING, proofs.REVIEW_REMINDER) == (30 * DAY, DAY)
    assert (attempts.VERDICT_LIFE, attempts.SPARE, attempts.PARKED, attempts.EARLY_READBACK) == (
        30 * SECOND,
        3 * SECOND,
        15 * SECOND,
        10 * SECOND,
    )
    assert rechecks.WAITS == (60 * SECOND, 600 * SECOND, HOUR)
    assert (rechecks.MAX_UNREAD, payloads._MOST_HIDDEN) == (3, 60)


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
def test_failure_with_a_known_code_says_whether_a_retry_can_help(
    code: str, retriable: Retriable
) -> None:
    assert (
        after_attempt(a_refund(), replace(REFUSED, code=code), VERIFY, NOW, 0).changes["retriable"]
        is retriable
    )


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
def test_backoff_doubles_from_its_base_to_its_cap(
    attempt: int, jitter: float, seconds: float
) -> None:
    wait = backoff(attempt, base=10 * SECOND, cap=1000 * SECOND, jitter=jitter)
    assert wait == seconds * SECOND


def test_backoff_of_any_attempt_can_be_told() -> None:
    assert backoff(31, base=timedelta(microseconds=1), cap=10 * DAY, jitter=0) == timedelta(
        microseconds=1 << 29
    )
    assert backoff(32, base=timedelta(microseconds=1), cap=10 * DAY, jitter=0) == timedelta(
        microseconds=1 << 29
    )


@pytest.mark.parametrize(
    ("age", "delay"), [(0, 2), (8, 2), (12, 3), (40, 10), (86_400, 21_600), (86_404, 21_600)]
)
def test_pending_refund_is_polled_after_a_quarter_of_its_age(age: int, delay: int) -> None:
    assert poll_delay(age * SECOND) == delay * SECOND


# What is due


@pytest.mark.parametrize(
    ("stage", "action"),
    [
        (Stage.WAITING, Action.SEND),
        (Stage.SENDING, Action.LAPSE),
        (Stage.PROCESSING, Action.POLL),
        (Stage.IN_DOUBT, Action.READ_BACK),
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
    assert next_action(refund, BLIND, NOW) is Action.READ_BACK
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
def test_doubt_is_replayed_only_while_nothing_speaks_against_it(
    fields: dict[str, Any], *, replayed: bool
) -> None:
    refund = a_refund(Stage.IN_DOUBT, **fields)
    assert may_replay(refund, TRUST, NOW) is replayed
    assert not may_replay(refund, VERIFY, NOW)


def test_only_the_last_try_says_whether_another_may_follow() -> None:
    assert may_try_again([REFUSED, MAYBE], a_refund(), TRUST) is True
    assert may_try_again([MAYBE, REFUSED], a_refund(), TRUST) is False
    assert may_try_again([MAYBE, NOT_SENT], a_refund(), VERIFY) is True
    assert may_try_again([NOT_SENT, MAYBE], a_refund(), VERIFY) is False
    assert may_try_again([replace(MAYBE, odd="re_1")], a_refund(), TRUST) is False
