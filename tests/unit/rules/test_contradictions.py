"""A proof that the record does not allow for: what is kept of it, and how a person ends it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, NOW, a_refund, a_reply, found, refund_payload
from tests.unit.rules.stepping import (
    DAY,
    NO_WORD,
    TOLD,
    assert_is_a_move,
    pending,
    plain,
    settled,
    with_changes,
)
from worker.errors import GuardRefused, InvalidRequest, NotInReview, NotRetriable
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules.contradictions import contradicted, ended, forbid_other_ends
from worker.rules.decisions import (
    resolve_failed,
    resolve_resend,
    resolve_succeeded,
    retry_failed,
    retry_one,
)
from worker.rules.polls import after_poll
from worker.rules.proofs import done
from worker.rules.rechecks import changed_by_provider, priors_of

PROOF = done(a_refund(), found(id="re_2"), "reply", NOW)
FAILED = a_refund(
    Stage.SETTLED, status=Status.FAILED, provider_refund_id=None, retriable=Retriable.YES
)
TWICE = a_refund(Stage.SETTLED, contradicted_by="re_2")


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELED])
def test_refund_that_did_not_succeed_keeps_its_status_and_the_proof_that_it_was_made(
    status: Status,
) -> None:
    refund = replace(FAILED, status=status)
    step = contradicted(refund, PROOF, NOW)
    changes = {"contradicted_by": "re_2", "retriable": Retriable.NO}
    assert plain(step) == settled(status, "contradicted", changes, alarm=TOLD, source="reply")
    assert step is not None
    assert step.alarm == f"it is recorded as {status}, but the provider shows re_2 for it"
    assert_is_a_move(step, refund)


def test_second_refund_beside_one_that_succeeded_is_kept_with_an_alarm() -> None:
    step = contradicted(a_refund(Stage.SETTLED), replace(PROOF, source="list"), NOW)
    changes = {"contradicted_by": "re_2"}
    assert plain(step) == settled(
        Status.SUCCEEDED, "contradicted", changes, alarm=TOLD, source="list"
    )
    assert step is not None
    assert step.alarm == "the provider shows re_2 for it beside re_1: money may have moved twice"


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.SETTLED])
@pytest.mark.parametrize("since", [None, NOW - HOUR])
def test_refund_that_is_still_on_its_way_goes_to_a_person_and_is_not_sent(
    stage: Stage, since: Any
) -> None:
    refund = a_refund(stage, doubt_since=since, provider_refund_id=None, generation=2)
    step = contradicted(refund, PROOF, NOW)
    changes = {"contradicted_by": "re_2", "doubt_since": since or NOW}
    assert plain(step) == pending(Stage.REVIEW, "contradicted", changes, DAY, alarm=TOLD)
    assert step is not None
    assert step.alarm is not None
    assert "re_2 for it, beside the refund that generation 2 may make" in step.alarm
    assert_is_a_move(step, refund)
    beside = contradicted(replace(refund, provider_refund_id="re_1"), PROOF, NOW)
    assert beside is not None
    assert "beside re_1: money may move twice" in str(beside.alarm)


@pytest.mark.parametrize("says", ["absent", "failed", "succeeded"])
def test_contradiction_ends_a_decision_that_nothing_happened_and_keeps_a_named_refund(
    says: str,
) -> None:
    decided = {"operator_says": says, "operator_by": "ann", "operator_unverified": True}
    step = contradicted(a_refund(Stage.IN_DOUBT, **decided), PROOF, NOW)
    assert step is not None
    ended_word = {} if says == "succeeded" else NO_WORD
    assert {k: v for k, v in step.changes.items() if k in NO_WORD} == ended_word


@pytest.mark.parametrize(
    ("refund", "proof"),
    [
        (a_refund(Stage.SETTLED, provider_refund_id="re_2"), PROOF),
        (replace(FAILED, contradicted_by="re_2"), PROOF),
        (FAILED, done(a_refund(), found(id="re_2", status="failed"), "reply", NOW)),
        (FAILED, done(a_refund(), found(id="re_2", status="canceled"), "reply", NOW)),
        (FAILED, Step(to=Stage.SETTLED, status=Status.SUCCEEDED, label="found_in_totals")),
    ],
)
def test_what_is_known_already_or_moved_nothing_contradicts_nothing(
    refund: Refund, proof: Step
) -> None:
    assert contradicted(refund, proof, NOW) is None


def test_proof_that_is_not_final_contradicts_as_well() -> None:
    proof = done(a_refund(), found(id="re_2", status="pending"), "list", NOW)
    step = contradicted(FAILED, proof, NOW)
    assert step is not None
    assert step.changes["contradicted_by"] == "re_2"


# How it ends


def test_person_who_names_the_refund_that_was_made_has_it_read() -> None:
    refund = replace(FAILED, contradicted_by="re_2")
    step = resolve_succeeded(refund, "re_2", NOW, by="ann")
    changes = {
        "provider_refund_id": "re_2",
        "processing_since": NOW,
        "operator_says": "succeeded",
        "operator_by": "ann",
    }
    assert step == pending(
        Stage.PROCESSING,
        "operator_says_succeeded",
        changes,
        timedelta(0),
        source="operator",
        by="ann",
    )
    assert_is_a_move(step, refund)
    after = after_poll(
        with_changes(refund, step, NOW), a_reply(200, refund_payload(id="re_2")), NOW, 0
    )
    assert (after.status, after.changes["contradicted_by"], after.source) == (
        Status.SUCCEEDED,
        None,
        "lookup",
    )


def test_person_who_names_the_one_that_is_recorded_leaves_it_as_it_is() -> None:
    step = resolve_succeeded(TWICE, "re_1", NOW, by="ann")
    changes = {"contradicted_by": None, "set_aside_ids": "re_2"}
    assert step == settled(
        Status.SUCCEEDED, "operator_says_succeeded", changes, source="operator", by="ann"
    )


def test_person_may_name_the_second_one_instead() -> None:
    assert ended(TWICE, "re_2", NOW, "ann").to is Stage.PROCESSING


@pytest.mark.parametrize(
    ("refund", "named", "known"),
    [
        (TWICE, "re_3", "re_1 or re_2"),
        (replace(FAILED, contradicted_by="re_2"), "re_3", "re_2"),
        # It succeeded by the totals, which show no id.
        (replace(TWICE, provider_refund_id=None), "re_3", "re_2"),
        # It failed, and what contradicts it did not.
        (replace(FAILED, provider_refund_id="re_1", contradicted_by="re_2"), "re_1", "re_2"),
    ],
)
def test_person_can_name_none_but_those_that_contradict_each_other(
    refund: Refund, named: str, known: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_succeeded(refund, named, NOW)
    (error,) = caught.value.errors
    assert (error.field, error.code, error.value) == (
        "provider_refund_id",
        "provider_refund_id",
        f"'{named}'",
    )
    assert error.rule == f"must be {known}, which the provider shows for this refund"


@pytest.mark.parametrize("refund", [TWICE, a_refund(Stage.REVIEW, contradicted_by="re_2")])
def test_what_the_provider_shows_can_neither_be_given_up_nor_sent_again(refund: Refund) -> None:
    told = "re_2 for refund order-1001-1, so it can neither be failed nor sent"
    with pytest.raises(GuardRefused, match=told):
        resolve_failed(refund, "gone")
    with pytest.raises(GuardRefused, match=told):
        resolve_resend(refund)
    forbid_other_ends(replace(refund, contradicted_by=None))


def test_settled_refund_that_nothing_contradicts_is_not_for_a_person() -> None:
    with pytest.raises(NotInReview):
        resolve_succeeded(a_refund(Stage.SETTLED), "re_1", NOW)


def test_failed_refund_that_the_provider_shows_as_made_is_not_retried() -> None:
    assert retry_failed(FAILED) is not None
    refund = replace(FAILED, contradicted_by="re_2")
    assert retry_failed(refund) is None
    with pytest.raises(GuardRefused, match="re_2"):
        retry_one(refund, unknown=False)


def test_earlier_generation_that_came_to_light_is_taken_where_a_person_names_it() -> None:
    named = a_refund(
        Stage.PROCESSING, generation=2, contradicted_by="re_1", operator_says="succeeded"
    )
    named = replace(named, operator_by="ann")
    shown = a_reply(
        200, refund_payload(metadata={"refund_id": "order-1001-1", "refund_generation": "1"})
    )
    step = after_poll(named, shown, NOW, 0)
    assert (step.status, step.changes["contradicted_by"], step.source) == (
        Status.SUCCEEDED,
        None,
        "lookup",
    )
    # Nobody else's generation is.
    assert after_poll(replace(named, contradicted_by="re_9"), shown, NOW, 0).to is Stage.REVIEW
    odd = a_reply(
        200, refund_payload(metadata={"refund_id": "order-1001-1", "refund_generation": "x"})
    )
    assert after_poll(named, odd, NOW, 0).to is Stage.REVIEW


def test_contradiction_stands_until_a_person_has_ended_it() -> None:
    refund = a_refund(Stage.REVIEW, contradicted_by="re_2")
    assert "contradicted_by" not in done(refund, found(), "reply", NOW).changes
    assert "contradicted_by" not in done(a_refund(operator_by="ann"), found(), "reply", NOW).changes


# What a person did not name


@pytest.mark.parametrize("retriable", [Retriable.YES, Retriable.UNKNOWN])
def test_refund_beside_which_a_person_set_another_aside_is_not_retried(
    retriable: Retriable,
) -> None:
    refund = replace(FAILED, retriable=retriable, set_aside_ids="re_2 re_3")
    assert retry_failed(refund) is None
    with pytest.raises(NotRetriable, match="re_2 and re_3 for it, which may have moved the money"):
        retry_one(refund, unknown=True)


@pytest.mark.parametrize(
    ("named", "kept"), [("re_1", "re_2"), ("re_2", "re_1"), ("re_3", "re_1 re_2")]
)
def test_refund_in_review_keeps_what_the_provider_showed_beside_the_named_one(
    named: str, kept: str
) -> None:
    refund = a_refund(Stage.REVIEW, provider_refund_id="re_1", contradicted_by="re_2")
    assert resolve_succeeded(refund, named, NOW).changes["set_aside_ids"] == kept
    # Without its own refund only the other one is known.
    alone = replace(refund, provider_refund_id=None)
    assert resolve_succeeded(alone, "re_1", NOW).changes["set_aside_ids"] == "re_2"


def test_what_was_set_aside_is_kept_at_the_next_decision_but_for_the_named_one() -> None:
    refund = replace(TWICE, set_aside_ids="re_7 re_2")
    assert ended(refund, "re_2", NOW, "ann").changes["set_aside_ids"] == "re_7 re_1"
    alone = a_refund(
        Stage.REVIEW, provider_refund_id="re_1", contradicted_by="re_1", set_aside_ids="re_1"
    )
    assert resolve_succeeded(alone, "re_1", NOW).changes["set_aside_ids"] is None


def test_nothing_is_set_aside_if_nothing_contradicts() -> None:
    refund = a_refund(Stage.REVIEW, provider_refund_id="re_1")
    assert "set_aside_ids" not in resolve_succeeded(refund, "re_2", NOW).changes


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELED])
@pytest.mark.parametrize("own", [None, "re_1"])
def test_own_refund_that_moved_nothing_is_read_before_a_retry_of_the_named_one(
    own: str | None, status: Status
) -> None:
    refund = replace(
        FAILED,
        status=status,
        provider_refund_id=own,
        prior_refund_ids="re_0",
        contradicted_by="re_2",
    )
    changes = ended(refund, "re_2", NOW, "ann").changes
    assert changes.get("prior_refund_ids") == (None if own is None else "re_0 re_1")
    assert "set_aside_ids" not in changes


def test_what_a_person_set_aside_contradicts_no_success_and_every_failure() -> None:
    refund = a_refund(Stage.SETTLED, set_aside_ids="re_2", prior_refund_ids="re_2 re_0")
    assert contradicted(refund, PROOF, NOW) is None
    assert priors_of(refund) == ("re_0",)
    failed = replace(refund, status=Status.FAILED)
    assert contradicted(failed, PROOF, NOW) is not None
    assert priors_of(failed) == ("re_2", "re_0")
    assert priors_of(replace(failed, prior_refund_ids=None)) == ("re_2",)


def test_contradiction_is_not_over_if_another_than_the_named_one_turns_up() -> None:
    named = a_refund(Stage.PROCESSING, provider_refund_id="re_2", contradicted_by="re_2")
    named = replace(named, operator_says="succeeded", operator_by="ann")
    assert "contradicted_by" not in done(named, found(id="re_1"), "lookup", NOW).changes
    assert done(named, found(id="re_2"), "lookup", NOW).changes["contradicted_by"] is None


def test_named_refund_that_fails_beside_one_set_aside_is_not_retriable() -> None:
    named = a_refund(Stage.PROCESSING, provider_refund_id="re_2", set_aside_ids="re_1")
    step = done(named, found(id="re_2", status="failed"), "lookup", NOW)
    assert step.changes["retriable"] is Retriable.NO
    settled_one = a_refund(Stage.SETTLED, provider_refund_id="re_2", set_aside_ids="re_1")
    reversal = changed_by_provider(settled_one, found(id="re_2", status="failed"), "lookup", NOW)
    assert reversal is not None
    assert reversal.changes["retriable"] is Retriable.NO


def test_refund_in_review_beside_one_set_aside_can_be_ended_and_not_sent_again() -> None:
    refund = a_refund(Stage.REVIEW, set_aside_ids="re_1", doubt_since=NOW)
    with pytest.raises(GuardRefused, match="also showed re_1 for refund order-1001-1"):
        resolve_resend(refund, unverified=True)
    assert resolve_failed(refund, "gone").to is Stage.IN_DOUBT
    assert resolve_resend(replace(refund, set_aside_ids=None)).to is Stage.IN_DOUBT


# Several contradict one record


def test_further_refund_is_kept_beside_the_one_that_contradicts_already() -> None:
    step = contradicted(replace(TWICE, contradicted_by="re_7", set_aside_ids="re_8"), PROOF, NOW)
    assert step is not None
    assert step.changes == {"set_aside_ids": "re_8 re_2"}
    refund = replace(FAILED, contradicted_by="re_7", set_aside_ids="re_2")
    assert contradicted(refund, PROOF, NOW) is None
    assert priors_of(replace(refund, prior_refund_ids="re_2 re_0")) == ("re_0",)


@pytest.mark.parametrize(
    ("named", "by", "kept"),
    [("re_1", None, "re_3 re_2"), ("re_2", None, "re_3 re_1"), ("re_3", "re_3", "re_1 re_2")],
)
def test_person_may_name_any_of_several_and_the_others_are_set_aside(
    named: str, by: str | None, kept: str
) -> None:
    changes = ended(replace(TWICE, set_aside_ids="re_3"), named, NOW, "ann").changes
    assert (changes.get("contradicted_by"), changes["set_aside_ids"]) == (by, kept)
