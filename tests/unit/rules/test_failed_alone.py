"""A refund of the provider that failed ends ours only if nothing else may have been made for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import HOUR, MINUTE, NOW, a_refund, found
from tests.unit.rules.stepping import ANEW, DAY, NO_WORD, TOLD, pending, plain
from worker.model.refund import Baseline, Refund, Retriable, Stage, Status
from worker.rules.proofs import done_alone

LATER = NOW + MINUTE
BASELINE = Baseline(refunded=0, currency="usd", remaining=1000)
BY_WORD = {"absent_by_word": True, "resends": 1}
BY_TOTALS = {"baseline": BASELINE, "resends": 1}


def in_doubt(**fields: Any) -> Refund:
    return a_refund(Stage.IN_DOUBT, **fields)


def failed(**fields: Any) -> Any:
    return found(id="re_2", status="failed", failure_reason="lost_or_stolen_card", **fields)


def asked(label: str, **more: Any) -> Any:
    """The step that asks a person, and keeps the failed refund as an earlier one."""
    source = more.pop("source")
    changes = {
        "error_code": label,
        "error_message": TOLD,
        "retriable": Retriable.NO,
        "doubt_since": NOW - MINUTE,
        "quiet_at": NOW - MINUTE,
        "prior_refund_ids": "re_2",
        "provider_refund_id": None,
        "provider_status": None,
        "processing_since": None,
        "evidence": None,
        **NO_WORD,
        **ANEW,
    }
    return pending(Stage.REVIEW, label, changes | more, DAY, alarm=TOLD, source=source)


@pytest.mark.parametrize("source", ["reply", "lookup", "list"])
def test_send_on_a_persons_word_that_failed_is_shown_to_a_person(source: str) -> None:
    step = done_alone(in_doubt(**BY_WORD), failed(), source, LATER)
    assert plain(step) == asked("lost_or_stolen_card", source=source)
    assert step.alarm is not None
    assert "only a person says that an earlier attempt did not happen" in step.alarm
    assert "the provider reports the refund as failed" in step.changes["error_message"]


def test_doubt_begins_now_if_there_was_none() -> None:
    refund = in_doubt(**BY_WORD, doubt_since=None, quiet_at=None)
    step = done_alone(refund, failed(), "reply", LATER)
    expected = asked("lost_or_stolen_card", source="reply", doubt_since=LATER, quiet_at=LATER)
    assert plain(step) == expected


def test_failed_one_is_kept_after_those_known_before_and_only_once() -> None:
    refund = in_doubt(**BY_WORD, prior_refund_ids="re_0 re_2 re_1")
    step = done_alone(refund, failed(), "reply", LATER)
    assert step.changes["prior_refund_ids"] == "re_0 re_2 re_1"
    refund = in_doubt(**BY_WORD, prior_refund_ids="re_0")
    step = done_alone(refund, failed(), "reply", LATER)
    assert step.changes["prior_refund_ids"] == "re_0 re_2"


def test_what_webhooks_named_beside_the_failed_one_is_read_again() -> None:
    refund = in_doubt(**BY_WORD, prior_refund_ids="re_0", hints_used="re_0 re_2 re_8? re_9")
    step = done_alone(refund, failed(), "lookup", LATER)
    assert (step.to, step.changes["hinted"]) == (Stage.REVIEW, "re_8 re_9")


def test_canceled_one_moved_nothing_either() -> None:
    step = done_alone(in_doubt(**BY_WORD), found(id="re_2", status="canceled"), "reply", LATER)
    assert (step.to, step.label) == (Stage.REVIEW, "canceled")


@pytest.mark.parametrize("status", ["succeeded", "pending"])
def test_one_that_moves_money_is_recorded_as_it_is_shown(status: str) -> None:
    step = done_alone(in_doubt(**BY_WORD), found(id="re_2", status=status), "reply", LATER)
    expected = Status.SUCCEEDED if status == "succeeded" else Status.PENDING
    assert (step.status, step.changes["provider_refund_id"]) == (expected, "re_2")


@pytest.mark.parametrize(
    "fields",
    [
        {"absent_by_word": True, "resends": 0},
        {"absent_by_word": None, "resends": 1},
        BY_WORD | {"operator_says": "succeeded", "operator_by": "ann"},
        BY_WORD | {"provider_refund_id": "re_9"},
    ],
    ids=["word not followed", "no word", "named by a person", "another is known"],
)
def test_failed_one_ends_the_refund_if_nothing_is_left_beside_it(fields: dict[str, Any]) -> None:
    step = done_alone(in_doubt(**fields), failed(), "reply", LATER)
    assert (step.to, step.status) == (Stage.SETTLED, Status.FAILED)


@pytest.mark.parametrize(
    ("generation", "fields", "ends"),
    [
        ("1", {}, False),
        ("2", {}, True),
        ("3", {}, True),
        (None, {}, True),
        ("x", {}, True),
        # The retry was never sent, or did nothing.
        ("1", {"doubt_since": None}, True),
        # That one had been shown as pending, which ended the doubt.
        ("1", {"doubt_since": None, "doubted": True}, False),
    ],
)
@pytest.mark.parametrize("says", ["succeeded", None])
def test_failed_one_of_an_earlier_generation_does_not_end_the_doubt_of_a_retry(
    generation: str | None, fields: dict[str, Any], says: str | None, *, ends: bool
) -> None:
    named = {"generation": 2, "provider_refund_id": "re_2", "operator_says": says}
    step = done_alone(in_doubt(**named | fields), failed(generation=generation), "lookup", LATER)
    expected = (Stage.SETTLED, Status.FAILED) if ends else (Stage.REVIEW, Status.PENDING)
    assert (step.to, step.status) == expected


def test_failed_one_of_an_earlier_generation_contradicts_nothing_any_more() -> None:
    known = {"generation": 2, "provider_refund_id": "re_2", "contradicted_by": "re_2"}
    refund = in_doubt(**known, operator_says="succeeded", operator_by="ann")
    step = done_alone(refund, failed(generation="1"), "lookup", LATER)
    assert plain(step) == asked("lost_or_stolen_card", source="lookup", contradicted_by=None)


@pytest.mark.parametrize("known", [None, "re_2"])
def test_word_counts_whether_the_failed_one_was_known_before_or_not(known: str | None) -> None:
    refund = in_doubt(**BY_WORD, provider_refund_id=known)
    assert done_alone(refund, failed(), "reply", LATER).to is Stage.REVIEW


@pytest.mark.parametrize("says", ["absent", "failed"])
def test_word_that_names_no_refund_says_nothing_of_the_failed_one(says: str) -> None:
    refund = in_doubt(**BY_WORD, operator_says=says, operator_by="ann")
    step = done_alone(refund, failed(), "reply", LATER)
    assert plain(step) == asked("lost_or_stolen_card", source="reply")


@pytest.mark.parametrize(
    "fields",
    [BY_TOTALS, {"retry_may_be_lost": True}, BY_TOTALS | {"retry_may_be_lost": True}],
    ids=["absent by totals", "restored", "both"],
)
def test_failed_one_that_was_read_by_its_id_may_be_of_an_earlier_send(
    fields: dict[str, Any],
) -> None:
    step = done_alone(in_doubt(**fields), failed(), "lookup", LATER)
    assert plain(step) == asked("lost_or_stolen_card", source="lookup")
    assert step.alarm is not None
    assert "may be of an earlier attempt than the latest" in step.alarm


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        (BY_TOTALS, "reply"),
        (BY_TOTALS, "list"),
        (BY_TOTALS | {"provider_refund_id": "re_2"}, "lookup"),
        (BY_TOTALS | {"doubt_since": None}, "lookup"),
        (BY_TOTALS | {"resends": 0}, "lookup"),
        (BY_TOTALS | {"baseline": None}, "lookup"),
        ({}, "lookup"),
    ],
    ids=["a reply", "a list", "known", "no doubt", "sent once", "never by totals", "nothing"],
)
def test_failed_one_is_of_the_latest_send_if_no_other_may_have_made_it(
    fields: dict[str, Any], source: str
) -> None:
    step = done_alone(in_doubt(**fields), failed(), source, LATER)
    assert (step.to, step.status) == (Stage.SETTLED, Status.FAILED)


def test_nothing_of_a_pending_refund_stays_in_a_record_that_a_person_sees() -> None:
    refund = a_refund(Stage.PROCESSING, provider_refund_id="re_2", **BY_WORD)
    step = done_alone(refund, failed(), "lookup", NOW + HOUR)
    gone = ("provider_refund_id", "provider_status", "processing_since", "evidence")
    assert [step.changes.get(name, "left") for name in gone] == [None] * 4
