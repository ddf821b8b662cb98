"""Reading a doubt back: what proves absence, what is believed, and when a person is asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings

from tests.factories import (
    BLIND,
    HOUR,
    MAYBE,
    MINUTE,
    MISMATCH,
    NOW,
    SECOND,
    SERVER_ERROR,
    TRUST,
    VERIFY,
    a_refund,
    a_reply,
    an_error,
    found,
    refund_payload,
)
from tests.strategies import jitters, looks, refunds, rules
from tests.unit.rules.stepping import with_changes
from worker.errors import InvalidRequest
from worker.model.answers import Outcome, Readback, ReadbackVerdict
from worker.model.refund import Baseline, Refund, Stage, Status
from worker.model.request import shown
from worker.model.steps import Action
from worker.rules.attempts import MAX_RESENDS, Rules, after_attempt, after_lapse, next_action
from worker.rules.decisions import resolve_resend, resolve_succeeded
from worker.rules.polls import after_poll
from worker.rules.readback import MAX_READBACKS, after_readback

law = settings(deadline=None, max_examples=100)


def test_absence_needs_two_read_backs_a_settle_time_apart_and_after_the_attempt() -> None:
    look, settle = Readback(verdict=ReadbackVerdict.ABSENT, reason="so"), VERIFY.settle
    refund = a_refund(Stage.IN_DOUBT, doubt_since=NOW, quiet_at=NOW)

    early = after_readback(refund, look, VERIFY, NOW + settle - SECOND, 0)
    assert (early.quiet, early.changes, early.delay) == (True, {}, SECOND)

    first_at = NOW + settle
    first = after_readback(refund, look, VERIFY, first_at, 0)
    assert (first.to, first.quiet, first.changes["absent_at"]) == (Stage.IN_DOUBT, False, first_at)
    assert first.changes["proven_absent_at"] is None

    seen_once = with_changes(refund, first, first_at)
    between = after_readback(seen_once, look, VERIFY, first_at + settle - SECOND, 0)
    assert (between.quiet, between.changes, between.delay) == (True, {}, SECOND)

    second = after_readback(seen_once, look, VERIFY, first_at + settle, 0)
    assert (second.to, second.changes["proven_absent_at"]) == (Stage.IN_DOUBT, first_at + settle)


@law
@given(refund=refunds(Stage.IN_DOUBT), look=looks(), rules=rules, jitter=jitters)
def test_absence_is_never_proven_by_less_than_two_settle_times_of_quiet_or_a_persons_word(
    refund: Refund, look: Readback, rules: Rules, jitter: float
) -> None:
    step = after_readback(refund, look, rules, NOW, jitter)
    if step.changes.get("proven_absent_at") is None:
        return
    if step.source == "operator":
        assert (refund.operator_says, refund.operator_unverified) == ("absent", True)
        assert look.verdict in {ReadbackVerdict.INCONCLUSIVE, ReadbackVerdict.UNREADABLE}
        return
    assert look.verdict is ReadbackVerdict.ABSENT
    assert refund.absent_at is not None
    assert refund.absent_at + rules.settle <= NOW
    assert refund.quiet_at is None or refund.quiet_at + rules.settle <= NOW
    assert refund.resends < MAX_RESENDS or refund.operator_says == "absent"


@pytest.mark.parametrize("between", [ReadbackVerdict.INCONCLUSIVE, ReadbackVerdict.FOUND_IN_TOTALS])
def test_look_that_shows_something_else_begins_the_proof_of_absence_anew(
    between: ReadbackVerdict,
) -> None:
    refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW - VERIFY.settle, absent_at=NOW - MINUTE)
    after = with_changes(
        refund, after_readback(refund, Readback(verdict=between, reason="so"), VERIFY, NOW, 0), NOW
    )
    assert after.absent_at is None


@pytest.mark.parametrize("outcome", [MAYBE, SERVER_ERROR])
def test_new_doubt_begins_every_proof_anew(outcome: Outcome) -> None:
    refund = a_refund(absent_at=NOW - HOUR, found_at=NOW - HOUR, proven_absent_at=NOW, looks=4)
    after = with_changes(refund, after_attempt(refund, outcome, VERIFY, NOW, 0), NOW)
    assert (after.absent_at, after.found_at, after.proven_absent_at, after.looks) == (
        None,
        None,
        None,
        0,
    )
    assert after.quiet_at is not None
    assert after.quiet_at >= NOW


def test_fourth_send_after_proven_absence_is_a_persons_decision() -> None:
    look = Readback(verdict=ReadbackVerdict.ABSENT, reason="so")
    for resends in range(MAX_RESENDS + 1):
        refund = a_refund(
            Stage.IN_DOUBT, quiet_at=NOW - HOUR, absent_at=NOW - HOUR, resends=resends
        )
        step = after_readback(refund, look, VERIFY, NOW, 0)
        assert (step.to is Stage.REVIEW) is (resends == MAX_RESENDS)


def test_looks_that_cannot_tell_come_rarer_and_end_with_a_person() -> None:
    refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW - VERIFY.settle)
    look, now, delays = Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so"), NOW, []
    while (step := after_readback(refund, look, VERIFY, now, 0)).to is Stage.IN_DOUBT:
        assert step.delay is not None
        delays.append(step.delay)
        now += step.delay
        refund = with_changes(refund, step, now)
    assert len(delays) == MAX_READBACKS - 1
    assert delays == sorted(set(delays))
    assert step.to is Stage.REVIEW
    assert step.alarm is not None
    assert "so" in step.alarm


def test_look_too_early_to_count_is_not_counted() -> None:
    refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW)
    step = after_readback(
        refund, Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so"), VERIFY, NOW, 0
    )
    assert (step.to, step.quiet, step.changes, step.delay) == (
        Stage.IN_DOUBT,
        True,
        {},
        VERIFY.settle,
    )


def test_refund_found_in_the_list_is_believed_at_once() -> None:
    refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW)
    step = after_readback(
        refund, Readback(verdict=ReadbackVerdict.FOUND, reason="so", found=found()), VERIFY, NOW, 0
    )
    after = with_changes(refund, step, NOW)
    assert (step.status, step.proof) == (Status.SUCCEEDED, True)
    assert (after.provider_refund_id, after.evidence) == ("re_1", "list")


def test_refund_found_in_the_totals_settles_after_a_second_equal_look_without_an_id() -> None:
    rules = replace(VERIFY, readback="totals")
    refund = a_refund(Stage.IN_DOUBT, amount=None, all_remaining=True, currency=None)
    refund = replace(refund, baseline=Baseline(refunded=100, currency="usd", remaining=400))
    look = Readback(verdict=ReadbackVerdict.FOUND_IN_TOTALS, reason="so")
    first = after_readback(refund, look, rules, NOW, 0)
    assert (first.to, first.delay, first.proof) == (Stage.IN_DOUBT, rules.settle, False)
    refund = with_changes(refund, first, NOW)
    early = after_readback(refund, look, rules, NOW + rules.settle - SECOND, 0)
    assert (early.to, early.quiet) == (Stage.IN_DOUBT, True)
    second = after_readback(refund, look, rules, NOW + rules.settle, 0)
    assert (second.to, second.status, second.proof) == (Stage.SETTLED, Status.SUCCEEDED, False)
    after = with_changes(refund, second, NOW)
    assert (after.evidence, after.provider_refund_id, after.amount, after.currency) == (
        "totals",
        None,
        None,
        "usd",
    )


def test_two_refunds_with_our_id_go_to_a_person_with_an_alarm() -> None:
    step = after_readback(
        a_refund(Stage.IN_DOUBT),
        Readback(verdict=ReadbackVerdict.CONFLICT, reason="two of them"),
        VERIFY,
        NOW,
        0,
    )
    assert (step.to, step.alarm) == (Stage.REVIEW, "two of them")


@pytest.mark.parametrize("first_attempt_at", [NOW, NOW - timedelta(days=30)])
def test_provider_that_cannot_be_read_is_asked_again_and_after_the_allowed_age_a_person_is(
    first_attempt_at: datetime,
) -> None:
    """A restored server may accept it long after a send that it has lost."""
    look = Readback(verdict=ReadbackVerdict.UNREADABLE, reason="503", retry_after=2 * HOUR)
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=first_attempt_at, created_at=NOW, looks=2)
    young = after_readback(refund, look, VERIFY, NOW + HOUR, 0)
    assert (young.to, young.quiet, young.delay) == (Stage.IN_DOUBT, True, 2 * HOUR)
    assert after_readback(refund, look, VERIFY, NOW + VERIFY.max_age, 0).to is Stage.REVIEW


def test_looks_that_are_not_answered_come_rarer_up_to_ten_minutes() -> None:
    refund = a_refund(Stage.IN_DOUBT, doubt_since=NOW, first_attempt_at=NOW, quiet_at=NOW)
    look, now, delays = Readback(verdict=ReadbackVerdict.UNREADABLE, reason="503"), NOW, []
    while (step := after_readback(refund, look, VERIFY, now, 0)).to is Stage.IN_DOUBT:
        assert step.delay is not None
        delays.append(step.delay)
        now += step.delay
        refund = with_changes(refund, step, now)
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (5 * SECOND, 10 * MINUTE)


def test_doubt_that_nothing_may_be_read_back_of_goes_to_a_person_at_once() -> None:
    assert after_attempt(a_refund(), MAYBE, BLIND, NOW, 0).to is Stage.REVIEW
    assert after_lapse(a_refund(), BLIND, NOW, 0).to is Stage.REVIEW
    assert next_action(a_refund(Stage.IN_DOUBT), BLIND, NOW) is Action.REVIEW


def test_person_who_says_absent_is_checked_by_a_look_that_may_say_otherwise() -> None:
    refund = a_refund(Stage.REVIEW, doubt_since=NOW - HOUR)
    told = with_changes(refund, resolve_resend(refund, unverified=True), NOW)
    assert next_action(told, TRUST, NOW) is Action.READ_BACK
    sent = after_readback(
        told, Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so"), VERIFY, NOW, 0
    )
    assert sent.changes["proven_absent_at"] == NOW
    contrary = after_readback(
        told, Readback(verdict=ReadbackVerdict.FOUND, reason="so", found=found()), VERIFY, NOW, 0
    )
    assert contrary.status is Status.SUCCEEDED


def test_person_who_names_the_providers_refund_is_checked_by_a_poll() -> None:
    refund = a_refund(Stage.REVIEW, doubt_since=NOW - HOUR)
    told = with_changes(refund, resolve_succeeded(refund, "re_7", NOW), NOW)
    assert next_action(told, VERIFY, NOW) is Action.POLL
    settled = after_poll(told, a_reply(200, refund_payload(id="re_7")), NOW, 0)
    assert (settled.status, settled.changes["evidence"]) == (Status.SUCCEEDED, "lookup")
    other = after_poll(told, a_reply(200, refund_payload(id="re_7", amount=1)), NOW, 0)
    assert other.to is Stage.REVIEW


@pytest.mark.parametrize("identity", ["", "../payouts", "re 1", "re/1?x", "re.1", "x" * 201])
def test_person_cannot_name_a_refund_by_an_id_that_could_not_be_asked_for(identity: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_succeeded(a_refund(Stage.REVIEW), identity, NOW)
    (error,) = caught.value.errors
    assert (error.field, error.value) == ("provider_refund_id", shown(identity))


def test_person_whose_word_the_provider_did_not_bear_out_has_named_nothing() -> None:
    refund = a_refund()
    reviewed = with_changes(refund, after_attempt(refund, MISMATCH, VERIFY, NOW, 0), NOW)
    named = with_changes(reviewed, resolve_succeeded(reviewed, "re_x", NOW), NOW)
    missing = with_changes(named, after_poll(named, an_error(404), NOW, 0), NOW)
    assert missing.stage is Stage.PROCESSING
    again = with_changes(missing, after_poll(missing, an_error(404), NOW + MINUTE, 0), NOW)
    assert (again.stage, again.provider_refund_id, again.operator_says, again.processing_since) == (
        Stage.REVIEW,
        None,
        None,
        None,
    )
    resent = with_changes(again, resolve_resend(again), NOW)
    assert (resent.stage, resent.provider_refund_id, resent.operator_says) == (
        Stage.IN_DOUBT,
        None,
        "absent",
    )


def test_persons_word_ends_when_the_provider_shows_the_refund_as_pending() -> None:
    named = a_refund(Stage.PROCESSING, operator_says="succeeded")
    step = after_poll(named, a_reply(200, refund_payload(status="pending")), NOW, 0)
    assert (step.quiet, step.changes["operator_says"]) == (True, None)
    assert (step.changes["provider_refund_id"], step.changes["evidence"]) == (
        named.provider_refund_id,
        "lookup",
    )
    unheard = after_poll(named, a_reply(503), NOW, 0)
    assert (unheard.quiet, unheard.changes) == (True, {})


def test_refund_never_in_doubt_that_a_person_lets_go_waits_and_names_nothing() -> None:
    refund = a_refund(Stage.REVIEW, provider_refund_id="re_x", operator_says="succeeded", lapses=2)
    after = with_changes(refund, resolve_resend(refund), NOW)
    assert (after.stage, after.provider_refund_id, after.operator_says, after.lapses) == (
        Stage.WAITING,
        None,
        None,
        0,
    )
