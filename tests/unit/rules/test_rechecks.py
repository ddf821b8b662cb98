"""Rules of rechecks: whose a named refund is, and what a settled one has become."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.factories import (
    BLIND,
    HOUR,
    NOW,
    PAYMENT,
    TRUST,
    VERIFY,
    a_refund,
    a_reply,
    an_error,
    found,
    refund_payload,
)
from tests.unit.rules.stepping import NO_WORD
from worker.errors import NotCancelable
from worker.model.answers import Answer, NoReply, NotSent, ReadbackVerdict
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Action
from worker.rules import preflight, rechecks
from worker.rules.attempts import next_action
from worker.rules.decisions import cancel
from worker.rules.outcomes import contradiction
from worker.rules.rechecks import (
    CandidateVerdict,
    RecheckResult,
    after_recheck,
    as_readback,
    changed_by_provider,
    identified,
    judge_candidate,
    prior_done,
    was_never_sent,
)

OTHER = {"refund_id": "other", "refund_generation": "1"}


def shown(**fields: Any) -> Answer:
    return a_reply(200, refund_payload(id="re_9", **fields))


def ours(generation: str | None = "1", refund_id: str = "order-1001-1") -> dict[str, str]:
    named = {"refund_id": refund_id}
    return named if generation is None else named | {"refund_generation": generation}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (shown(), CandidateVerdict.OURS),
        (shown(status="pending"), CandidateVerdict.OURS),
        (shown(status="failed"), CandidateVerdict.OURS),
        (shown(metadata=ours(None)), CandidateVerdict.OURS),
        (shown(payment_intent=None), CandidateVerdict.OURS),
        (shown(metadata=ours("2")), CandidateVerdict.LATER),
        (shown(metadata=ours("x")), CandidateVerdict.CONTRADICTS),
        (shown(amount=499), CandidateVerdict.CONTRADICTS),
        (shown(currency="eur"), CandidateVerdict.CONTRADICTS),
        (shown(status=None), CandidateVerdict.CONTRADICTS),
        (shown(status="odd"), CandidateVerdict.CONTRADICTS),
        (shown(payment_intent="pi_other"), CandidateVerdict.OTHER),
        (shown(metadata=OTHER), CandidateVerdict.OTHER),
        (shown(metadata={}), CandidateVerdict.UNNAMED),
        (shown(metadata={}, amount=499), CandidateVerdict.OTHER),
        (a_reply(200, refund_payload(id="re_8")), CandidateVerdict.UNREADABLE),
        (a_reply(200, {"object": "list"}), CandidateVerdict.UNREADABLE),
        (an_error(404), CandidateVerdict.MISSING),
        (an_error(500), CandidateVerdict.UNREADABLE),
        (an_error(429), CandidateVerdict.UNREADABLE),
        (an_error(403), CandidateVerdict.UNREADABLE),
        (NotSent(reason="so"), CandidateVerdict.UNREADABLE),
        (NoReply(reason="so"), CandidateVerdict.UNREADABLE),
    ],
)
def test_named_refund_is_ours_only_if_it_carries_our_id_and_nothing_contradicts(
    answer: Answer, verdict: CandidateVerdict
) -> None:
    candidate = judge_candidate(a_refund(Stage.IN_DOUBT), "re_9", answer)
    assert candidate.verdict is verdict
    is_read = verdict not in {CandidateVerdict.MISSING, CandidateVerdict.UNREADABLE}
    assert candidate.is_read is is_read
    assert (candidate.found is not None) is is_read
    assert (candidate.reason != "") is (verdict is CandidateVerdict.CONTRADICTS)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("succeeded", CandidateVerdict.EARLIER),
        ("pending", CandidateVerdict.EARLIER),
        ("odd", CandidateVerdict.EARLIER),
        ("failed", CandidateVerdict.OTHER),
        ("canceled", CandidateVerdict.OTHER),
    ],
)
def test_earlier_generation_counts_unless_it_moved_nothing(
    status: str, verdict: CandidateVerdict
) -> None:
    refund = a_refund(Stage.QUEUED, generation=2)
    candidate = judge_candidate(refund, "re_9", shown(status=status, metadata=ours("1")))
    assert candidate.verdict is verdict


def test_earlier_generation_of_another_amount_contradicts_and_says_so() -> None:
    refund = a_refund(Stage.QUEUED, generation=2)
    candidate = judge_candidate(refund, "re_9", shown(amount=499, metadata=ours("1")))
    assert candidate.verdict is CandidateVerdict.CONTRADICTS
    assert candidate.reason == "it has our id but another amount"
    step = rechecks.in_conflict(refund, candidate, NOW)
    assert step is not None
    reason = "the provider's refund re_9 was read: it has our id but another amount"
    assert (step.to, step.label, step.source) == (Stage.REVIEW, "conflict", "lookup")
    # A person who had decided did not know of it.
    told = {"error_code": "conflict", "error_message": reason, "doubt_since": NOW}
    assert step.changes == told | NO_WORD


@pytest.mark.parametrize("http_status", [199, 300, 400])
def test_refund_in_an_answer_that_is_not_a_success_is_not_shown(http_status: int) -> None:
    assert rechecks.shown_refund(a_reply(http_status, refund_payload())) is None
    assert rechecks.shown_refund(a_reply(299, refund_payload())) is not None


def test_refund_of_any_generation_that_a_person_set_aside_is_news_once_it_moved_money() -> None:
    refund = a_refund(Stage.SETTLED, status=Status.FAILED, generation=2, set_aside_ids="re_9")
    assert rechecks.priors_of(refund) == ("re_9",)
    for generation in ("1", "2", "3"):
        answer = shown(metadata=ours(generation))
        result, _ = rechecks.after_prior_recheck(refund, "re_9", answer)
        assert result is RecheckResult.CHANGED


PRIOR = a_refund(Stage.SETTLED, generation=2, prior_refund_ids="re_9", provider_refund_id="re_10")


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (shown(status="failed", metadata=ours("1")), RecheckResult.CONFIRMED),
        (shown(status="canceled", metadata=ours("1")), RecheckResult.CONFIRMED),
        (shown(status="succeeded", metadata=ours("1")), RecheckResult.CHANGED),
        (shown(status="pending", metadata=ours("1")), RecheckResult.CHANGED),
        (shown(status=None, metadata=ours("1")), RecheckResult.CONTRADICTS),
        (shown(status="odd", metadata=ours("1")), RecheckResult.CONTRADICTS),
        (shown(amount=499, metadata=ours("1")), RecheckResult.CONTRADICTS),
        # A person had named another's by mistake.
        (shown(payment_intent="pi_other"), RecheckResult.CONFIRMED),
        (shown(amount=499, metadata={"refund_id": "order-2002-1"}), RecheckResult.CONFIRMED),
        (a_reply(200, refund_payload(id="re_8")), RecheckResult.AGAIN),
        (an_error(404), RecheckResult.AGAIN),
        (an_error(500), RecheckResult.AGAIN),
    ],
)
def test_earlier_refund_of_a_settled_one_had_failed_and_anything_else_of_ours_is_news(
    answer: Answer, result: RecheckResult
) -> None:
    seen, refund = rechecks.after_prior_recheck(PRIOR, "re_9", answer)
    assert seen is result
    assert (refund is None) is (result is RecheckResult.AGAIN)


@pytest.mark.parametrize(
    "differs", [{"payment_intent": "pi_other"}, {"metadata": {"refund_id": "order-2002-1"}}]
)
def test_earlier_refund_that_was_the_records_own_is_news_if_it_is_shown_as_anothers(
    differs: dict[str, Any],
) -> None:
    seen, _ = rechecks.after_prior_recheck(PRIOR, "re_9", shown(**differs), owner=PRIOR.refund_id)
    assert seen is RecheckResult.CONTRADICTS


def candidates(refund: Refund, **answers: Answer) -> list[rechecks.Candidate]:
    return [judge_candidate(refund, name, answer) for name, answer in answers.items()]


def refund_at(name: str, **fields: Any) -> Answer:
    return a_reply(200, refund_payload(id=name, **fields))


def test_doubt_is_over_with_the_one_candidate_that_is_ours() -> None:
    refund = a_refund(Stage.IN_DOUBT)
    read = candidates(
        refund,
        re_1=refund_at("re_1", metadata=OTHER),
        re_2=an_error(500),
        re_3=refund_at("re_3"),
    )
    read_back = as_readback(read)
    assert read_back is not None
    assert read_back.found is not None
    assert (read_back.verdict, read_back.found.id, read_back.source) == (
        ReadbackVerdict.FOUND,
        "re_3",
        "lookup",
    )


@pytest.mark.parametrize(
    "second",
    [
        {"metadata": ours("1")},
        {"metadata": ours("2")},
        {"metadata": ours("3")},
        {"amount": 1, "metadata": ours("2")},
    ],
)
def test_two_refunds_with_our_id_or_one_that_contradicts_are_a_conflict(
    second: dict[str, Any],
) -> None:
    refund = a_refund(Stage.IN_DOUBT, generation=2)
    read = candidates(
        refund, re_1=refund_at("re_1", metadata=ours("2")), re_2=refund_at("re_2", **second)
    )
    read_back = as_readback(read)
    assert read_back is not None
    assert (read_back.verdict, read_back.source) == (ReadbackVerdict.CONFLICT, "lookup")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (an_error(404), ReadbackVerdict.UNREADABLE),
        (an_error(500), ReadbackVerdict.UNREADABLE),
        (refund_at("re_1", metadata=OTHER), None),
        (refund_at("re_1", metadata={}), None),
    ],
)
def test_doubt_waits_for_a_candidate_that_could_not_be_read_and_for_no_other(
    answer: Answer, verdict: ReadbackVerdict | None
) -> None:
    read_back = as_readback(candidates(a_refund(Stage.IN_DOUBT), re_1=answer))
    assert (None if read_back is None else read_back.verdict) is verdict


# Settled refunds


@pytest.mark.parametrize("final", ["failed", "canceled"])
def test_succeeded_refund_that_the_provider_ends_otherwise_is_reversed(final: str) -> None:
    refund = a_refund(Stage.SETTLED)
    result, step = after_recheck(refund, a_reply(200, refund_payload(status=final)), NOW)
    assert (result, step) == (
        RecheckResult.CHANGED,
        changed_by_provider(refund, found(status=final), "lookup", NOW),
    )
    assert step is not None
    assert (step.to, step.status, step.label) == (Stage.SETTLED, Status.FAILED, "reversed")
    assert step.changes["reversed_at"] == NOW
    assert step.changes["retriable"] is Retriable.UNKNOWN
    assert step.changes["error_code"] == ("canceled" if final == "canceled" else "unknown")
    assert step.alarm is not None


@pytest.mark.parametrize(
    "other", [{"amount": 499}, {"currency": "eur"}, {"payment_intent": "pi_2"}, {"refund_id": "x"}]
)
@pytest.mark.parametrize("all_remaining", [True, False])
def test_list_entry_with_other_contents_changes_no_settled_refund(
    other: dict[str, Any], *, all_remaining: bool
) -> None:
    refund = a_refund(Stage.SETTLED, all_remaining=all_remaining)
    assert changed_by_provider(refund, found(status="failed", **other), "list", NOW) is None
    failed = replace(refund, status=Status.FAILED)
    assert changed_by_provider(failed, found(**other), "list", NOW) is None


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELED])
def test_failed_refund_that_the_provider_shows_as_succeeded_is_unreversed(status: Status) -> None:
    refund = a_refund(
        Stage.SETTLED,
        status=status,
        error_code="unknown",
        reversed_at=NOW - HOUR,
        amount=None,
        all_remaining=True,
    )
    result, step = after_recheck(refund, a_reply(), NOW)
    assert result is RecheckResult.CHANGED
    assert step is not None
    assert (step.status, step.label) == (Status.SUCCEEDED, "unreversed")
    assert step.changes == {
        "failure_reason": None,
        "error_code": None,
        "error_message": None,
        "retriable": None,
        "reversed_at": None,
        "provider_status": "succeeded",
        "evidence": "lookup",
        "amount": 500,
    }
    assert step.alarm is not None
    assert step.source == "lookup"


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (a_reply(), RecheckResult.CONFIRMED),
        (a_reply(200, refund_payload(status="pending")), RecheckResult.AGAIN),
        (a_reply(200, refund_payload(status="odd")), RecheckResult.AGAIN),
        (a_reply(200, refund_payload(id="re_2", status="failed")), RecheckResult.AGAIN),
        (an_error(404), RecheckResult.AGAIN),
        (an_error(500), RecheckResult.AGAIN),
        (NoReply(reason="so"), RecheckResult.AGAIN),
        (a_reply(200, refund_payload(status="failed", amount=499)), RecheckResult.CONTRADICTS),
        (a_reply(200, refund_payload(status="failed", currency="eur")), RecheckResult.CONTRADICTS),
        (a_reply(200, refund_payload(status="failed", metadata=OTHER)), RecheckResult.CONTRADICTS),
    ],
)
def test_answer_that_shows_no_other_end_changes_nothing(
    answer: Answer, result: RecheckResult
) -> None:
    assert after_recheck(a_refund(Stage.SETTLED), answer, NOW) == (result, None)


def test_failed_and_canceled_are_not_changed_into_each_other() -> None:
    for status, final in ((Status.FAILED, "canceled"), (Status.CANCELED, "failed")):
        refund = a_refund(Stage.SETTLED, status=status)
        assert after_recheck(refund, a_reply(200, refund_payload(status=final)), NOW) == (
            RecheckResult.CONFIRMED,
            None,
        )


def test_amount_that_the_provider_found_for_all_that_was_left_must_agree_later() -> None:
    refund = a_refund(Stage.SETTLED, all_remaining=True, amount=400)
    assert after_recheck(refund, a_reply(), NOW) == (RecheckResult.CONTRADICTS, None)


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.SETTLED])
def test_refund_that_is_not_settled_is_not_changed_by_a_recheck(stage: Stage) -> None:
    refund = a_refund(stage, provider_refund_id="re_1")
    assert changed_by_provider(refund, found(status="failed"), "list", NOW) is None
    assert changed_by_provider(refund, found(), "list", NOW) is None


def test_refund_proven_by_totals_learns_its_id_and_no_other_does() -> None:
    blind = a_refund(Stage.SETTLED, provider_refund_id=None, evidence="totals", amount=None)
    step = identified(blind, found(id="re_9"))
    assert step is not None
    assert (step.status, step.label, step.source) == (Status.SUCCEEDED, "identified", "lookup")
    assert step.changes == {
        "provider_refund_id": "re_9",
        "provider_status": "succeeded",
        "evidence": "lookup",
        "amount": 500,
    }
    assert identified(blind, found(status="failed")) is None
    assert identified(a_refund(Stage.SETTLED), found(id="re_9")) is None
    assert identified(a_refund(Stage.IN_DOUBT), found(id="re_9")) is None
    failed = a_refund(Stage.SETTLED, status=Status.FAILED, provider_refund_id=None)
    assert identified(failed, found(id="re_9")) is None


def test_amount_that_the_provider_does_not_show_leaves_the_recorded_one() -> None:
    silent = found(amount=None)
    failed = a_refund(Stage.SETTLED, status=Status.FAILED)
    blind = a_refund(Stage.SETTLED, provider_refund_id=None)
    for step in (changed_by_provider(failed, silent, "list", NOW), identified(blind, silent)):
        assert step is not None
        assert step.status is Status.SUCCEEDED
        assert "amount" not in step.changes


# Retries


RETRIED = a_refund(Stage.QUEUED, generation=2, first_attempt_at=None, prior_refund_ids="re_1")


@pytest.mark.parametrize("final", ["failed", "canceled"])
def test_retry_may_be_sent_if_its_earlier_refund_moved_nothing(final: str) -> None:
    assert preflight.after_prior(RETRIED, found(status=final), NOW, may_have_left=False) is None


@pytest.mark.parametrize(
    ("status", "stage", "end"),
    [
        ("succeeded", Stage.SETTLED, Status.SUCCEEDED),
        ("pending", Stage.PROCESSING, Status.PENDING),
    ],
)
def test_retry_takes_its_earlier_refund_if_that_was_done_after_all(
    status: str, stage: Stage, end: Status
) -> None:
    step = preflight.after_prior(RETRIED, found(status=status), NOW, may_have_left=False)
    assert step == prior_done(RETRIED, found(status=status), NOW)
    assert step is not None
    assert (step.to, step.status, step.label) == (stage, end, "prior_succeeded")
    assert step.changes["provider_refund_id"] == step.changes["prior_refund_ids"] == "re_1"
    assert not step.proof
    assert step.alarm is not None


@pytest.mark.parametrize("odd", [{"amount": 1}, {"status": "odd"}, {"refund_id": "other"}])
def test_retry_goes_to_a_person_if_its_earlier_refund_shows_other_contents(
    odd: dict[str, Any],
) -> None:
    step = preflight.after_prior(RETRIED, found(**odd), NOW, may_have_left=False)
    assert step is not None
    assert (step.to, step.label) == (Stage.REVIEW, "prior_contradicts")


def test_refund_of_an_earlier_generation_agrees_only_if_the_record_names_it() -> None:
    earlier = found(id="re_1", generation="1")
    assert contradiction(earlier, RETRIED) is None
    assert contradiction(found(id="re_7", generation="1"), RETRIED) == "metadata.refund_generation"


@pytest.mark.parametrize(
    ("fields", "never"),
    [
        ({}, True),
        ({"stage": Stage.WAITING}, True),
        ({"first_attempt_at": NOW}, False),
        ({"doubted": True}, False),
        ({"doubt_since": NOW}, False),
        ({"stage": Stage.REVIEW}, False),
        ({"stage": Stage.SENDING}, False),
    ],
)
def test_refund_was_never_sent_only_if_nothing_of_its_generation_can_have_left(
    fields: dict[str, Any], *, never: bool
) -> None:
    known = {"stage": Stage.QUEUED, "first_attempt_at": None} | fields
    assert was_never_sent(a_refund(**known)) is never


# Actions


@pytest.mark.parametrize(
    ("stage", "recheck", "action"),
    [
        (Stage.QUEUED, False, Action.RECHECK),
        (Stage.WAITING, False, Action.RECHECK),
        (Stage.IN_DOUBT, False, Action.READ_BACK),
        (Stage.SENDING, False, Action.LAPSE),
        (Stage.PROCESSING, False, Action.POLL),
        (Stage.PROCESSING, True, Action.RECHECK),
        (Stage.REVIEW, False, Action.NOTHING),
        (Stage.REVIEW, True, Action.RECHECK),
        (Stage.SETTLED, False, Action.NOTHING),
        (Stage.SETTLED, True, Action.RECHECK),
    ],
)
def test_what_a_webhook_named_is_read_before_anything_is_sent(
    stage: Stage, action: Action, *, recheck: bool
) -> None:
    refund = a_refund(stage, hinted="re_9", next_check_at=NOW)
    for rules in (VERIFY, TRUST, BLIND):
        assert next_action(refund, rules, NOW, recheck=recheck) is action


def test_refund_that_waits_with_a_candidate_is_not_read_before_its_time() -> None:
    refund = a_refund(Stage.WAITING, hinted="re_9", next_check_at=NOW + HOUR)
    assert next_action(refund, VERIFY, NOW) is Action.NOTHING


def test_unreadable_candidate_of_an_unsent_refund_is_named_to_a_person() -> None:
    step = rechecks.unreadable_hint(a_refund(Stage.QUEUED, hinted="re_9"))
    assert (step.to, step.label) == (Stage.REVIEW, "hint_unreadable")
    assert step.changes["error_code"] == "hint_unreadable"
    assert "re_9" in step.changes["error_message"]
    assert PAYMENT not in step.changes["error_message"]


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_refund_with_a_candidate_cannot_be_canceled_until_that_was_read(stage: Stage) -> None:
    with pytest.raises(NotCancelable, match="re_9, which a webhook named"):
        cancel(a_refund(stage, hinted="re_9"))
    assert cancel(a_refund(stage)).status is Status.CANCELED


def test_replay_of_a_retry_whose_earlier_refund_was_done_is_a_conflict_and_not_sent() -> None:
    step = preflight.after_prior(
        a_refund(Stage.IN_DOUBT, generation=2, prior_refund_ids="re_1"),
        found(generation="1"),
        NOW,
        may_have_left=True,
    )
    assert step is not None
    assert (step.to, step.label) == (Stage.REVIEW, "conflict")
