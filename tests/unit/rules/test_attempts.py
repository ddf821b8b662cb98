"""What one attempt leads to, the budget, and when the same key may go again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.factories import (
    BAD_KEY,
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
    done_as,
    found,
)
from tests.strategies import attempts, jitters, refunds, rules, spans
from tests.unit.rules.stepping import with_changes
from worker.model.answers import Outcome, TryVerdict
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Action
from worker.rules.attempts import (
    MAX_LAPSES,
    MAX_SERVER_ERRORS,
    SPARE,
    Rules,
    after_attempt,
    after_lapse,
    may_replay,
    may_try_again,
    next_action,
)
from worker.rules.outcomes import fold

law = settings(deadline=None, max_examples=100)


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
    assert (after.error_code, after.error_message, after.retriable) == (
        "amount_too_large",
        "too much",
        Retriable.NO,
    )


@pytest.mark.parametrize(
    ("code", "retriable"),
    [
        ("charge_already_refunded", Retriable.NO),
        ("balance_insufficient", Retriable.YES),
        ("something_new", Retriable.UNKNOWN),
    ],
)
def test_failed_refund_says_whether_sending_it_again_can_help(
    code: str, retriable: Retriable
) -> None:
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
    after = with_changes(
        refund, after_attempt(refund, done_as(amount=99, currency="eur"), VERIFY, NOW, 0), NOW
    )
    assert (after.amount, after.currency, after.provider_refund_id, after.evidence) == (
        99,
        "eur",
        "re_1",
        "reply",
    )
    assert after.asked_amount is None


def test_refund_that_failed_at_the_provider_says_why() -> None:
    step = after_attempt(
        a_refund(), done_as("failed", failure_reason="lost_or_stolen_card"), VERIFY, NOW, 0
    )
    assert step.changes["failure_reason"] == step.changes["error_code"] == "lost_or_stolen_card"
    assert step.changes["retriable"] is Retriable.NO


# Budget


@law
@given(refund=refunds(Stage.SENDING), tried=attempts, rules=rules, jitter=jitters)
def test_only_an_attempt_that_reached_a_verdict_counts_towards_the_budget(
    refund: Refund, tried: list[Outcome], rules: Rules, jitter: float
) -> None:
    outcome = fold(tried)
    assume(outcome.verdict is not TryVerdict.DONE)
    after = with_changes(refund, after_attempt(refund, outcome, rules, NOW, jitter), NOW)
    assume(after.stage is not Stage.SETTLED)
    counts = outcome.verdict not in {TryVerdict.NOT_SENT, TryVerdict.NOT_DONE}
    assert after.verdicts == refund.verdicts + counts


@pytest.mark.parametrize("outcome", [NOT_SENT, NOT_DONE])
def test_refund_that_never_got_through_is_not_given_up_for_its_number_of_attempts(
    outcome: Outcome,
) -> None:
    refund = a_refund(attempts=1000, first_attempt_at=NOW - HOUR)
    assert after_attempt(refund, outcome, VERIFY, NOW, 0).to is Stage.WAITING


@pytest.mark.parametrize("outcome", [NOT_SENT, NOT_DONE])
def test_refund_too_old_and_provably_never_done_is_given_up_and_may_be_retried(
    outcome: Outcome,
) -> None:
    young = a_refund(first_attempt_at=NOW - VERIFY.max_age + SECOND)
    assert after_attempt(young, outcome, VERIFY, NOW, 0).to is Stage.WAITING
    old = a_refund(first_attempt_at=NOW - VERIFY.max_age)
    after = with_changes(old, after_attempt(old, outcome, VERIFY, NOW, 0), NOW)
    assert (after.stage, after.error_code, after.retriable) == (
        Stage.SETTLED,
        "budget_spent",
        Retriable.YES,
    )


@pytest.mark.parametrize("outcome", [NOT_SENT, NOT_DONE])
def test_refund_that_a_restored_server_accepted_anew_is_as_old_as_its_acceptance(
    outcome: Outcome,
) -> None:
    """It may have been sent long ago, and is tried only since then."""
    sent = NOW - timedelta(days=30)
    young = a_refund(first_attempt_at=sent, created_at=NOW - VERIFY.max_age + SECOND)
    assert after_attempt(young, outcome, VERIFY, NOW, 0).to is Stage.WAITING
    old = a_refund(first_attempt_at=sent, created_at=NOW - VERIFY.max_age)
    assert after_attempt(old, outcome, VERIFY, NOW, 0).label == "budget_spent"


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
    assert next_action(after, TRUST, NOW + HOUR) is Action.READ_BACK


def test_queued_refund_never_ages_out() -> None:
    refund = a_refund(Stage.QUEUED, created_at=NOW - timedelta(days=3650))
    assert next_action(refund, VERIFY, NOW) is Action.SEND
    claimed = replace(refund, stage=Stage.SENDING, first_attempt_at=NOW, attempts=1)
    assert after_attempt(claimed, NOT_SENT, VERIFY, NOW, 0).to is Stage.WAITING


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
    assert next_action(replace(refund, next_check_at=last), TRUST, last) is Action.READ_BACK


def test_wait_that_would_outlast_the_window_reads_back_instead() -> None:
    refund = a_refund(first_attempt_at=NOW - TRUST.key_window + HOUR)
    after = with_changes(
        refund, after_attempt(refund, replace(MAYBE, retry_after=2 * HOUR), TRUST, NOW, 0), NOW
    )
    assert after.next_check_at is not None
    assert next_action(after, TRUST, after.next_check_at) is Action.READ_BACK


def test_three_5xx_in_a_row_inside_one_attempt_stop_the_tries() -> None:
    refund = a_refund()
    tried = [SERVER_ERROR] * MAX_SERVER_ERRORS
    assert [may_try_again(tried[:n], refund, TRUST) for n in (1, 2, 3)] == [True, True, False]


def test_three_5xx_in_a_row_over_several_attempts_stop_the_replays() -> None:
    refund = a_refund()
    for number in (1, 2, 3):
        refund = with_changes(
            refund, after_attempt(refund, fold([SERVER_ERROR]), TRUST, NOW, 0), NOW
        )
        assert refund.server_errors == number
        assert next_action(refund, TRUST, NOW + MINUTE) is (
            Action.REPLAY if number < 3 else Action.READ_BACK
        )
        refund = replace(refund, stage=Stage.SENDING)


def test_5xx_row_is_not_ended_by_a_try_that_never_left() -> None:
    refund = a_refund(server_errors=2)
    tried = [SERVER_ERROR, NOT_SENT]
    assert after_attempt(refund, fold(tried), TRUST, NOW, 0).changes["server_errors"] == 3
    assert not may_try_again([NOT_SENT, SERVER_ERROR], refund, TRUST)


def test_5xx_row_ends_with_any_other_answer() -> None:
    refund = a_refund(server_errors=2)
    assert after_attempt(refund, fold([MAYBE]), TRUST, NOW, 0).changes["server_errors"] == 0
    assert (
        after_attempt(refund, fold([MAYBE, SERVER_ERROR]), TRUST, NOW, 0).changes["server_errors"]
        == 1
    )
    assert may_try_again([MAYBE, SERVER_ERROR], refund, TRUST)
    assert not may_try_again([SERVER_ERROR], refund, TRUST)


@law
@given(tried=attempts, refund=refunds(Stage.SENDING))
def test_verdict_ends_the_tries_and_only_what_was_not_sent_is_free(
    tried: list[Outcome], refund: Refund
) -> None:
    last = tried[-1].verdict
    assert may_try_again(tried, refund, VERIFY) is (last is TryVerdict.NOT_SENT)
    if last in {TryVerdict.DONE, TryVerdict.REFUSED, TryVerdict.NOT_DONE, TryVerdict.MISMATCH}:
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


def test_attempt_whose_own_claimant_reports_is_quiet_from_the_moment_its_socket_was_closed() -> (
    None
):
    refund = a_refund(next_check_at=NOW + 30 * SECOND)
    assert after_attempt(refund, MAYBE, VERIFY, NOW, 0).changes["quiet_at"] == NOW


def test_lapsed_lease_is_quiet_from_its_end_for_nobody_knows_when_its_socket_was_closed() -> None:
    refund = a_refund(next_check_at=NOW)
    assert after_lapse(refund, VERIFY, NOW + HOUR, 0).changes["quiet_at"] == NOW


def test_workers_own_clock_may_veto_a_replay_and_never_allows_one() -> None:
    first = NOW - TRUST.key_window / 2
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=first, doubt_since=first, next_check_at=None)
    over = first + TRUST.key_window
    assert next_action(refund, TRUST, NOW) is Action.REPLAY
    assert next_action(refund, TRUST, NOW, NOW) is Action.REPLAY
    assert next_action(refund, TRUST, NOW, over) is Action.READ_BACK
    assert next_action(refund, TRUST, over, NOW) is Action.READ_BACK


def test_replay_may_leave_at_the_very_time_of_the_first_attempt_and_not_before() -> None:
    refund = a_refund(Stage.IN_DOUBT, first_attempt_at=NOW)
    assert may_replay(refund, TRUST, NOW)
    assert not may_replay(refund, TRUST, NOW - timedelta(milliseconds=1))


def test_reply_in_a_status_that_is_not_known_leads_to_a_person_by_that_reply() -> None:
    odd = replace(
        done_as("succeeded"),
        verdict=TryVerdict.MAYBE,
        code="unknown_status",
        found=found(status="on_hold"),
    )
    step = after_attempt(a_refund(), odd, VERIFY, NOW, 0)
    assert (step.to, step.label, step.source) == (Stage.REVIEW, "unknown_status", "reply")
    assert step.changes["provider_status"] == "on_hold"


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({"idempotency": "verify", "readback": "totals"}, True),
        ({"idempotency": "verify", "readback": "list"}, False),
        ({"idempotency": "verify", "readback": "list", "first_look": True}, True),
        ({"idempotency": "trust", "readback": "totals"}, False),
    ],
    ids=str,
)
def test_something_is_read_before_the_first_send_for_a_baseline_or_if_told_so(
    changes: dict[str, Any], *, reads: bool
) -> None:
    assert replace(VERIFY, **changes).reads_first is reads
