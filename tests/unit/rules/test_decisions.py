"""What a recovery, the caller and a person decide."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import HOUR, NOW, TRUST, VERIFY, a_refund, found
from tests.strategies import refunds, spans
from tests.unit.rules.stepping import assert_is_a_move, with_changes
from worker.errors import NotCancelable
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Action
from worker.rules.attempts import next_action
from worker.rules.decisions import cancel, recovered, resolve_resend, retry_failed
from worker.rules.proofs import done
from worker.rules.readback import after_readback
from worker.rules.rechecks import changed_by_provider

law = settings(deadline=None, max_examples=100)


# Recovery


@law
@given(refund=refunds(), ago=spans)
def test_refund_that_may_have_been_sent_since_the_snapshot_begins_in_doubt_with_every_proof_anew(
    refund: Refund, ago: timedelta
) -> None:
    since = NOW - ago
    step = recovered(refund, since, NOW)
    if step is None:
        assert refund.stage is Stage.SETTLED or refund.retry_may_be_lost
        return
    assert_is_a_move(step, refund)
    if refund.stage in {Stage.PROCESSING, Stage.REVIEW, Stage.SETTLED}:
        # These are polled, wait for a person or are over; what they may still do is asked below.
        assert step.quiet or (refund.stage is Stage.REVIEW)
        assert not step.quiet or refund.stage is not Stage.REVIEW or refund.retry_may_be_lost
        return
    after = with_changes(refund, step, NOW)
    assert (after.stage, after.next_check_at) == (Stage.IN_DOUBT, NOW)
    lease_end = refund.next_check_at if refund.stage is Stage.SENDING else None
    assert after.quiet_at == max(NOW, lease_end or NOW)
    assert after.doubt_since == (refund.doubt_since or since)
    assert after.first_attempt_at is not None
    assert after.first_attempt_at <= since
    assert (after.baseline, after.absent_at, after.proven_absent_at, after.found_at) == (
        None,
        None,
        None,
        None,
    )


def test_failed_refund_that_may_have_been_retried_since_is_not_retried_without_a_read_back() -> (
    None
):
    refund = failed()
    step = recovered(refund, NOW - HOUR, NOW)
    assert retry_failed(refund if step is None else with_changes(refund, step, NOW)) is None


def test_refund_that_may_have_left_review_since_does_not_leave_it_without_a_read_back() -> None:
    refund = a_refund(Stage.REVIEW)
    step = recovered(refund, NOW - HOUR, NOW)
    after = refund if step is None else with_changes(refund, step, NOW)
    assert after.stage is not Stage.REVIEW or resolve_resend(after).to is Stage.IN_DOUBT


def test_persons_word_of_absence_is_worth_nothing_after_a_recovery() -> None:
    told = a_refund(Stage.IN_DOUBT, operator_says="absent")
    step = recovered(told, NOW - HOUR, NOW)
    assert step is not None
    after = with_changes(told, step, NOW)
    look = after_readback(
        after, Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so"), VERIFY, NOW, 0
    )
    assert look.changes.get("proven_absent_at") is None


def test_refund_that_may_have_been_retried_since_the_snapshot_is_read_back_before_any_replay() -> (
    None
):
    # The lost retry had another key, so the provider would execute this one beside it.
    refund = a_refund(Stage.QUEUED)
    step = recovered(refund, NOW - HOUR, NOW)
    assert step is not None
    assert next_action(with_changes(refund, step, NOW), TRUST, NOW) is Action.READ_BACK


# Cancel, retry, reversal


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_refund_of_which_nothing_happened_is_canceled(stage: Stage) -> None:
    step = cancel(a_refund(stage))
    assert (step.to, step.status) == (Stage.SETTLED, Status.CANCELED)


@pytest.mark.parametrize(
    "stage", [Stage.SENDING, Stage.IN_DOUBT, Stage.PROCESSING, Stage.REVIEW, Stage.SETTLED]
)
def test_refund_that_may_have_reached_the_provider_is_not_canceled(stage: Stage) -> None:
    with pytest.raises(NotCancelable, match="order-1001-1 is "):
        cancel(a_refund(stage))


def failed(**fields: Any) -> Refund:
    return a_refund(
        Stage.SETTLED, **({"status": Status.FAILED, "retriable": Retriable.YES} | fields)
    )


def test_retry_of_a_failed_refund_is_a_new_generation_without_the_old_verdict() -> None:
    refund = failed(error_code="x", failure_reason="x", all_remaining=True)
    step = retry_failed(refund)
    assert step is not None
    after = with_changes(refund, step, NOW)
    assert (after.stage, after.generation, after.amount) == (Stage.QUEUED, 2, None)
    assert (
        after.error_code,
        after.failure_reason,
        after.provider_refund_id,
        after.first_attempt_at,
    ) == (None,) * 4


@pytest.mark.parametrize(
    "refund",
    [
        failed(retriable=Retriable.NO),
        failed(retriable=Retriable.YES, retry_may_be_lost=True),
        failed(status=Status.SUCCEEDED),
        failed(status=Status.CANCELED),
        *(a_refund(stage) for stage in Stage if stage is not Stage.SETTLED),
    ],
    ids=lambda refund: f"{refund.stage}-{refund.status}-{refund.retriable}",
)
def test_nothing_but_a_retriable_failed_refund_is_retried(refund: Refund) -> None:
    assert retry_failed(refund) is None


def test_succeeded_refund_that_the_provider_turned_failed_is_failed_with_an_alarm() -> None:
    step = changed_by_provider(
        a_refund(Stage.SETTLED), found(status="failed", failure_reason="unknown"), "list", NOW
    )
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
    assert changed_by_provider(refund, seen, "list", NOW) is None


@law
@given(
    refund=refunds(), status=st.sampled_from(["pending", "succeeded", "failed", "canceled", None])
)
def test_proof_of_done_settles_or_processes_and_never_anything_else(
    refund: Refund, status: str | None
) -> None:
    step = done(refund, found(status=status), "reply", NOW)
    assert step.proof
    assert (step.to, step.status) == (
        (Stage.PROCESSING, Status.PENDING)
        if status in {None, "pending"}
        else (Stage.SETTLED, Status(str(status)))
    )
    assert step.changes["provider_refund_id"] == "re_1"
