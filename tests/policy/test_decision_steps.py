"""Each decision of the caller, a person or a recovery in full."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, NOW, a_refund
from tests.policy.stepping import ANEW, DAY, DROPPED, TOLD, pending, plain, settled
from worker.decisions import cancel, recovered, resolve_failed, resolve_resend, resolve_succeeded, retry_failed
from worker.errors import InvalidRequest, NotCancelable
from worker.model import Refund, Retriable, Stage, Status, Step


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_cancel_leads_to_this_step_and_no_other(stage: Stage) -> None:
    assert cancel(a_refund(stage)) == settled(Status.CANCELED, "canceled", DROPPED)


def test_refusal_to_cancel_says_whether_it_is_over_or_on_its_way() -> None:
    with pytest.raises(NotCancelable, match="already succeeded"):
        cancel(a_refund(Stage.SETTLED))
    with pytest.raises(NotCancelable, match="may have reached the provider"):
        cancel(a_refund(Stage.WAITING, doubt_since=NOW))
    with pytest.raises(NotCancelable, match="may have reached the provider"):
        cancel(a_refund(Stage.SENDING))


def test_person_who_names_the_providers_refund_leads_to_this_step_and_no_other() -> None:
    changes = {"provider_refund_id": "re_7", "processing_since": NOW, "operator_says": "succeeded"}
    assert resolve_succeeded(a_refund(Stage.REVIEW), "re_7", NOW) == pending(
        Stage.PROCESSING, "operator_says_succeeded", changes, timedelta(0)
    )


def test_id_that_could_not_be_asked_for_is_refused_with_all_that_is_known_of_it() -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_succeeded(a_refund(Stage.REVIEW), "re 7", NOW)
    (error,) = caught.value.errors
    assert (error.field, error.code, error.value) == ("provider_refund_id", "provider_refund_id", "'re 7'")
    assert error.rule


def test_person_who_says_failed_leads_to_this_step_and_no_other() -> None:
    changes = {
        **DROPPED,
        "error_code": "declined",
        "error_message": TOLD,
        "retriable": Retriable.NO,
        "evidence": "operator",
    }
    assert plain(resolve_failed(a_refund(Stage.REVIEW), "declined")) == settled(
        Status.FAILED, "operator_says_failed", changes
    )


def test_person_who_says_absent_leads_to_these_steps_and_no_others() -> None:
    never = a_refund(Stage.REVIEW, doubt_since=None)
    assert resolve_resend(never) == pending(
        Stage.WAITING,
        "operator_says_absent",
        {"lapses": 0, "provider_refund_id": None, "operator_says": None},
        timedelta(0),
    )
    doubted = a_refund(Stage.REVIEW, doubt_since=NOW)
    assert resolve_resend(doubted) == pending(
        Stage.IN_DOUBT,
        "operator_says_absent",
        {"operator_says": "absent", "lapses": 0, "provider_refund_id": None, **ANEW},
        timedelta(0),
    )


@pytest.mark.parametrize(("all_remaining", "amount"), [(True, {"amount": None}), (False, {})])
def test_retry_leads_to_this_step_and_no_other(*, all_remaining: bool, amount: dict[str, Any]) -> None:
    failed = a_refund(
        Stage.SETTLED, status=Status.FAILED, retriable=Retriable.UNKNOWN, generation=2, all_remaining=all_remaining
    )
    cleared = (
        "provider_refund_id",
        "provider_status",
        "failure_reason",
        "error_code",
        "error_message",
        "retriable",
        "evidence",
        "first_attempt_at",
    )
    assert retry_failed(failed) == Step(
        to=Stage.QUEUED,
        status=Status.PENDING,
        label="retried",
        changes=dict.fromkeys(cleared) | {"generation": 3} | amount,
    )


SINCE = NOW - HOUR
RECOVERED = {
    "doubt_since": SINCE,
    "operator_says": None,
    "retriable": Retriable.NO,
    "first_attempt_at": SINCE,
    "quiet_at": NOW,
    "baseline": None,
    "lapses": 0,
    "server_errors": 3,
    **ANEW,
}


@pytest.mark.parametrize(
    ("refund", "step"),
    [
        (a_refund(Stage.QUEUED), pending(Stage.IN_DOUBT, "recovered", RECOVERED, timedelta(0))),
        (a_refund(Stage.SENDING), pending(Stage.IN_DOUBT, "recovered", RECOVERED, timedelta(0))),
        (
            a_refund(Stage.IN_DOUBT, doubt_since=SINCE - HOUR, first_attempt_at=SINCE - HOUR),
            pending(
                Stage.IN_DOUBT,
                "recovered",
                RECOVERED | {"doubt_since": SINCE - HOUR, "first_attempt_at": SINCE - HOUR},
                timedelta(0),
            ),
        ),
        (
            a_refund(Stage.REVIEW),
            pending(
                Stage.REVIEW,
                "recovered",
                {"doubt_since": SINCE, "operator_says": None, "retriable": Retriable.NO},
                DAY,
                quiet=True,
            ),
        ),
        (a_refund(Stage.PROCESSING), None),
        (a_refund(Stage.SETTLED), None),
        (a_refund(Stage.SETTLED, status=Status.FAILED, retriable=Retriable.NO), None),
        (
            a_refund(Stage.SETTLED, status=Status.FAILED, retriable=Retriable.YES),
            settled(Status.FAILED, "recovered", {"retriable": Retriable.NO}, quiet=True),
        ),
    ],
)
def test_recovery_leads_to_this_step_and_no_other(refund: Refund, step: Step | None) -> None:
    assert recovered(refund, SINCE, NOW) == step
