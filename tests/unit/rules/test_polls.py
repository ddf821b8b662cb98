"""How long a refund waits, and what a poll of a pending one leads to."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import (
    HOUR,
    NOT_SENT,
    NOW,
    SECOND,
    VERIFY,
    a_refund,
    a_reply,
    an_error,
    refund_payload,
)
from tests.strategies import jitters, spans
from tests.unit.rules.stepping import with_changes
from worker.model.answers import Answer, NoReply, NotSent
from worker.model.refund import Refund, Stage, Status
from worker.rules import preflight
from worker.rules.attempts import MAX_PROCESSING, PARKED, after_attempt, backoff
from worker.rules.decisions import resolve_resend
from worker.rules.polls import after_poll, says_gone
from worker.rules.proofs import poll_delay
from worker.rules.readback import MISSING_FOR

law = settings(deadline=None, max_examples=100)


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
    delays = [
        after_attempt(a_refund(attempts=n), NOT_SENT, VERIFY, NOW, 0.999).delay
        for n in range(1, 15)
    ]
    assert delays == sorted(delays, key=lambda delay: delay or timedelta(0))
    assert delays[0] is not None
    assert delays[-1] is not None
    assert delays[0] <= 10 * SECOND
    assert HOUR / 2 <= delays[-1] <= HOUR


@law
@given(age=spans, later=spans)
def test_polls_of_a_pending_refund_grow_rarer_with_its_age_within_bounds(
    age: timedelta, later: timedelta
) -> None:
    assert SECOND <= poll_delay(age) <= 6 * HOUR
    assert poll_delay(age) <= poll_delay(age + later)


def test_refund_pending_for_thirty_days_is_polled_a_few_hundred_times_then_reviewed() -> None:
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
    "answer",
    [
        NotSent(reason="refused"),
        NoReply(reason="reset"),
        a_reply(503),
        an_error(429),
        an_error(401),
    ],
    ids=str,
)
def test_polls_that_are_never_answered_end_with_a_person_after_thirty_days(answer: Answer) -> None:
    young = a_refund(Stage.PROCESSING, processing_since=NOW - MAX_PROCESSING + SECOND)
    assert after_poll(young, answer, NOW, 0).to is Stage.PROCESSING
    old = a_refund(Stage.PROCESSING, processing_since=NOW - MAX_PROCESSING)
    step = after_poll(old, answer, NOW, 0)
    assert (step.to, step.label) == (Stage.REVIEW, "pending_too_long")
    assert step.alarm


def test_refund_that_is_missing_is_asked_for_ever_rarer_and_shown_to_a_person_after_an_hour() -> (
    None
):
    refund, now, polls = a_refund(Stage.PROCESSING), NOW, 0
    gone = an_error(404, "resource_missing")
    while (step := after_poll(refund, gone, now, 0.5)).to is Stage.PROCESSING:
        assert step.delay is not None
        refund, now, polls = with_changes(refund, step, now), now + step.delay, polls + 1
    assert (step.to, step.label) == (Stage.REVIEW, "refund_missing")
    assert step.alarm
    assert HOUR <= now - NOW <= 1.5 * HOUR
    assert 5 < polls < 30


def test_refund_that_was_missing_and_is_shown_again_has_a_whole_hour_the_next_time() -> None:
    refund = a_refund(Stage.PROCESSING, missing_since=NOW - HOUR)
    shown = with_changes(
        refund, after_poll(refund, a_reply(200, refund_payload(status="pending")), NOW, 0), NOW
    )
    assert after_poll(shown, an_error(404), NOW, 0).to is Stage.PROCESSING


@pytest.mark.parametrize("status", ["succeeded", "failed", "canceled"])
def test_poll_that_says_final_settles(status: str) -> None:
    step = after_poll(
        a_refund(Stage.PROCESSING), a_reply(200, refund_payload(status=status)), NOW, 0
    )
    assert (step.to, step.status, step.proof) == (Stage.SETTLED, Status(status), True)


@pytest.mark.parametrize(
    "answer",
    [
        NotSent(reason="refused"),
        NoReply(reason="reset"),
        a_reply(503),
        an_error(429),
        an_error(401),
        an_error(409),
    ],
    ids=str,
)
def test_poll_that_was_not_answered_only_looks_again_later(answer: Answer) -> None:
    step = after_poll(a_refund(Stage.PROCESSING), answer, NOW, 0)
    assert (step.to, step.quiet, step.changes) == (Stage.PROCESSING, True, {})


@pytest.mark.parametrize(
    "answer",
    [
        a_reply(200, refund_payload(id="re_other")),
        a_reply(200, refund_payload(amount=1)),
        a_reply(200, refund_payload(payment_intent="pi_other", status="pending")),
    ],
    ids=["another id", "another amount", "another payment"],
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
        (
            a_refund(Stage.PROCESSING, missing_since=NOW - MISSING_FOR),
            an_error(404, "resource_missing"),
        ),
        (a_refund(Stage.PROCESSING), a_reply(200, refund_payload(amount=1))),
        (
            a_refund(Stage.PROCESSING, processing_since=NOW - MAX_PROCESSING),
            a_reply(200, refund_payload(status="pending")),
        ),
    ],
    ids=["gone", "contradictory", "pending too long"],
)
def test_refund_that_the_provider_once_had_is_not_sent_again_without_a_look(
    refund: Refund, answer: Answer
) -> None:
    reviewed = with_changes(refund, after_poll(refund, answer, NOW, 0), NOW)
    assert reviewed.stage is Stage.REVIEW
    step = resolve_resend(reviewed)
    assert (step.to, step.changes["operator_says"]) == (Stage.IN_DOUBT, "absent")


def test_poll_that_shows_another_word_for_pending_keeps_that_word() -> None:
    refund = a_refund(Stage.PROCESSING, provider_status="pending")
    step = after_poll(refund, a_reply(200, refund_payload(status="requires_action")), NOW, 0)
    assert (step.to, step.changes) == (Stage.PROCESSING, {"provider_status": "requires_action"})
    same = a_refund(Stage.PROCESSING, provider_status="requires_action")
    assert (
        after_poll(same, a_reply(200, refund_payload(status="requires_action")), NOW, 0).changes
        == {}
    )


NAMED = a_refund(Stage.PROCESSING, operator_says="succeeded", operator_by="ann")
OTHER_SUM = refund_payload(amount=7, currency="eur", metadata={})


def test_amount_and_currency_that_a_person_insists_on_are_recorded_as_the_provider_shows() -> None:
    assert after_poll(NAMED, a_reply(200, OTHER_SUM), NOW, 0).to is Stage.REVIEW
    insisting = replace(NAMED, operator_unverified=True)
    step = after_poll(insisting, a_reply(200, OTHER_SUM), NOW, 0)
    assert (step.to, step.status, step.source) == (Stage.SETTLED, Status.SUCCEEDED, "operator")
    assert (step.changes["amount"], step.changes["currency"]) == (7, "eur")
    # By the person's word, though the provider shows our own id.
    ours = a_reply(200, OTHER_SUM | {"metadata": {"refund_id": "order-1001-1"}})
    assert after_poll(insisting, ours, NOW, 0).source == "operator"


@pytest.mark.parametrize(
    "fields",
    [
        {"object": "charge"},
        {"amount": 0},
        {"metadata": {"refund_id": "order-2"}},
        {"payment_intent": "pi_other"},
    ],
    ids=str,
)
def test_person_cannot_insist_on_what_cannot_be_this_refund(fields: dict[str, Any]) -> None:
    insisting = replace(NAMED, operator_unverified=True)
    assert after_poll(insisting, a_reply(200, OTHER_SUM | fields), NOW, 0).to is Stage.REVIEW


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, None),
        ({"metadata": {"refund_id": "order-2"}}, None),
        ({"payment_intent": "pi_other"}, None),
        ({"metadata": {"refund_id": NAMED.refund_id}}, "re_1"),
        ({"metadata": {"refund_id": NAMED.refund_id, "refund_generation": "2"}}, "re_1"),
        ({"metadata": {"refund_id": NAMED.refund_id}, "payment_intent": "pi_other"}, None),
        ({"id": "re_2"}, "re_1"),
        ({"id": "re_2", "amount": NAMED.amount, "currency": NAMED.currency}, "re_1"),
        ({"status": "odd", "amount": NAMED.amount, "currency": NAMED.currency}, "re_1"),
    ],
    ids=str,
)
def test_named_refund_that_may_be_this_one_all_the_same_is_kept_as_an_earlier_one(
    fields: dict[str, Any], kept: str | None
) -> None:
    step = after_poll(NAMED, a_reply(200, OTHER_SUM | fields), NOW, 0)
    assert (step.to, step.changes["provider_refund_id"]) == (Stage.REVIEW, None)
    assert step.changes.get("prior_refund_ids") == kept


def test_insisted_on_refund_that_is_pending_is_recorded_once_and_then_followed() -> None:
    insisting = replace(NAMED, operator_unverified=True)
    pending = a_reply(200, OTHER_SUM | {"status": "pending"})
    step = after_poll(insisting, pending, NOW, 0)
    assert (step.to, step.quiet) == (Stage.PROCESSING, False)
    assert (step.changes["operator_by"], step.changes["operator_unverified"]) == ("ann", True)
    followed = with_changes(insisting, step, NOW)
    assert (followed.operator_says, followed.operator_unverified) == (None, True)
    again = after_poll(replace(followed, provider_status="requires_action"), pending, NOW, 0)
    assert (again.to, again.quiet) == (Stage.PROCESSING, True)
    assert again.changes == {"provider_status": "pending"}


@pytest.mark.parametrize(
    ("generation", "prior_ids"),
    [(None, None), ("1", "re_1"), ("2", None), ("3", None)],
)
def test_insisted_on_refund_of_another_generation_is_read_before_a_retry_unless_it_is_a_later_one(
    generation: str | None, prior_ids: str | None
) -> None:
    insisting = replace(NAMED, operator_unverified=True, generation=2, contradicted_by="re_1")
    metadata = {"refund_id": NAMED.refund_id}
    if generation is not None:
        metadata["refund_generation"] = generation
    shown = a_reply(200, OTHER_SUM | {"metadata": metadata})
    step = after_poll(insisting, shown, NOW, 0)
    assert step.to is Stage.SETTLED
    assert step.changes.get("prior_refund_ids") == prior_ids


@pytest.mark.parametrize(
    ("answer", "since", "kept"),
    [
        (a_reply(200, refund_payload(status="odd")), NOW, "re_1"),
        (a_reply(200, refund_payload(status="pending")), NOW - MAX_PROCESSING, "re_1"),
        (a_reply(200, refund_payload(id="re_9")), NOW, "re_1"),
        (a_reply(200, OTHER_SUM), NOW, None),
    ],
)
def test_named_refund_that_may_be_ours_is_read_before_anything_is_sent(
    answer: Answer, since: datetime, kept: str | None
) -> None:
    step = after_poll(replace(NAMED, processing_since=since), answer, NOW, 0)
    assert (step.to, step.changes["provider_refund_id"]) == (Stage.REVIEW, None)
    assert step.changes.get("prior_refund_ids") == kept


def test_person_may_insist_on_a_refund_that_does_not_name_its_kind() -> None:
    insisting = replace(NAMED, operator_unverified=True)
    unnamed = {name: value for name, value in OTHER_SUM.items() if name != "object"}
    assert after_poll(insisting, a_reply(200, unnamed), NOW, 0).status is Status.SUCCEEDED


def test_person_insists_in_vain_if_the_poll_is_not_answered() -> None:
    insisting = replace(NAMED, operator_unverified=True)
    for answer in (NoReply(reason="reset"), NotSent(reason="refused")):
        assert after_poll(insisting, answer, NOW, 0).to is Stage.PROCESSING


def test_poll_says_that_the_refund_is_gone_by_every_404() -> None:
    missing = an_error(404, "resource_missing")
    for since in (NOW, NOW - MISSING_FOR):
        step = after_poll(a_refund(Stage.PROCESSING, missing_since=since), missing, NOW, 0)
        assert (step.label, says_gone(step)) == (
            "missing" if since == NOW else "refund_missing",
            True,
        )
    assert not says_gone(after_poll(a_refund(Stage.PROCESSING), a_reply(200), NOW, 0))


def test_refund_whose_payment_is_lost_waits_where_it_is() -> None:
    step = preflight.account_lost(a_refund(Stage.WAITING))
    assert (step.to, step.label, step.quiet, step.delay) == (
        Stage.WAITING,
        "account_lost",
        True,
        PARKED,
    )


def test_failure_without_words_is_told_by_its_status_alone() -> None:
    step = after_poll(
        a_refund(Stage.PROCESSING), a_reply(200, refund_payload(status="failed")), NOW, 0
    )
    assert step.changes["error_message"] == "the provider reports the refund as failed"
