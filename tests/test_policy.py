"""The rules: laws that hold for every refund and every outcome, and the rows of the design stated one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
    stepped,
)
from tests.strategies import answers, attempts, jitters, looks, outcomes, refunds, rules, spans
from worker.answers import fold
from worker.decisions import cancel, recovered, resolve_failed, resolve_resend, resolve_succeeded, retry_failed
from worker.errors import IllegalMove, InvalidRequest, NotCancelable, NotInReview
from worker.model import (
    Action,
    Answer,
    Baseline,
    Look,
    NoReply,
    NotSent,
    Outcome,
    Refund,
    Retriable,
    Seen,
    Sight,
    Stage,
    Status,
    Step,
    shown,
)
from worker.policy import (
    MAX_LAPSES,
    MAX_LOOKS,
    MAX_PROCESSING,
    MAX_RESENDS,
    MAX_SERVER_ERRORS,
    SPARE,
    TRANSITIONS,
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
    sources_of,
)

law = settings(deadline=None, max_examples=100)

DESIGN_MOVES: Mapping[str, set[str]] = {
    "queued": {"sending", "settled"},
    "sending": {"settled", "processing", "waiting", "in_doubt", "review"},
    "waiting": {"sending", "settled", "processing"},
    "in_doubt": {"settled", "processing", "sending", "in_doubt", "review"},
    "processing": {"settled", "review"},
    "review": {"processing", "in_doubt", "settled", "waiting"},
    "settled": {"settled", "queued"},
}


def assert_is_a_move(step: Step, refund: Refund) -> None:
    if step.quiet:
        assert step.to is refund.stage
        assert step.delay is not None
    else:
        assert step.to in TRANSITIONS[refund.stage]
    assert (step.status is Status.PENDING) is (step.to is not Stage.SETTLED)
    assert step.to is Stage.SETTLED or step.delay is None or step.delay >= timedelta(0)
    json.dumps(step.label)


def with_changes(refund: Refund, step: Step, now: datetime) -> Refund:
    return stepped(refund, step.changes, step.to, now, step.delay)


# The table


def test_moves_are_those_of_the_design_and_no_others() -> None:
    moves = {(stage.value, to.value) for stage, row in TRANSITIONS.items() for to in row}
    designed = {(stage, to) for stage, row in DESIGN_MOVES.items() for to in row}
    # A server restored from an old snapshot may have sent what its records call unsent: the only move added since.
    assert moves == designed | {("queued", "in_doubt"), ("waiting", "in_doubt")}


@pytest.mark.parametrize("source", Stage)
@pytest.mark.parametrize("target", Stage)
def test_move_outside_the_table_is_illegal_and_one_inside_is_not(source: Stage, target: Stage) -> None:
    assert (source in sources_of(target)) is (target in TRANSITIONS[source])
    if target in TRANSITIONS[source]:
        check_move("a", source, target)
    else:
        with pytest.raises(IllegalMove) as caught:
            check_move("a", source, target)
        assert (caught.value.refund_id, caught.value.source, caught.value.target) == ("a", source, target)


# Laws of every step


@law
@given(refund=refunds(Stage.SENDING), outcome=outcomes, rules=rules, jitter=jitters)
def test_every_outcome_of_an_attempt_leads_along_a_legal_move(
    refund: Refund, outcome: Outcome, rules: Rules, jitter: float
) -> None:
    step = after_attempt(refund, outcome, rules, NOW, jitter)
    assert_is_a_move(step, refund)
    assert step.proof is (outcome.seen is Seen.DONE)
    assert not step.quiet


@law
@given(refund=refunds(Stage.SENDING), rules=rules, jitter=jitters)
def test_every_lapse_leads_into_doubt_or_review_with_the_doubt_noted(
    refund: Refund, rules: Rules, jitter: float
) -> None:
    step = after_lapse(refund, rules, NOW, jitter)
    assert_is_a_move(step, refund)
    assert step.to in {Stage.IN_DOUBT, Stage.REVIEW}
    assert step.changes["doubt_since"] == (refund.doubt_since or NOW)
    assert step.changes["quiet_at"] == refund.next_check_at


@law
@given(refund=refunds(Stage.IN_DOUBT), look=looks(), rules=rules, jitter=jitters)
def test_every_look_leads_along_a_legal_move(refund: Refund, look: Look, rules: Rules, jitter: float) -> None:
    step = after_look(refund, look, rules, NOW, jitter)
    assert_is_a_move(step, refund)
    assert step.to is not Stage.SENDING
    assert step.to is not Stage.SETTLED or look.sight in {Sight.FOUND, Sight.FOUND_IN_TOTALS}
    # A total is not the provider's word on this refund: it settles only the version that was looked at.
    assert step.proof is (look.found is not None)


@law
@given(refund=refunds(Stage.PROCESSING), answer=answers(), jitter=jitters)
def test_every_poll_leads_along_a_legal_move(refund: Refund, answer: Answer, jitter: float) -> None:
    step = after_poll(refund, answer, NOW, jitter)
    assert_is_a_move(step, refund)
    if step.to is Stage.SETTLED:
        assert step.changes["provider_refund_id"] == refund.provider_refund_id


@law
@given(refund=refunds())
def test_cancel_retry_and_a_persons_decisions_lead_along_legal_moves_or_are_refused(refund: Refund) -> None:
    steps: list[Step | None] = [retry_failed(refund)]
    try:
        steps.append(cancel(refund))
    except NotCancelable:
        assert refund.stage not in {Stage.QUEUED, Stage.WAITING}
    if refund.stage is Stage.REVIEW:
        steps += [resolve_succeeded(refund, "re_9", NOW), resolve_failed(refund, "declined"), resolve_resend(refund)]
    else:
        with pytest.raises(NotInReview):
            resolve_failed(refund, "x")
        with pytest.raises(NotInReview):
            resolve_resend(refund)
        with pytest.raises(NotInReview):
            resolve_succeeded(refund, "re_9", NOW)
    for step in steps:
        if step is not None:
            assert_is_a_move(step, refund)


@law
@given(refund=refunds(), rules=rules)
def test_every_refund_needs_something_definite_now(refund: Refund, rules: Rules) -> None:
    action = next_action(refund, rules, NOW)
    allowed = {
        Stage.QUEUED: {Action.SEND},
        Stage.WAITING: {Action.SEND},
        Stage.SENDING: {Action.LAPSE},
        Stage.IN_DOUBT: {Action.LOOK, Action.REPLAY, Action.REVIEW},
        Stage.PROCESSING: {Action.POLL},
        Stage.REVIEW: {Action.NOTHING},
        Stage.SETTLED: {Action.NOTHING},
    }
    assert action in allowed[refund.stage]
    if refund.stage is not Stage.QUEUED:
        early = replace(refund, next_check_at=NOW + SECOND)
        assert next_action(early, rules, NOW) is Action.NOTHING


# Doubt


@law
@given(refund=refunds(Stage.SENDING), tried=attempts, rules=rules, jitter=jitters)
def test_doubt_is_sticky_until_done(refund: Refund, tried: list[Outcome], rules: Rules, jitter: float) -> None:
    outcome = fold(tried)
    assume(outcome.seen is not Seen.DONE)
    assume(refund.doubt_since is not None or outcome.doubt)
    step = after_attempt(refund, outcome, rules, NOW, jitter)
    assert step.to in {Stage.IN_DOUBT, Stage.REVIEW}
    assert step.status is Status.PENDING
    assert with_changes(refund, step, NOW).doubt_since == (refund.doubt_since or NOW)


@law
@given(refund=refunds(Stage.IN_DOUBT), look=looks(), rules=rules, jitter=jitters)
def test_look_that_finds_nothing_never_takes_the_doubt_away(
    refund: Refund, look: Look, rules: Rules, jitter: float
) -> None:
    assume(look.sight not in {Sight.FOUND, Sight.FOUND_IN_TOTALS})
    step = after_look(refund, look, rules, NOW, jitter)
    assert step.to in {Stage.IN_DOUBT, Stage.REVIEW}
    assert with_changes(refund, step, NOW).doubt_since == refund.doubt_since


@law
@given(refund=refunds(), data=st.data())
def test_refund_in_doubt_is_neither_canceled_nor_refused_unsent_nor_let_go_without_a_look(
    refund: Refund, data: st.DataObject
) -> None:
    doubtful = replace(refund, doubt_since=data.draw(spans.map(lambda span: NOW - span)))
    with pytest.raises(NotCancelable):
        cancel(doubtful)
    with pytest.raises(IllegalMove):
        refused_unsent(doubtful, "currency_mismatch", "no")
    if doubtful.stage is Stage.REVIEW:
        step = resolve_resend(doubtful)
        assert (step.to, step.changes["operator_says"]) == (Stage.IN_DOUBT, "absent")


@law
@given(
    refund=refunds(Stage.SENDING),
    rounds=st.lists(st.tuples(outcomes, spans), min_size=1, max_size=6),
    rules=rules,
    jitter=jitters,
)
def test_refund_that_may_have_happened_once_is_never_failed_by_any_later_attempt(
    refund: Refund, rounds: list[tuple[Outcome, timedelta]], rules: Rules, jitter: float
) -> None:
    now, doubted = NOW, refund.doubt_since is not None
    for outcome, wait in rounds:
        if outcome.seen is Seen.DONE:
            return
        doubted = doubted or outcome.doubt
        step = after_attempt(refund, outcome, rules, now, jitter)
        assert not (doubted and step.to in {Stage.SETTLED, Stage.WAITING})
        if step.to in {Stage.SETTLED, Stage.REVIEW}:
            return
        now += wait
        refund = replace(with_changes(refund, step, now), stage=Stage.SENDING, next_check_at=now)


@pytest.mark.parametrize("first", [MAYBE, SERVER_ERROR])
@pytest.mark.parametrize("second", [NOT_SENT, NOT_DONE, REFUSED, BAD_KEY])
def test_refusal_after_a_doubt_may_be_our_own_first_refund_speaking(first: Outcome, second: Outcome) -> None:
    refund = a_refund()
    doubted = with_changes(refund, after_attempt(refund, first, TRUST, NOW, 0), NOW)
    step = after_attempt(replace(doubted, stage=Stage.SENDING), second, TRUST, NOW + MINUTE, 0)
    assert (step.to, step.status) == (Stage.IN_DOUBT, Status.PENDING)


@pytest.mark.parametrize("status", ["pending", "succeeded", "failed", "canceled"])
def test_proof_of_done_clears_the_doubt(status: str) -> None:
    refund = a_refund(doubt_since=NOW - HOUR, operator_says="absent", absent_at=NOW)
    step = after_attempt(refund, done_as(status), VERIFY, NOW, 0)
    after = with_changes(refund, step, NOW)
    assert (after.doubt_since, after.operator_says, after.absent_at) == (None, None, None)
    assert step.proof


# One attempt, never in doubt before


@pytest.mark.parametrize(
    ("outcome", "stage", "status"),
    [
        (NOT_SENT, Stage.WAITING, Status.PENDING),
        (NOT_DONE, Stage.WAITING, Status.PENDING),
        (BAD_KEY, Stage.WAITING, Status.PENDING),
        (REFUSED, Stage.SETTLED, Status.FAILED),
        (MAYBE, Stage.IN_DOUBT, Status.PENDING),
        (MISMATCH, Stage.REVIEW, Status.PENDING),
        (done_as("pending"), Stage.PROCESSING, Status.PENDING),
        (done_as("succeeded"), Stage.SETTLED, Status.SUCCEEDED),
        (done_as("failed"), Stage.SETTLED, Status.FAILED),
        (done_as("canceled"), Stage.SETTLED, Status.CANCELED),
    ],
    ids=lambda value: getattr(value, "code", None) or str(value),
)
@pytest.mark.parametrize("rules", [VERIFY, TRUST], ids=["verify", "trust"])
def test_first_attempt_leads_where_the_table_of_evidence_says(
    outcome: Outcome, stage: Stage, status: Status, rules: Rules
) -> None:
    step = after_attempt(a_refund(), outcome, rules, NOW, 0)
    assert (step.to, step.status) == (stage, status)


def test_refused_refund_keeps_the_providers_code_and_words() -> None:
    outcome = replace(REFUSED, message="too much")
    after = with_changes(a_refund(), after_attempt(a_refund(), outcome, VERIFY, NOW, 0), NOW)
    assert (after.error_code, after.error_message, after.retriable) == ("amount_too_large", "too much", Retriable.NO)


@pytest.mark.parametrize(
    ("code", "retriable"),
    [
        ("charge_already_refunded", Retriable.NO),
        ("balance_insufficient", Retriable.YES),
        ("something_new", Retriable.UNKNOWN),
    ],
)
def test_failed_refund_says_whether_sending_it_again_can_help(code: str, retriable: Retriable) -> None:
    step = after_attempt(a_refund(), replace(REFUSED, code=code), VERIFY, NOW, 0)
    assert step.changes["retriable"] is retriable


def test_mismatch_of_the_key_rings_an_alarm() -> None:
    step = after_attempt(a_refund(), MISMATCH, VERIFY, NOW, 0)
    assert step.alarm is not None
    assert "key" in step.alarm


@law
@given(wait=st.timedeltas(timedelta(0), timedelta(days=2)), jitter=jitters)
def test_attempt_told_to_wait_waits_at_least_that_long(wait: timedelta, jitter: float) -> None:
    for refund in (a_refund(), a_refund(doubt_since=NOW)):
        for either in (VERIFY, TRUST):
            step = after_attempt(refund, replace(NOT_DONE, retry_after=wait), either, NOW, jitter)
            assert step.delay is not None
            assert step.delay >= wait


def test_settled_refund_takes_the_providers_amount_and_the_callers_currency_stays() -> None:
    refund = a_refund(amount=None, all_remaining=True, currency=None)
    after = with_changes(refund, after_attempt(refund, done_as(amount=99, currency="eur"), VERIFY, NOW, 0), NOW)
    assert (after.amount, after.currency, after.provider_refund_id, after.evidence) == (99, "eur", "re_1", "reply")
    assert after.asked_amount is None


def test_refund_that_failed_at_the_provider_says_why() -> None:
    step = after_attempt(a_refund(), done_as("failed", failure_reason="lost_or_stolen_card"), VERIFY, NOW, 0)
    assert step.changes["failure_reason"] == step.changes["error_code"] == "lost_or_stolen_card"
    assert step.changes["retriable"] is Retriable.NO


# Budget


@law
@given(refund=refunds(Stage.SENDING), tried=attempts, rules=rules, jitter=jitters)
def test_only_an_attempt_that_reached_a_verdict_counts_towards_the_budget(
    refund: Refund, tried: list[Outcome], rules: Rules, jitter: float
) -> None:
    outcome = fold(tried)
    assume(outcome.seen is not Seen.DONE)
    after = with_changes(refund, after_attempt(refund, outcome, rules, NOW, jitter), NOW)
    assume(after.stage is not Stage.SETTLED)
    counts = outcome.seen not in {Seen.NOT_SENT, Seen.NOT_DONE}
    assert after.verdicts == refund.verdicts + counts


@pytest.mark.parametrize("outcome", [NOT_SENT, NOT_DONE])
def test_refund_that_never_got_through_is_not_given_up_for_its_number_of_attempts(outcome: Outcome) -> None:
    refund = a_refund(attempts=1000, first_attempt_at=NOW - HOUR)
    assert after_attempt(refund, outcome, VERIFY, NOW, 0).to is Stage.WAITING


@pytest.mark.parametrize("outcome", [NOT_SENT, NOT_DONE])
def test_refund_too_old_and_provably_never_done_is_given_up_and_may_be_retried(outcome: Outcome) -> None:
    young = a_refund(first_attempt_at=NOW - VERIFY.max_age + SECOND)
    assert after_attempt(young, outcome, VERIFY, NOW, 0).to is Stage.WAITING
    old = a_refund(first_attempt_at=NOW - VERIFY.max_age)
    after = with_changes(old, after_attempt(old, outcome, VERIFY, NOW, 0), NOW)
    assert (after.stage, after.error_code, after.retriable) == (Stage.SETTLED, "budget_spent", Retriable.YES)


@pytest.mark.parametrize(
    "refund",
    [a_refund(first_attempt_at=NOW - VERIFY.max_age), a_refund(verdicts=VERIFY.max_attempts)],
    ids=["too old", "too many attempts"],
)
def test_nothing_is_failed_for_refused_credentials_however_long_they_are(refund: Refund) -> None:
    assert after_attempt(refund, NOT_DONE, VERIFY, NOW, 0).to is Stage.SETTLED
    assert after_attempt(refund, BAD_KEY, VERIFY, NOW, 0).to is Stage.WAITING


def test_doubt_whose_budget_is_spent_is_read_back_and_neither_failed_nor_replayed() -> None:
    refund = a_refund(verdicts=TRUST.max_attempts - 1, doubt_since=NOW - HOUR)
    after = with_changes(refund, after_attempt(refund, MAYBE, TRUST, NOW, 0), NOW)
    assert after.stage is Stage.IN_DOUBT
    assert next_action(after, TRUST, NOW + HOUR) is Action.LOOK


def test_queued_refund_never_ages_out() -> None:
    refund = a_refund(Stage.QUEUED, created_at=NOW - timedelta(days=3650))
    assert next_action(refund, VERIFY, NOW) is Action.SEND
    claimed = replace(refund, stage=Stage.SENDING, first_attempt_at=NOW, attempts=1)
    assert after_attempt(claimed, NOT_SENT, VERIFY, NOW, 0).to is Stage.WAITING


# Backoff and polls


@law
@given(
    attempt=st.integers(-5, 100),
    base=st.integers(1, 60).map(lambda seconds: seconds * SECOND),
    cap=st.integers(60, 86400).map(lambda seconds: seconds * SECOND),
    jitter=jitters,
)
def test_backoff_lies_in_the_upper_half_of_a_doubled_wait_and_below_its_cap(
    attempt: int, base: timedelta, cap: timedelta, jitter: float
) -> None:
    wait = backoff(attempt, base=base, cap=cap, jitter=jitter)
    full = min(cap, base * 2 ** (min(max(attempt, 1), 40) - 1))
    assert full / 2 <= wait <= full
    assert backoff(attempt + 1, base=base, cap=cap, jitter=jitter) >= wait


def test_backoff_grows_from_seconds_to_an_hour_between_attempts() -> None:
    delays = [after_attempt(a_refund(attempts=n), NOT_SENT, VERIFY, NOW, 0.999).delay for n in range(1, 15)]
    assert delays == sorted(delays, key=lambda delay: delay or timedelta(0))
    assert delays[0] is not None
    assert delays[-1] is not None
    assert delays[0] <= 10 * SECOND
    assert HOUR / 2 <= delays[-1] <= HOUR


@law
@given(age=spans, later=spans)
def test_polls_of_a_pending_refund_grow_rarer_with_its_age_within_bounds(age: timedelta, later: timedelta) -> None:
    assert SECOND <= poll_delay(age) <= 6 * HOUR
    assert poll_delay(age) <= poll_delay(age + later)


def test_refund_pending_for_thirty_days_is_polled_a_few_hundred_times_and_then_shown_to_a_person() -> None:
    since, now, polls = NOW, NOW, 0
    refund = a_refund(Stage.PROCESSING, processing_since=since)
    pending = a_reply(200, refund_payload(status="pending"))
    while (step := after_poll(refund, pending, now, 0.5)).to is Stage.PROCESSING:
        assert step.quiet
        assert step.delay is not None
        now += step.delay
        polls += 1
    assert (step.to, step.label) == (Stage.REVIEW, "pending_too_long")
    assert MAX_PROCESSING <= now - since <= MAX_PROCESSING + 8 * HOUR
    assert 100 < polls < 300


@pytest.mark.parametrize(
    "answer", [NotSent(reason="refused"), NoReply(reason="reset"), a_reply(503), an_error(429), an_error(401)], ids=str
)
def test_polls_that_are_never_answered_end_with_a_person_after_thirty_days(answer: Answer) -> None:
    young = a_refund(Stage.PROCESSING, processing_since=NOW - MAX_PROCESSING + SECOND)
    assert after_poll(young, answer, NOW, 0).to is Stage.PROCESSING
    old = a_refund(Stage.PROCESSING, processing_since=NOW - MAX_PROCESSING)
    step = after_poll(old, answer, NOW, 0)
    assert (step.to, step.label) == (Stage.REVIEW, "pending_too_long")
    assert step.alarm


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_poll_that_says_final_settles(status: str) -> None:
    step = after_poll(a_refund(Stage.PROCESSING), a_reply(200, refund_payload(status=status)), NOW, 0)
    assert (step.to, step.status, step.proof) == (Stage.SETTLED, Status(status), True)


@pytest.mark.parametrize(
    "answer",
    [NotSent(reason="refused"), NoReply(reason="reset"), a_reply(503), an_error(429), an_error(401), an_error(409)],
    ids=str,
)
def test_poll_that_was_not_answered_only_looks_again_later(answer: Answer) -> None:
    step = after_poll(a_refund(Stage.PROCESSING), answer, NOW, 0)
    assert (step.to, step.quiet, step.changes) == (Stage.PROCESSING, True, {})


@pytest.mark.parametrize(
    "answer",
    [
        an_error(404, "resource_missing"),
        a_reply(200, refund_payload(id="re_other")),
        a_reply(200, refund_payload(amount=1)),
        a_reply(200, refund_payload(payment_intent="pi_other", status="pending")),
    ],
    ids=["gone", "another id", "another amount", "another payment"],
)
def test_poll_that_contradicts_the_record_goes_to_a_person(answer: Answer) -> None:
    refund = a_refund(Stage.PROCESSING)
    step = after_poll(refund, answer, NOW, 0)
    assert step.to is Stage.REVIEW
    assert step.alarm
    assert with_changes(refund, step, NOW).provider_refund_id == refund.provider_refund_id


@pytest.mark.parametrize(
    ("refund", "answer"),
    [
        (a_refund(Stage.PROCESSING), an_error(404, "resource_missing")),
        (a_refund(Stage.PROCESSING), a_reply(200, refund_payload(amount=1))),
        (
            a_refund(Stage.PROCESSING, processing_since=NOW - MAX_PROCESSING),
            a_reply(200, refund_payload(status="pending")),
        ),
    ],
    ids=["gone", "contradictory", "pending too long"],
)
def test_refund_that_the_provider_once_had_is_not_sent_again_without_a_look(refund: Refund, answer: Answer) -> None:
    reviewed = with_changes(refund, after_poll(refund, answer, NOW, 0), NOW)
    assert reviewed.stage is Stage.REVIEW
    step = resolve_resend(reviewed)
    assert (step.to, step.changes["operator_says"]) == (Stage.IN_DOUBT, "absent")


# Trust: the same key again


def test_doubt_is_replayed_at_once_after_a_lapse_where_keys_are_honoured() -> None:
    refund = a_refund(next_check_at=NOW)
    step = after_lapse(refund, TRUST, NOW, 0.5)
    assert (step.to, step.delay) == (Stage.IN_DOUBT, timedelta(0))
    assert next_action(with_changes(refund, step, NOW), TRUST, NOW) is Action.REPLAY


@law
@given(refund=refunds(Stage.IN_DOUBT), now_after=spans)
def test_verify_never_replays(refund: Refund, now_after: timedelta) -> None:
    assert not may_replay(refund, VERIFY, NOW + now_after)
    assert not may_try_again([MAYBE], refund, VERIFY)
    assert next_action(refund, VERIFY, NOW) is not Action.REPLAY


@law
@given(refund=refunds(Stage.IN_DOUBT), rules=rules, ahead=spans)
def test_replay_ends_inside_the_key_window(refund: Refund, rules: Rules, ahead: timedelta) -> None:
    now = NOW + ahead
    if may_replay(refund, rules, now):
        assert refund.first_attempt_at is not None
        assert now + rules.request_timeout < refund.first_attempt_at + rules.key_window


def test_window_closes_a_call_and_its_spare_before_its_end() -> None:
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=NOW)
    last = NOW + TRUST.key_window - TRUST.request_timeout - SPARE
    assert may_replay(refund, TRUST, last - timedelta(milliseconds=1))
    assert not may_replay(refund, TRUST, last)
    assert next_action(replace(refund, next_check_at=last), TRUST, last) is Action.LOOK


def test_wait_that_would_outlast_the_window_reads_back_instead() -> None:
    refund = a_refund(first_attempt_at=NOW - TRUST.key_window + HOUR)
    after = with_changes(refund, after_attempt(refund, replace(MAYBE, retry_after=2 * HOUR), TRUST, NOW, 0), NOW)
    assert after.next_check_at is not None
    assert next_action(after, TRUST, after.next_check_at) is Action.LOOK


def test_three_5xx_in_a_row_inside_one_attempt_stop_the_tries() -> None:
    refund = a_refund()
    tried = [SERVER_ERROR] * MAX_SERVER_ERRORS
    assert [may_try_again(tried[:n], refund, TRUST) for n in (1, 2, 3)] == [True, True, False]


def test_three_5xx_in_a_row_over_several_attempts_stop_the_replays() -> None:
    refund = a_refund()
    for number in (1, 2, 3):
        refund = with_changes(refund, after_attempt(refund, fold([SERVER_ERROR]), TRUST, NOW, 0), NOW)
        assert refund.server_errors == number
        assert next_action(refund, TRUST, NOW + MINUTE) is (Action.REPLAY if number < 3 else Action.LOOK)
        refund = replace(refund, stage=Stage.SENDING)


def test_5xx_row_is_not_ended_by_a_try_that_never_left() -> None:
    refund = a_refund(server_errors=2)
    tried = [SERVER_ERROR, NOT_SENT]
    assert after_attempt(refund, fold(tried), TRUST, NOW, 0).changes["server_errors"] == 3
    assert not may_try_again([NOT_SENT, SERVER_ERROR], refund, TRUST)


def test_5xx_row_ends_with_any_other_answer() -> None:
    refund = a_refund(server_errors=2)
    assert after_attempt(refund, fold([MAYBE]), TRUST, NOW, 0).changes["server_errors"] == 0
    assert after_attempt(refund, fold([MAYBE, SERVER_ERROR]), TRUST, NOW, 0).changes["server_errors"] == 1
    assert may_try_again([MAYBE, SERVER_ERROR], refund, TRUST)
    assert not may_try_again([SERVER_ERROR], refund, TRUST)


@law
@given(tried=attempts, refund=refunds(Stage.SENDING))
def test_verdict_ends_the_tries_and_only_what_was_not_sent_is_free(tried: list[Outcome], refund: Refund) -> None:
    last = tried[-1].seen
    assert may_try_again(tried, refund, VERIFY) is (last is Seen.NOT_SENT)
    if last in {Seen.DONE, Seen.REFUSED, Seen.NOT_DONE, Seen.MISMATCH}:
        assert not may_try_again(tried, refund, TRUST)


# Lapses


def test_third_lapse_in_a_row_goes_to_a_person() -> None:
    refund = a_refund()
    for number in range(1, MAX_LAPSES + 1):
        step = after_lapse(refund, TRUST, NOW, 0)
        assert (step.to is Stage.REVIEW) is (number == MAX_LAPSES)
        refund = replace(with_changes(refund, step, NOW), stage=Stage.SENDING)
    assert refund.lapses == MAX_LAPSES


@pytest.mark.parametrize("outcome", [NOT_SENT, NOT_DONE, MAYBE, SERVER_ERROR])
def test_any_answer_ends_the_row_of_lapses(outcome: Outcome) -> None:
    assert after_attempt(a_refund(lapses=2), outcome, TRUST, NOW, 0).changes["lapses"] == 0


# Quiet


def test_attempt_whose_own_claimant_reports_is_quiet_from_the_moment_its_socket_was_closed() -> None:
    refund = a_refund(next_check_at=NOW + 30 * SECOND)
    assert after_attempt(refund, MAYBE, VERIFY, NOW, 0).changes["quiet_at"] == NOW


def test_lapsed_lease_is_quiet_from_its_end_for_nobody_knows_when_its_socket_was_closed() -> None:
    refund = a_refund(next_check_at=NOW)
    assert after_lapse(refund, VERIFY, NOW + HOUR, 0).changes["quiet_at"] == NOW


# Reading back


def test_absence_needs_two_looks_a_settle_time_apart_the_first_a_settle_time_after_the_attempt() -> None:
    look, settle = Look(sight=Sight.ABSENT, reason="so"), VERIFY.settle
    refund = a_refund(Stage.IN_DOUBT, doubt_since=NOW, quiet_at=NOW)

    early = after_look(refund, look, VERIFY, NOW + settle - SECOND, 0)
    assert (early.quiet, early.changes, early.delay) == (True, {}, SECOND)

    first_at = NOW + settle
    first = after_look(refund, look, VERIFY, first_at, 0)
    assert (first.to, first.quiet, first.changes["absent_at"]) == (Stage.IN_DOUBT, False, first_at)
    assert first.changes["proven_absent_at"] is None

    seen_once = with_changes(refund, first, first_at)
    between = after_look(seen_once, look, VERIFY, first_at + settle - SECOND, 0)
    assert (between.quiet, between.changes, between.delay) == (True, {}, SECOND)

    second = after_look(seen_once, look, VERIFY, first_at + settle, 0)
    assert (second.to, second.changes["proven_absent_at"]) == (Stage.IN_DOUBT, first_at + settle)


@law
@given(refund=refunds(Stage.IN_DOUBT), look=looks(), rules=rules, jitter=jitters)
def test_absence_is_never_proven_by_less_than_two_settle_times_of_quiet_or_a_persons_word(
    refund: Refund, look: Look, rules: Rules, jitter: float
) -> None:
    step = after_look(refund, look, rules, NOW, jitter)
    if step.changes.get("proven_absent_at") is None or refund.operator_says == "absent":
        return
    assert look.sight is Sight.ABSENT
    assert refund.absent_at is not None
    assert refund.absent_at + rules.settle <= NOW
    assert refund.quiet_at is None or refund.quiet_at + rules.settle <= NOW
    assert refund.resends < MAX_RESENDS


@pytest.mark.parametrize("between", [Sight.INCONCLUSIVE, Sight.FOUND_IN_TOTALS])
def test_look_that_shows_something_else_begins_the_proof_of_absence_anew(between: Sight) -> None:
    refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW - HOUR, absent_at=NOW - MINUTE)
    after = with_changes(refund, after_look(refund, Look(sight=between, reason="so"), VERIFY, NOW, 0), NOW)
    assert after.absent_at is None


@pytest.mark.parametrize("outcome", [MAYBE, SERVER_ERROR])
def test_new_doubt_begins_every_proof_anew(outcome: Outcome) -> None:
    refund = a_refund(absent_at=NOW - HOUR, found_at=NOW - HOUR, proven_absent_at=NOW, looks=4)
    after = with_changes(refund, after_attempt(refund, outcome, VERIFY, NOW, 0), NOW)
    assert (after.absent_at, after.found_at, after.proven_absent_at, after.looks) == (None, None, None, 0)
    assert after.quiet_at is not None
    assert after.quiet_at >= NOW


def test_fourth_send_after_proven_absence_is_a_persons_decision() -> None:
    look = Look(sight=Sight.ABSENT, reason="so")
    for resends in range(MAX_RESENDS + 1):
        refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW - HOUR, absent_at=NOW - HOUR, resends=resends)
        step = after_look(refund, look, VERIFY, NOW, 0)
        assert (step.to is Stage.REVIEW) is (resends == MAX_RESENDS)


def test_looks_that_cannot_tell_come_rarer_and_end_with_a_person() -> None:
    refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW - VERIFY.settle)
    look, now, delays = Look(sight=Sight.INCONCLUSIVE, reason="so"), NOW, []
    while (step := after_look(refund, look, VERIFY, now, 0)).to is Stage.IN_DOUBT:
        assert step.delay is not None
        delays.append(step.delay)
        now += step.delay
        refund = with_changes(refund, step, now)
    assert len(delays) == MAX_LOOKS - 1
    assert delays == sorted(set(delays))
    assert step.to is Stage.REVIEW
    assert step.alarm is not None
    assert "so" in step.alarm


def test_look_too_early_to_count_is_not_counted() -> None:
    refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW)
    step = after_look(refund, Look(sight=Sight.INCONCLUSIVE, reason="so"), VERIFY, NOW, 0)
    assert (step.to, step.quiet, step.changes, step.delay) == (Stage.IN_DOUBT, True, {}, VERIFY.settle)


def test_refund_found_in_the_list_is_believed_at_once() -> None:
    refund = a_refund(Stage.IN_DOUBT, quiet_at=NOW)
    step = after_look(refund, Look(sight=Sight.FOUND, reason="so", found=found()), VERIFY, NOW, 0)
    after = with_changes(refund, step, NOW)
    assert (step.status, step.proof) == (Status.SUCCEEDED, True)
    assert (after.provider_refund_id, after.evidence) == ("re_1", "list")


def test_refund_found_in_the_totals_settles_after_a_second_equal_look_without_an_id() -> None:
    rules = replace(VERIFY, readback="totals")
    refund = a_refund(Stage.IN_DOUBT, amount=None, all_remaining=True, currency=None)
    refund = replace(refund, baseline=Baseline(refunded=100, currency="usd", remaining=400))
    look = Look(sight=Sight.FOUND_IN_TOTALS, reason="so")
    first = after_look(refund, look, rules, NOW, 0)
    assert (first.to, first.delay, first.proof) == (Stage.IN_DOUBT, rules.settle, False)
    refund = with_changes(refund, first, NOW)
    early = after_look(refund, look, rules, NOW + rules.settle - SECOND, 0)
    assert (early.to, early.quiet) == (Stage.IN_DOUBT, True)
    second = after_look(refund, look, rules, NOW + rules.settle, 0)
    assert (second.to, second.status, second.proof) == (Stage.SETTLED, Status.SUCCEEDED, False)
    after = with_changes(refund, second, NOW)
    assert (after.evidence, after.provider_refund_id, after.amount, after.currency) == ("totals", None, 400, "usd")


def test_two_refunds_with_our_id_go_to_a_person_with_an_alarm() -> None:
    step = after_look(a_refund(Stage.IN_DOUBT), Look(sight=Sight.CONFLICT, reason="two of them"), VERIFY, NOW, 0)
    assert (step.to, step.alarm) == (Stage.REVIEW, "two of them")


def test_provider_that_cannot_be_read_is_asked_again_and_after_the_allowed_age_a_person_is() -> None:
    look = Look(sight=Sight.UNREADABLE, reason="503", retry_after=2 * HOUR)
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=NOW, looks=2)
    young = after_look(refund, look, VERIFY, NOW + HOUR, 0)
    assert (young.to, young.quiet, young.delay) == (Stage.IN_DOUBT, True, 2 * HOUR)
    assert after_look(refund, look, VERIFY, NOW + VERIFY.max_age, 0).to is Stage.REVIEW


def test_looks_that_are_not_answered_come_rarer_up_to_ten_minutes() -> None:
    refund = a_refund(Stage.IN_DOUBT, doubt_since=NOW, first_attempt_at=NOW, quiet_at=NOW)
    look, now, delays = Look(sight=Sight.UNREADABLE, reason="503"), NOW, []
    while (step := after_look(refund, look, VERIFY, now, 0)).to is Stage.IN_DOUBT:
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


def test_person_who_says_absent_is_checked_by_one_more_look_and_then_believed() -> None:
    refund = a_refund(Stage.REVIEW, doubt_since=NOW - HOUR)
    told = with_changes(refund, resolve_resend(refund), NOW)
    assert next_action(told, TRUST, NOW) is Action.LOOK
    sent = after_look(told, Look(sight=Sight.INCONCLUSIVE, reason="so"), VERIFY, NOW, 0)
    assert sent.changes["proven_absent_at"] == NOW
    contrary = after_look(told, Look(sight=Sight.FOUND, reason="so", found=found()), VERIFY, NOW, 0)
    assert contrary.status is Status.SUCCEEDED


def test_person_who_names_the_providers_refund_is_checked_by_a_poll() -> None:
    refund = a_refund(Stage.REVIEW, doubt_since=NOW - HOUR)
    told = with_changes(refund, resolve_succeeded(refund, "re_7", NOW), NOW)
    assert next_action(told, VERIFY, NOW) is Action.POLL
    settled = after_poll(told, a_reply(200, refund_payload(id="re_7")), NOW, 0)
    assert (settled.status, settled.changes["evidence"]) == (Status.SUCCEEDED, "operator")
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
    again = with_changes(named, after_poll(named, an_error(404), NOW, 0), NOW)
    assert (again.stage, again.provider_refund_id, again.operator_says, again.processing_since) == (
        Stage.REVIEW,
        None,
        None,
        None,
    )
    resent = with_changes(again, resolve_resend(again), NOW)
    assert (resent.stage, resent.provider_refund_id, resent.operator_says) == (Stage.IN_DOUBT, None, "absent")


def test_persons_word_ends_when_the_provider_shows_the_refund_as_pending() -> None:
    named = a_refund(Stage.PROCESSING, operator_says="succeeded")
    step = after_poll(named, a_reply(200, refund_payload(status="pending")), NOW, 0)
    assert (step.quiet, step.changes) == (True, {"operator_says": None, "provider_refund_id": named.provider_refund_id})
    unheard = after_poll(named, a_reply(503), NOW, 0)
    assert (unheard.quiet, unheard.changes) == (True, {})


def test_refund_never_in_doubt_that_a_person_lets_go_again_waits_for_its_turn_and_names_nothing() -> None:
    refund = a_refund(Stage.REVIEW, provider_refund_id="re_x", operator_says="succeeded", lapses=2)
    after = with_changes(refund, resolve_resend(refund), NOW)
    assert (after.stage, after.provider_refund_id, after.operator_says, after.lapses) == (Stage.WAITING, None, None, 0)


def test_person_who_says_failed_settles_it_for_good() -> None:
    step = resolve_failed(a_refund(Stage.REVIEW, doubt_since=NOW), "declined")
    assert (step.status, step.changes["retriable"], step.changes["evidence"]) == (
        Status.FAILED,
        Retriable.NO,
        "operator",
    )


# Recovery


@law
@given(refund=refunds(), ago=spans)
def test_refund_that_may_have_been_sent_since_the_snapshot_begins_in_doubt_with_every_proof_anew(
    refund: Refund, ago: timedelta
) -> None:
    since = NOW - ago
    step = recovered(refund, since, NOW)
    if step is None:
        assert refund.stage in {Stage.PROCESSING, Stage.SETTLED}
        return
    assert_is_a_move(step, refund)
    if refund.stage in {Stage.REVIEW, Stage.SETTLED}:
        # These wait for a person or are over; what they may still do is asked below.
        assert step.quiet
        return
    after = with_changes(refund, step, NOW)
    assert (after.stage, after.next_check_at, after.quiet_at) == (Stage.IN_DOUBT, NOW, NOW)
    assert after.doubt_since == (refund.doubt_since or since)
    assert after.first_attempt_at is not None
    assert after.first_attempt_at <= since
    assert (after.baseline, after.absent_at, after.proven_absent_at, after.found_at) == (None, None, None, None)


def test_failed_refund_that_may_have_been_retried_since_the_snapshot_is_not_retried_without_a_look() -> None:
    refund = failed()
    step = recovered(refund, NOW - HOUR, NOW)
    assert retry_failed(refund if step is None else with_changes(refund, step, NOW)) is None


def test_refund_that_may_have_been_let_go_from_review_since_the_snapshot_is_not_let_go_without_a_look() -> None:
    refund = a_refund(Stage.REVIEW)
    step = recovered(refund, NOW - HOUR, NOW)
    after = refund if step is None else with_changes(refund, step, NOW)
    assert after.stage is not Stage.REVIEW or resolve_resend(after).to is Stage.IN_DOUBT


def test_persons_word_of_absence_is_worth_nothing_after_a_recovery() -> None:
    told = a_refund(Stage.IN_DOUBT, operator_says="absent")
    step = recovered(told, NOW - HOUR, NOW)
    assert step is not None
    after = with_changes(told, step, NOW)
    look = after_look(after, Look(sight=Sight.INCONCLUSIVE, reason="so"), VERIFY, NOW, 0)
    assert look.changes.get("proven_absent_at") is None


def test_refund_that_may_have_been_retried_since_the_snapshot_is_read_back_before_any_replay() -> None:
    # The lost retry had another key, so the provider would execute this one beside it.
    refund = a_refund(Stage.QUEUED)
    step = recovered(refund, NOW - HOUR, NOW)
    assert step is not None
    assert next_action(with_changes(refund, step, NOW), TRUST, NOW) is Action.LOOK


# Cancel, retry, reversal


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_refund_of_which_nothing_happened_is_canceled(stage: Stage) -> None:
    step = cancel(a_refund(stage))
    assert (step.to, step.status) == (Stage.SETTLED, Status.CANCELED)


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.IN_DOUBT, Stage.PROCESSING, Stage.REVIEW, Stage.SETTLED])
def test_refund_that_may_have_reached_the_provider_is_not_canceled(stage: Stage) -> None:
    with pytest.raises(NotCancelable, match="order-1001-1 is "):
        cancel(a_refund(stage))


def failed(**fields: Any) -> Refund:
    return a_refund(Stage.SETTLED, **({"status": Status.FAILED, "retriable": Retriable.YES} | fields))


def test_retry_of_a_failed_refund_is_a_new_generation_that_remembers_nothing_of_the_old_verdict() -> None:
    refund = failed(error_code="x", failure_reason="x", all_remaining=True)
    step = retry_failed(refund)
    assert step is not None
    after = with_changes(refund, step, NOW)
    assert (after.stage, after.generation, after.amount) == (Stage.QUEUED, 2, None)
    assert (after.error_code, after.failure_reason, after.provider_refund_id, after.first_attempt_at) == (None,) * 4


@pytest.mark.parametrize(
    "refund",
    [
        failed(retriable=Retriable.NO),
        failed(status=Status.SUCCEEDED),
        failed(status=Status.CANCELED),
        *(a_refund(stage) for stage in Stage if stage is not Stage.SETTLED),
    ],
    ids=lambda refund: f"{refund.stage}-{refund.status}",
)
def test_nothing_but_a_retriable_failed_refund_is_retried(refund: Refund) -> None:
    assert retry_failed(refund) is None


def test_succeeded_refund_that_the_provider_turned_failed_is_failed_with_an_alarm() -> None:
    step = reversed_by_provider(a_refund(Stage.SETTLED), found(status="failed", failure_reason="unknown"))
    assert step is not None
    assert (step.to, step.status) == (Stage.SETTLED, Status.FAILED)
    assert step.alarm


@pytest.mark.parametrize(
    ("refund", "seen"),
    [
        (a_refund(Stage.SETTLED), found(status="succeeded")),
        (a_refund(Stage.SETTLED), found(status="pending")),
        (a_refund(Stage.SETTLED), found(id="re_other", status="failed")),
        (failed(), found(status="failed")),
        (a_refund(Stage.PROCESSING), found(status="failed")),
    ],
)
def test_only_the_very_refund_that_had_succeeded_can_be_reversed(refund: Refund, seen: Any) -> None:
    assert reversed_by_provider(refund, seen) is None


@law
@given(refund=refunds(), status=st.sampled_from(["pending", "succeeded", "failed", "canceled", None]))
def test_proof_of_done_settles_or_processes_and_never_anything_else(refund: Refund, status: str | None) -> None:
    step = done(refund, found(status=status), "reply", NOW)
    assert step.proof
    assert (step.to, step.status) == (
        (Stage.PROCESSING, Status.PENDING) if status in {None, "pending"} else (Stage.SETTLED, Status(str(status)))
    )
    assert step.changes["provider_refund_id"] == "re_1"
