"""What a webhook named carries our id and contradicts the refund: each step in full."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.factories import HOUR, NOW, a_refund, a_reply, found, refund_payload
from tests.unit.rules.stepping import NO_WORD
from worker.model.refund import Stage, Status
from worker.model.steps import Step
from worker.rules.outcomes import says_nothing
from worker.rules.proofs import to_review
from worker.rules.rechecks import Candidate, in_conflict, is_told, judge_candidate

UNSENT = a_refund(Stage.WAITING, amount=500)
UNREAD = {"provider_refund_id": None, "processing_since": None, "missing_since": None}


def odd(status: str = "succeeded", amount: int = 7) -> Candidate:
    answer = a_reply(200, refund_payload(UNSENT, id="re_9", status=status, amount=amount))
    return judge_candidate(UNSENT, "re_9", answer)


SAID = "re_9 was read: it has our id but another amount"


@pytest.mark.parametrize(
    ("status", "so_far"),
    [
        ("succeeded", ""),
        ("pending", ""),
        ("failed", ", and moved nothing so far (failed)"),
        ("canceled", ", and moved nothing so far (canceled)"),
    ],
)
def test_reason_says_whether_the_odd_one_moved_nothing_so_far(status: str, so_far: str) -> None:
    assert odd(status).reason == f"it has our id but another amount{so_far}"


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, {}),
        ({"doubt_since": NOW - HOUR}, {"doubt_since": NOW - HOUR}),
        ({"operator_says": "absent"}, {}),
        (
            {
                "operator_says": "succeeded",
                "provider_refund_id": "re_2",
                "prior_refund_ids": "re_0 re_1",
            },
            {**UNREAD, "prior_refund_ids": "re_0 re_1 re_2"},
        ),
        ({"operator_says": "succeeded"}, UNREAD),
        ({"error_message": "its card was lost"}, {}),
        ({"error_code": "conflict", "error_message": "of an earlier review"}, {}),
    ],
)
def test_odd_one_leads_an_unsent_refund_to_a_person(
    fields: dict[str, Any], more: dict[str, Any]
) -> None:
    reason = f"the provider's refund {SAID}"
    changes = {"error_code": "conflict", "error_message": reason, "doubt_since": NOW, **NO_WORD}
    step = replace(to_review(changes | more, "conflict", reason), source="lookup")
    assert in_conflict(replace(UNSENT, **fields), odd(), NOW) == step


def test_second_odd_one_is_added_to_what_the_review_says() -> None:
    review = a_refund(Stage.REVIEW, amount=500, error_code="conflict", error_message="re_8 is odd")
    step = in_conflict(review, odd(), NOW)
    assert step is not None
    assert step.changes["error_message"] == f"re_8 is odd; the provider's refund {SAID}"
    told = replace(review, error_message=step.changes["error_message"])
    assert is_told(told, odd())
    assert in_conflict(told, odd(), NOW) is None
    # A refund in review for another reason does not say it, whatever its message is.
    other = replace(told, error_code="unreadable")
    assert not is_told(other, odd())
    step = in_conflict(other, odd(), NOW)
    assert step is not None
    assert step.changes["error_message"] == f"the provider's refund {SAID}"


def test_refund_that_is_being_sent_is_left_to_its_attempt() -> None:
    assert in_conflict(a_refund(Stage.SENDING, amount=500), odd(), NOW) is None


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_odd_one_of_a_settled_refund_is_read_before_a_retry(status: Status) -> None:
    settled = a_refund(Stage.SETTLED, status=status, prior_refund_ids="re_0")
    for shown in ("succeeded", "pending"):
        assert in_conflict(settled, odd(shown), NOW) == Step(
            to=Stage.SETTLED,
            status=status,
            label="conflict",
            changes={"prior_refund_ids": "re_0 re_9"},
            source="lookup",
            quiet=True,
        )


@pytest.mark.parametrize(
    ("settled", "shown"),
    [
        (a_refund(Stage.SETTLED, status=Status.CANCELED), "succeeded"),
        (a_refund(Stage.SETTLED, status=Status.FAILED), "failed"),
        (a_refund(Stage.SETTLED, status=Status.FAILED), "canceled"),
        (a_refund(Stage.SETTLED, status=Status.FAILED, prior_refund_ids="re_9"), "succeeded"),
    ],
    ids=["canceled", "the odd one failed", "the odd one was canceled", "it is read anyway"],
)
def test_odd_one_that_no_retry_could_meet_changes_nothing(settled: Any, shown: str) -> None:
    assert in_conflict(settled, odd(shown), NOW) is None


@pytest.mark.parametrize(
    ("recorded", "says", "nothing"),
    [
        (None, None, False),
        ("re_9", None, False),
        ("re_1", None, True),
        ("re_1", "succeeded", False),
    ],
)
def test_failed_refund_beside_the_recorded_one_says_nothing(
    recorded: str | None, says: str | None, *, nothing: bool
) -> None:
    refund = a_refund(Stage.PROCESSING, provider_refund_id=recorded, operator_says=says)
    assert says_nothing(found(id="re_9", status="failed"), refund) is nothing
    assert says_nothing(found(id="re_9", status="succeeded"), refund) is False
