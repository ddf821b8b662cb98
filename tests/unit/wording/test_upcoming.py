"""What happens to a refund next, in one sentence, for every stage and what holds it back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import NOW, a_refund
from worker.model.refund import Retriable, Stage, Status
from worker.wording.upcoming import next_of

SETTLED = {"stage": Stage.SETTLED, "next_check_at": None}
UNSENT = {**SETTLED, "attempts": 0, "provider_refund_id": None}
LOOKED_FOR = {"stage": Stage.IN_DOUBT, "operator_by": "ann"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stage": Stage.QUEUED}, "A worker sends it as soon as one is free."),
        ({"stage": Stage.SENDING}, "It is being sent now."),
        ({"stage": Stage.WAITING}, "the last attempt moved no money"),
        (
            {"stage": Stage.WAITING, "operator_says": "absent", "operator_by": "ann"},
            "ann decided to send it again: a worker first looks for it",
        ),
        ({"stage": Stage.IN_DOUBT}, "It may have happened"),
        ({"stage": Stage.PROCESSING}, "The provider has it and has not finished"),
        (
            {"stage": Stage.PROCESSING, "provider_status": "succeeded"},
            "The provider had reported it as succeeded long before that was saved",
        ),
        ({"stage": Stage.REVIEW}, "Nothing, until a person decides"),
        ({**SETTLED, "status": Status.SUCCEEDED}, "the money moved"),
        ({**UNSENT, "status": Status.CANCELED}, "before anything was sent"),
        (
            {**UNSENT, "status": Status.CANCELED, "provider_refund_id": "re_1"},
            "Nothing: it was canceled, and no money moved.",
        ),
        (
            {**SETTLED, "status": Status.CANCELED, "set_aside_ids": "re_2"},
            "it is canceled, but the provider also showed re_2",
        ),
        (
            {**SETTLED, "status": Status.CANCELED, "attempts": 1},
            "Nothing: it was canceled, and no money moved.",
        ),
        (
            {**UNSENT, "status": Status.CANCELED, "generation": 2},
            "Nothing: it was canceled, and no money moved.",
        ),
        (
            {**SETTLED, "status": Status.FAILED, "retriable": Retriable.YES},
            "to send it again can help",
        ),
        (
            {**SETTLED, "status": Status.FAILED, "retriable": Retriable.NO},
            "to send it again cannot help",
        ),
        ({**SETTLED, "status": Status.FAILED}, "it is not known whether"),
        (
            {**SETTLED, "status": Status.SUCCEEDED, "contradicted_by": "re_2"},
            "the provider shows otherwise",
        ),
        (
            {
                **SETTLED,
                "status": Status.FAILED,
                "reversed_at": NOW,
                "evidence": "lookup",
                "retriable": Retriable.NO,
            },
            "it had succeeded, and the provider reversed it; to send it again cannot help",
        ),
        (
            {**SETTLED, "status": Status.FAILED, "set_aside_ids": "re_2 re_3"},
            "the provider also showed re_2 and re_3 for it, which may have moved the money",
        ),
        (
            {**SETTLED, "status": Status.FAILED, "retry_may_be_lost": True},
            "it failed, but a retry of it may have been lost",
        ),
        ({"stage": Stage.REVIEW, "doubt_since": NOW}, "cannot find out whether the money moved"),
        (
            {**SETTLED, "status": Status.FAILED, "evidence": "operator"},
            "a person decided that it failed",
        ),
        (
            {**LOOKED_FOR, "operator_says": "failed"},
            "ann decided that it failed, so nothing is sent: a worker first looks for it",
        ),
        ({**LOOKED_FOR, "operator_says": "failed"}, "shows whether it is, it returns to review"),
        (
            {**LOOKED_FOR, "operator_says": "failed", "operator_unverified": True},
            "shows whether it is, it ends as failed too",
        ),
        (
            {**LOOKED_FOR, "operator_says": "absent"},
            "ann decided to send it again: a worker first looks for it",
        ),
        (
            {
                "stage": Stage.PROCESSING,
                "provider_refund_id": "re_7",
                "operator_says": "succeeded",
                "operator_by": "ann",
            },
            "ann decided that it is re_7: a worker reads that",
        ),
    ],
)
def test_every_stage_says_what_follows(fields: dict[str, Any], words: str) -> None:
    refund = a_refund(**{"next_check_at": NOW, **fields})
    assert words in next_of(refund, paused=False, batch_state=None)


@pytest.mark.parametrize(
    ("paused", "batch_state"), [(True, None), (False, "paused"), (False, "canceled")]
)
def test_refund_that_a_person_gave_up_is_never_said_to_be_sent(
    *, paused: bool, batch_state: str | None
) -> None:
    """A pause stops sends only, and a canceled batch ends only what no person has decided."""
    given_up = {"operator_says": "failed", "operator_by": "ann", "prior_refund_ids": "re_1"}
    refund = a_refund(stage=Stage.WAITING, next_check_at=NOW, **given_up)
    words = next_of(refund, paused=paused, batch_state=batch_state)
    assert words.startswith("ann decided that it failed, so nothing is sent: a worker first looks")


def test_row_of_a_canceled_batch_that_only_a_person_calls_absent_goes_to_review() -> None:
    refund = a_refund(stage=Stage.WAITING, doubted=True, evidence="operator")
    assert "goes to review" in next_of(refund, paused=False, batch_state="canceled")


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
@pytest.mark.parametrize(
    ("paused", "batch_state", "words"),
    [
        (True, None, "once everything is resumed"),
        (False, "paused", "once its batch is resumed"),
        (True, "canceled", "canceled unsent"),
        (False, "running", "sen"),
    ],
)
def test_what_is_not_sent_yet_says_what_holds_it(
    stage: Stage, *, paused: bool, batch_state: str | None, words: str
) -> None:
    refund = a_refund(stage=stage, next_check_at=NOW)
    assert words in next_of(refund, paused=paused, batch_state=batch_state)


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_what_is_not_sent_because_all_sending_is_stopped_promises_no_time(stage: Stage) -> None:
    refund = a_refund(stage=stage, next_check_at=NOW)
    said = next_of(refund, paused=False, batch_state=None, stopped=True)
    assert said == "It waits: nothing is sent now, and the overview says why."
    assert "paused now" in next_of(refund, paused=True, batch_state=None, stopped=True)


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.IN_DOUBT, Stage.PROCESSING])
def test_a_pause_holds_nothing_that_is_read_only(stage: Stage) -> None:
    refund = a_refund(stage=stage, next_check_at=NOW)
    assert "resumed" not in next_of(refund, paused=True, batch_state="paused")
