"""Each decision on a proof of done or a poll in full."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import (
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    VERIFY,
    a_refund,
    a_reply,
    an_error,
    done_as,
    found,
    refund_payload,
)
from tests.unit.rules.stepping import ANEW, DAY, DROPPED, NO_WORD, TOLD, pending, plain, settled
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules.attempts import after_attempt
from worker.rules.polls import after_poll
from worker.rules.proofs import done
from worker.rules.rechecks import changed_by_provider

# Proofs of done

DONE = {
    "provider_refund_id": "re_1",
    "provider_status": "succeeded",
    "evidence": "reply",
    "error_code": None,
    "error_message": None,
    "retriable": None,
    "doubt_since": None,
    **NO_WORD,
    **ANEW,
}
FAILED = {
    "failure_reason": "unknown",
    "error_code": "unknown",
    "error_message": TOLD,
    "retriable": Retriable.UNKNOWN,
}


@pytest.mark.parametrize(
    ("refund", "seen", "step"),
    [
        (
            a_refund(),
            found(),
            settled(
                Status.SUCCEEDED,
                "succeeded",
                DONE | {"amount": 500} | DROPPED,
                proof=True,
                source="reply",
            ),
        ),
        (
            a_refund(currency=None),
            found(amount=None),
            settled(
                Status.SUCCEEDED,
                "succeeded",
                DONE | {"currency": "usd", "amount": 500} | DROPPED,
                proof=True,
                source="reply",
            ),
        ),
        (
            a_refund(all_remaining=True, amount=None),
            found(amount=None),
            settled(Status.SUCCEEDED, "succeeded", DONE | DROPPED, proof=True, source="reply"),
        ),
        (
            a_refund(currency=None),
            found(amount=0, currency=None),
            settled(
                Status.SUCCEEDED,
                "succeeded",
                DONE | {"amount": 0} | DROPPED,
                proof=True,
                source="reply",
            ),
        ),
        (
            a_refund(),
            found(status="failed"),
            settled(
                Status.FAILED,
                "failed",
                DONE | {"amount": 500, "provider_status": "failed"} | FAILED | DROPPED,
                proof=True,
                source="reply",
            ),
        ),
        (
            a_refund(),
            found(status="failed", failure_reason="insufficient_funds"),
            settled(
                Status.FAILED,
                "failed",
                DONE
                | {"amount": 500, "provider_status": "failed"}
                | FAILED
                | {
                    "failure_reason": "insufficient_funds",
                    "error_code": "insufficient_funds",
                    "retriable": Retriable.YES,
                }
                | DROPPED,
                proof=True,
                source="reply",
            ),
        ),
        (
            a_refund(),
            found(status="canceled"),
            settled(
                Status.CANCELED,
                "canceled",
                DONE
                | {"amount": 500, "provider_status": "canceled"}
                | FAILED
                | {"failure_reason": "canceled", "error_code": "canceled"}
                | DROPPED,
                proof=True,
                source="reply",
            ),
        ),
        (
            a_refund(lapses=2, server_errors=1, currency=None),
            found(status=None),
            pending(
                Stage.PROCESSING,
                "processing",
                DONE
                | {
                    "provider_status": "pending",
                    "currency": "usd",
                    "processing_since": NOW,
                    "lapses": 0,
                    "server_errors": 0,
                },
                2 * SECOND,
                proof=True,
                source="reply",
            ),
        ),
        (
            a_refund(processing_since=NOW - HOUR),
            found(status="pending"),
            pending(
                Stage.PROCESSING,
                "processing",
                DONE
                | {
                    "provider_status": "pending",
                    "processing_since": NOW - HOUR,
                    "lapses": 0,
                    "server_errors": 0,
                },
                2 * SECOND,
                proof=True,
                source="reply",
            ),
        ),
    ],
)
def test_proof_of_done_leads_to_this_step_and_no_other(
    refund: Refund, seen: Any, step: Step
) -> None:
    assert plain(done(refund, seen, "reply", NOW)) == step


def test_what_was_kept_of_a_failure_is_gone_once_another_refund_of_the_provider_counts() -> None:
    failed = a_refund(failure_reason="expired_or_canceled_card", reversed_at=NOW - HOUR)
    changes = done(failed, found(), "list", NOW).changes
    assert {name: changes.get(name, "kept") for name in ("failure_reason", "reversed_at")} == {
        "failure_reason": None,
        "reversed_at": None,
    }
    assert (
        not {"failure_reason", "reversed_at"}
        & done(a_refund(), found(), "list", NOW).changes.keys()
    )


def test_proof_keeps_where_it_comes_from() -> None:
    assert done(a_refund(), found(), "list", NOW).changes["evidence"] == "list"
    assert after_attempt(a_refund(), done_as(), VERIFY, NOW, 0).changes["evidence"] == "reply"


@pytest.mark.parametrize(
    ("reason", "kept"), [("lost_or_stolen_card", "lost_or_stolen_card"), (None, "unknown")]
)
def test_reversal_leads_to_this_step_and_no_other(reason: str | None, kept: str) -> None:
    step = changed_by_provider(
        a_refund(Stage.SETTLED), found(status="failed", failure_reason=reason), "list", NOW
    )
    changes = {
        "provider_status": "failed",
        **FAILED,
        "failure_reason": kept,
        "error_code": kept,
        "evidence": "list",
        "reversed_at": NOW,
    }
    assert plain(step) == settled(Status.FAILED, "reversed", changes, alarm=TOLD, source="list")


def test_refund_of_no_status_reverses_nothing() -> None:
    assert changed_by_provider(a_refund(Stage.SETTLED), found(status=None), "list", NOW) is None


# Polls


def lost(code: str, changes: dict[str, Any] | None = None) -> Step:
    """The step of a poll to a person."""
    noted = {"error_code": code, "error_message": TOLD, "doubt_since": NOW}
    return pending(Stage.REVIEW, code, noted | (changes or {}), DAY, alarm=TOLD, source="lookup")


def polled(delay: timedelta, changes: dict[str, Any] | None = None) -> Step:
    return pending(Stage.PROCESSING, "pending", changes or {}, delay, quiet=True)


def missed(delay: timedelta, ago: timedelta = timedelta(0)) -> Step:
    """The step of a poll that was answered with 404, the first time so long ago."""
    return pending(Stage.PROCESSING, "missing", {"missing_since": NOW - ago}, delay, quiet=True)


STILL = a_reply(200, refund_payload(status="pending"))


@pytest.mark.parametrize(
    ("fields", "answer", "step"),
    [
        ({}, STILL, polled(16.875 * SECOND)),
        ({"processing_since": None}, STILL, polled(2.25 * SECOND)),
        ({}, replace(an_error(429), retry_after=HOUR), polled(HOUR)),
        ({}, replace(an_error(429), retry_after=SECOND), polled(16.875 * SECOND)),
        ({"processing_since": NOW - 30 * DAY + SECOND}, STILL, polled(24300 * SECOND)),
        ({"processing_since": NOW - 30 * DAY}, STILL, lost("pending_too_long")),
        (
            {"operator_says": "succeeded"},
            STILL,
            polled(
                16.875 * SECOND,
                {"operator_says": None, "provider_refund_id": "re_1", "evidence": "lookup"},
            ),
        ),
        ({"operator_says": "succeeded"}, a_reply(503), polled(16.875 * SECOND)),
        ({}, an_error(404), missed(5.625 * SECOND)),
        ({"missing_since": NOW - 10 * SECOND}, an_error(404), missed(5.625 * SECOND, 10 * SECOND)),
        ({"missing_since": NOW - 20 * SECOND}, an_error(404), missed(11.25 * SECOND, 20 * SECOND)),
        ({"missing_since": NOW - 59 * MINUTE}, an_error(404), missed(1012.5 * SECOND, 59 * MINUTE)),
        (
            {"missing_since": NOW - HOUR},
            an_error(404),
            lost("refund_missing", {"missing_since": None}),
        ),
        (
            {"missing_since": NOW - HOUR, "doubt_since": NOW - HOUR},
            an_error(404),
            lost("refund_missing", {"missing_since": None, "doubt_since": NOW - HOUR}),
        ),
        ({"missing_since": NOW - HOUR}, a_reply(503), polled(16.875 * SECOND)),
        ({"missing_since": NOW - HOUR}, STILL, polled(16.875 * SECOND, {"missing_since": None})),
        (
            {"operator_says": "succeeded", "missing_since": NOW - MINUTE + SECOND},
            an_error(404),
            missed(33.1875 * SECOND, MINUTE - SECOND),
        ),
        (
            {"operator_says": "succeeded", "missing_since": NOW - MINUTE},
            an_error(404),
            lost(
                "refund_missing",
                {
                    "missing_since": None,
                    "provider_refund_id": None,
                    "processing_since": None,
                    **NO_WORD,
                },
            ),
        ),
        ({}, an_error(400), polled(16.875 * SECOND)),
        ({}, a_reply(200, refund_payload(id="re_2")), lost("contradictory_reply")),
        (
            {},
            a_reply(200, refund_payload(id="re_2", status="pending")),
            lost("contradictory_reply"),
        ),
        ({}, a_reply(200, refund_payload(amount=1)), lost("contradictory_reply")),
        ({}, a_reply(200, {"id": "re_1", "object": "charge"}), lost("contradictory_reply")),
    ],
)
def test_poll_leads_to_this_step_and_no_other(
    fields: dict[str, Any], answer: Any, step: Step
) -> None:
    assert plain(after_poll(a_refund(Stage.PROCESSING, **fields), answer, NOW, 0.5)) == step


def test_person_is_told_what_contradicts_the_record() -> None:
    step = after_poll(a_refund(Stage.PROCESSING), a_reply(200, refund_payload(amount=1)), NOW, 0)
    assert step.alarm is not None
    assert "amount" in step.alarm


UNNAMED = {"metadata": None}


@pytest.mark.parametrize(
    ("fields", "shown", "evidence"),
    [
        ({}, {}, "lookup"),
        ({"evidence": "list"}, {}, "lookup"),
        ({"evidence": None}, UNNAMED, "lookup"),
        ({"evidence": "list", "operator_says": "succeeded"}, {}, "lookup"),
        ({"evidence": "list", "operator_says": "succeeded"}, UNNAMED, "operator"),
        ({"evidence": "operator"}, UNNAMED, "operator"),
        ({"evidence": "operator"}, {}, "lookup"),
    ],
)
def test_poll_that_says_final_settles_by_what_was_read_or_by_the_person_who_named_it(
    fields: dict[str, Any], shown: dict[str, Any], evidence: str
) -> None:
    refund = a_refund(Stage.PROCESSING, operator_by="ann", **fields)
    step = after_poll(refund, a_reply(200, refund_payload(**shown)), NOW, 0)
    assert (step.status, step.changes["evidence"], step.source) == (
        Status.SUCCEEDED,
        evidence,
        evidence,
    )
    assert step.by == ("ann" if evidence == "operator" else None)
    ours = (
        found(created=None) if shown == {} else found(created=None, refund_id=None, generation=None)
    )
    assert step == done(refund, ours, evidence, NOW)
