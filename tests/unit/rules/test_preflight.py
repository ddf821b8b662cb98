"""Each decision before a send in full.

What a payment must confirm, and what becomes of a refund if it does not.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings

from tests.factories import (
    HOUR,
    MINUTE,
    NOT_DONE,
    NOT_SENT,
    NOW,
    SECOND,
    SERVER_ERROR,
    VERIFY,
    a_refund,
)
from tests.strategies import jitters, outcomes, refunds, rules
from tests.unit.rules.stepping import (
    DAY,
    DROPPED,
    NO_WORD,
    TOLD,
    assert_is_a_move,
    pending,
    plain,
    settled,
)
from worker.model.answers import Outcome, PaymentView, Readback, ReadbackVerdict, TryVerdict
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules.attempts import MAX_SERVER_ERRORS, Rules
from worker.rules.preflight import after_first_readback, after_no_view, after_view, wants_currency

law = settings(deadline=None, max_examples=100)

USD = PaymentView(currency="usd")
EUR = PaymentView(currency="eur")
NOTHING = PaymentView()
UNCLEAR = PaymentView(currency="", problem="it cannot be read")
FORBIDDEN = Outcome(verdict=TryVerdict.REFUSED, code="forbidden", http_status=403)
NO_OBJECT = Outcome(
    verdict=TryVerdict.MAYBE, code="unreadable_success", http_status=200, doubt=True
)
SILENCE = Outcome(verdict=TryVerdict.MAYBE, code="no_reply", doubt=True)
LATER = Outcome(verdict=TryVerdict.NOT_DONE, code="rate_limited", http_status=429, retry_after=HOUR)
SOON = Outcome(
    verdict=TryVerdict.NOT_DONE, code="rate_limited", http_status=429, retry_after=SECOND
)
UNCONFIRMED = {
    "unconfirmed_since": NOW,
    "error_code": "currency_unconfirmed",
    "error_message": TOLD,
}


def asking(stage: Stage = Stage.QUEUED, **fields: Any) -> Refund:
    """A refund that states its currency."""
    return a_refund(stage, **({"asked_currency": "usd"} | fields))


def unconfirmed(
    delay: timedelta, ago: timedelta = timedelta(0), stage: Stage = Stage.QUEUED
) -> Step:
    changes = UNCONFIRMED | {"unconfirmed_since": NOW - ago}
    return pending(stage, "currency_unconfirmed", changes, delay, quiet=True)


def unreadable(delay: timedelta, looks: int | None, stage: Stage = Stage.QUEUED) -> Step:
    changes = {} if looks is None else {"looks": looks}
    return pending(stage, "payment_unreadable", changes, delay, quiet=True)


def to_a_person(code: str, changes: dict[str, Any]) -> Step:
    return pending(Stage.REVIEW, code, {**changes, **NO_WORD}, DAY, alarm=TOLD)


AFTER_AN_HOUR = to_a_person("currency_unconfirmed", UNCONFIRMED | {"unconfirmed_since": NOW - HOUR})
MISMATCH = {"error_code": "currency_mismatch", "error_message": TOLD}


@pytest.mark.parametrize(
    ("refund", "view", "step"),
    [
        (a_refund(Stage.QUEUED), NOTHING, None),
        (a_refund(Stage.QUEUED), EUR, None),
        (asking(currency_checked=True), NOTHING, None),
        (asking(), USD, None),
        (asking(), NOTHING, unconfirmed(5.625 * SECOND)),
        (asking(), UNCLEAR, unconfirmed(5.625 * SECOND)),
        (asking(Stage.WAITING), NOTHING, unconfirmed(5.625 * SECOND, stage=Stage.WAITING)),
        (asking(Stage.IN_DOUBT), NOTHING, unconfirmed(5.625 * SECOND, stage=Stage.IN_DOUBT)),
        (
            asking(unconfirmed_since=NOW - 12 * SECOND),
            NOTHING,
            unconfirmed(6.75 * SECOND, 12 * SECOND),
        ),
        (
            asking(unconfirmed_since=NOW - 59 * MINUTE),
            NOTHING,
            unconfirmed(675 * SECOND, 59 * MINUTE),
        ),
        (asking(unconfirmed_since=NOW - HOUR), NOTHING, AFTER_AN_HOUR),
        (asking(unconfirmed_since=NOW - HOUR), USD, None),
        (
            asking(),
            EUR,
            settled(
                Status.FAILED,
                "currency_mismatch",
                DROPPED | MISMATCH | {"retriable": Retriable.NO, "evidence": "lookup"},
                source="lookup",
            ),
        ),
        (asking(Stage.IN_DOUBT), EUR, to_a_person("currency_mismatch", MISMATCH)),
    ],
)
def test_view_of_a_payment_leads_to_this_step_and_no_other(
    refund: Refund, view: PaymentView, step: Step | None
) -> None:
    assert plain(after_view(refund, view, NOW, 0.5)) == step


@pytest.mark.parametrize(
    ("refund", "outcome", "rules", "step"),
    [
        (a_refund(Stage.QUEUED), FORBIDDEN, VERIFY, None),
        (asking(currency_checked=True), FORBIDDEN, VERIFY, None),
        (a_refund(Stage.QUEUED), NO_OBJECT, VERIFY, unreadable(3.75 * SECOND, 1)),
        (a_refund(Stage.QUEUED), SILENCE, VERIFY, unreadable(3.75 * SECOND, 1)),
        (a_refund(Stage.QUEUED, looks=1), SILENCE, VERIFY, unreadable(7.5 * SECOND, 2)),
        (a_refund(Stage.QUEUED, looks=20), SILENCE, VERIFY, unreadable(450 * SECOND, 21)),
        (a_refund(Stage.QUEUED), LATER, VERIFY, unreadable(HOUR, 1)),
        (a_refund(Stage.QUEUED), SOON, VERIFY, unreadable(3.75 * SECOND, 1)),
        (asking(), FORBIDDEN, VERIFY, unconfirmed(5.625 * SECOND)),
        (asking(), NO_OBJECT, VERIFY, unconfirmed(5.625 * SECOND)),
        (asking(unconfirmed_since=NOW - HOUR), FORBIDDEN, VERIFY, AFTER_AN_HOUR),
        (asking(unconfirmed_since=NOW - HOUR), SILENCE, VERIFY, unreadable(3.75 * SECOND, 1)),
        (asking(unconfirmed_since=NOW - HOUR), SERVER_ERROR, VERIFY, unreadable(3.75 * SECOND, 1)),
        (asking(unconfirmed_since=NOW - HOUR), NOT_SENT, VERIFY, unreadable(3.75 * SECOND, 1)),
        (asking(unconfirmed_since=NOW - HOUR), NOT_DONE, VERIFY, unreadable(3.75 * SECOND, 1)),
        (asking(Stage.IN_DOUBT), SILENCE, VERIFY, unreadable(3.75 * SECOND, None, Stage.IN_DOUBT)),
        (
            asking(Stage.IN_DOUBT, first_attempt_at=None),
            SILENCE,
            VERIFY,
            unreadable(3.75 * SECOND, None, Stage.IN_DOUBT),
        ),
        (
            asking(Stage.IN_DOUBT, first_attempt_at=NOW - 72 * HOUR),
            SILENCE,
            VERIFY,
            to_a_person("payment_unreadable", {}),
        ),
        (
            asking(Stage.WAITING, first_attempt_at=NOW - 72 * HOUR),
            SILENCE,
            VERIFY,
            unreadable(3.75 * SECOND, 1, Stage.WAITING),
        ),
    ],
)
def test_payment_that_is_not_shown_leads_to_this_step_and_no_other(
    refund: Refund, outcome: Outcome, rules: Rules, step: Step | None
) -> None:
    assert plain(after_no_view(refund, outcome, rules, NOW, 0.5)) == step


def first(verdict: ReadbackVerdict, **fields: Any) -> Readback:
    return Readback(verdict=verdict, reason="so", **fields)


DOUBT = pending(
    Stage.IN_DOUBT,
    "first_look",
    {
        "doubt_since": NOW,
        "first_attempt_at": NOW,
        "quiet_at": NOW,
        "retriable": Retriable.NO,
        "server_errors": MAX_SERVER_ERRORS,
        "looks": 0,
        "absent_at": None,
        "proven_absent_at": None,
        "found_at": None,
        **NO_WORD,
    },
    timedelta(0),
)


@pytest.mark.parametrize(
    ("look", "step"),
    [
        (first(ReadbackVerdict.ABSENT), None),
        (first(ReadbackVerdict.FOUND), DOUBT),
        (first(ReadbackVerdict.FOUND_IN_TOTALS), DOUBT),
        (first(ReadbackVerdict.CONFLICT), DOUBT),
        (first(ReadbackVerdict.INCONCLUSIVE), DOUBT),
        (first(ReadbackVerdict.INCONCLUSIVE, missing=True), DOUBT),
        (first(ReadbackVerdict.UNREADABLE), unreadable(3.75 * SECOND, 1)),
        (first(ReadbackVerdict.UNREADABLE, retry_after=HOUR), unreadable(HOUR, 1)),
        (first(ReadbackVerdict.UNREADABLE, retry_after=SECOND), unreadable(3.75 * SECOND, 1)),
        (first(ReadbackVerdict.UNREADABLE, credentials=True), unreadable(15 * SECOND, 1)),
    ],
)
def test_look_before_the_first_send_leads_to_this_step_and_no_other(
    look: Readback, step: Step | None
) -> None:
    assert plain(after_first_readback(a_refund(Stage.QUEUED), look, VERIFY, NOW, 0.5)) == step


def test_payment_that_cannot_be_read_before_the_first_send_is_asked_for_ever_more_seldom() -> None:
    step = after_first_readback(
        a_refund(Stage.WAITING, looks=20), first(ReadbackVerdict.UNREADABLE), VERIFY, NOW, 0
    )
    assert plain(step) == unreadable(5 * MINUTE, 21, Stage.WAITING)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            after_view(asking(), PaymentView(problem="it shows none"), NOW, 0),
            ("usd", "it shows none"),
        ),
        (after_view(asking(), NOTHING, NOW, 0), ("usd", "no currency")),
        (after_view(asking(), UNCLEAR, NOW, 0), ("usd", "cannot be read")),
        (after_view(asking(), EUR, NOW, 0), ("usd", "eur", "nothing was sent")),
        (after_view(asking(Stage.IN_DOUBT), EUR, NOW, 0), ("usd", "eur")),
        (after_no_view(asking(), FORBIDDEN, VERIFY, NOW, 0), ("usd", "forbidden")),
        (after_view(asking(unconfirmed_since=NOW - HOUR), NOTHING, NOW, 0), ("usd", "no currency")),
    ],
)
def test_person_is_told_what_was_not_confirmed(step: Step | None, words: tuple[str, ...]) -> None:
    assert step is not None
    assert all(word in step.changes["error_message"] for word in words)
    assert step.alarm is None or all(word in step.alarm for word in words)


def test_words_of_the_provider_are_kept_without_secrets() -> None:
    problem = PaymentView(problem="sk_live_0123456789abcdef")
    step = after_view(asking(unconfirmed_since=NOW - HOUR), problem, NOW, 0)
    assert step is not None
    assert "0123456789" not in f"{step.changes} {step.alarm}"


def test_person_is_told_that_the_payment_of_an_old_doubt_could_not_be_read() -> None:
    step = after_no_view(
        asking(Stage.IN_DOUBT, first_attempt_at=NOW - 72 * HOUR), SILENCE, VERIFY, NOW, 0
    )
    assert step is not None
    assert step.alarm is not None
    assert "no_reply" in step.alarm
    # A restored server has accepted it an hour ago.
    accepted_again = asking(Stage.IN_DOUBT, first_attempt_at=NOW - 72 * HOUR, created_at=NOW - HOUR)
    step = after_no_view(accepted_again, SILENCE, VERIFY, NOW, 0)
    assert (step and step.to) is Stage.IN_DOUBT


@law
@given(refund=refunds(), outcome=outcomes, rules=rules, jitter=jitters)
def test_payment_that_is_not_shown_leads_along_a_legal_move(
    refund: Refund, outcome: Outcome, rules: Rules, jitter: float
) -> None:
    if refund.stage not in {Stage.QUEUED, Stage.WAITING, Stage.IN_DOUBT}:
        return
    step = after_no_view(refund, outcome, rules, NOW, jitter)
    if step is not None:
        assert_is_a_move(step, refund)
        assert step.to is not Stage.SETTLED
    else:
        assert not wants_currency(refund)
