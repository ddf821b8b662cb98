"""What becomes of a person's word once the refund was read back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.factories import HOUR, MINUTE, NOW, SECOND, VERIFY, a_refund, found
from tests.unit.rules.looking import (
    ABSENT,
    CONFLICT,
    CONFLICTING,
    FOUND,
    INSISTS,
    SAYS_ABSENT,
    SAYS_FAILED,
    SETTLE,
    UNREAD,
    UNSURE,
    back,
    given_up,
    quiet,
    taken_for_absent,
)
from tests.unit.rules.stepping import ANEW, DAY, TOLD, pending, plain
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Baseline, Stage
from worker.model.steps import Step
from worker.rules.proofs import done
from worker.rules.readback import after_owned, after_readback

TOTAL = Baseline(refunded=500, currency="usd", remaining=0)


@pytest.mark.parametrize(
    ("fields", "look", "step"),
    [
        # Nothing tells
        (SAYS_ABSENT, UNSURE, back("inconclusive")),
        (SAYS_FAILED, UNSURE, back("inconclusive")),
        (SAYS_FAILED | {"quiet_at": NOW - SETTLE}, UNSURE, back("inconclusive")),
        (SAYS_FAILED | {"quiet_at": NOW - SETTLE + SECOND}, UNSURE, quiet("too_early", SECOND)),
        (SAYS_FAILED | {"quiet_at": None}, UNSURE, quiet("too_early", SETTLE)),
        (SAYS_ABSENT | INSISTS, UNSURE, taken_for_absent("operator", "operator_says_absent")),
        (
            SAYS_ABSENT | INSISTS | {"quiet_at": NOW},
            UNSURE,
            taken_for_absent("operator", "operator_says_absent"),
        ),
        # What was read of the payment still says what the next send may raise.
        (
            SAYS_ABSENT | INSISTS | {"baseline": TOTAL},
            UNSURE,
            taken_for_absent("operator", "operator_says_absent"),
        ),
        (
            SAYS_ABSENT | INSISTS | {"provider_refund_id": "re_1"},
            UNSURE,
            taken_for_absent(
                "operator",
                "operator_says_absent",
                provider_refund_id=None,
                provider_status=None,
                processing_since=None,
                prior_refund_ids="re_1",
            ),
        ),
        (
            SAYS_ABSENT | INSISTS | {"provider_refund_id": "re_1", "error_code": "refund_missing"},
            UNSURE,
            taken_for_absent(
                "operator",
                "operator_says_absent",
                provider_refund_id=None,
                provider_status=None,
                processing_since=None,
            ),
        ),
        (SAYS_FAILED | INSISTS, UNSURE, given_up("operator")),
        # Nothing answers
        (
            SAYS_FAILED | INSISTS | {"doubt_since": NOW - 8 * MINUTE},
            UNREAD,
            quiet("unreadable", 135 * SECOND, {"looks": 1}),
        ),
        (
            SAYS_ABSENT
            | {"looks": 1, "doubt_since": NOW - 8 * MINUTE, "first_attempt_at": NOW - 99 * HOUR},
            UNREAD,
            quiet("unreadable", 135 * SECOND, {"looks": 2}),
        ),
        (SAYS_FAILED | {"looks": 2}, UNREAD, back("unreadable")),
        (SAYS_FAILED | {"looks": 2}, replace(UNSURE, missing=True), back("unreadable")),
        (
            SAYS_FAILED | INSISTS | {"doubt_since": NOW - 8 * MINUTE},
            replace(UNSURE, missing=True),
            quiet("unreadable", 135 * SECOND, {"looks": 1}),
        ),
        (SAYS_FAILED | INSISTS | {"looks": 2}, UNREAD, given_up("operator")),
        (
            SAYS_ABSENT | INSISTS | {"looks": 2},
            UNREAD,
            taken_for_absent("operator", "operator_says_absent"),
        ),
        (
            SAYS_ABSENT | INSISTS | {"looks": 2, "baseline": TOTAL},
            UNREAD,
            taken_for_absent("operator", "operator_says_absent", baseline=None),
        ),
        (
            SAYS_FAILED | INSISTS | {"looks": 2, "doubt_since": NOW - 8 * MINUTE},
            replace(UNREAD, credentials=True),
            quiet("unreadable", 135 * SECOND),
        ),
        # Absent
        (
            SAYS_FAILED,
            ABSENT,
            pending(Stage.IN_DOUBT, "absent", ANEW | {"absent_at": NOW}, SETTLE, source="list"),
        ),
        (SAYS_FAILED | {"absent_at": NOW - SETTLE}, ABSENT, given_up("list")),
        (
            SAYS_ABSENT | {"absent_at": NOW - SETTLE, "resends": 3},
            ABSENT,
            taken_for_absent("list", "absence_proven", NOW - SETTLE),
        ),
        (
            SAYS_ABSENT | {"absent_at": NOW - SETTLE, "provider_refund_id": "re_1"},
            ABSENT,
            taken_for_absent(
                "list",
                "absence_proven",
                NOW - SETTLE,
                provider_refund_id=None,
                provider_status=None,
                processing_since=None,
            ),
        ),
        # Found
        (SAYS_FAILED | INSISTS, CONFLICT, back("conflict", CONFLICTING, source="list")),
        (
            SAYS_ABSENT | INSISTS,
            replace(CONFLICT, source="lookup"),
            back("conflict", CONFLICTING, source="lookup"),
        ),
        (SAYS_FAILED, FOUND, back("found_late")),
        (SAYS_FAILED | INSISTS, FOUND, given_up("operator")),
        (
            SAYS_ABSENT | INSISTS,
            FOUND,
            back(
                "found_late", {"error_code": "found_late", "error_message": TOLD}, source="totals"
            ),
        ),
        (
            SAYS_FAILED | INSISTS | {"quiet_at": NOW - 2 * SETTLE},
            FOUND,
            pending(
                Stage.IN_DOUBT, "found_in_totals", ANEW | {"found_at": NOW}, SETTLE, source="totals"
            ),
        ),
    ],
)
def test_a_persons_word_leads_to_this_step_and_no_other(
    fields: dict[str, Any], look: Readback, step: Step
) -> None:
    assert plain(after_readback(a_refund(Stage.IN_DOUBT, **fields), look, VERIFY, NOW, 0.5)) == step


@pytest.mark.parametrize(
    ("fields", "stuck"),
    [
        ({}, True),
        ({"operator_unverified": False}, False),
        ({"operator_says": "absent"}, False),
        ({"processing_since": None}, False),
        ({"processing_since": NOW - 30 * DAY + SECOND}, False),
    ],
)
def test_only_what_is_pending_for_longer_than_is_waited_for_may_be_given_up(
    fields: dict[str, Any], *, stuck: bool
) -> None:
    refund = a_refund(
        Stage.IN_DOUBT, **(SAYS_FAILED | INSISTS | {"processing_since": NOW - 30 * DAY} | fields)
    )
    for status in ("pending", "succeeded"):
        look = Readback(
            verdict=ReadbackVerdict.FOUND, reason="so", found=found(status=status), source="lookup"
        )
        step = after_readback(refund, look, VERIFY, NOW, 0)
        assert (step.source == "operator") is (stuck and status == "pending")
        if step.source != "operator":
            assert step == done(refund, found(status=status), "lookup", NOW)


def test_the_person_is_told_why_a_decision_was_not_taken_and_what_would_take_it() -> None:
    step = after_readback(a_refund(Stage.IN_DOUBT, **SAYS_FAILED), UNSURE, VERIFY, NOW, 0)
    assert step.alarm == (
        "the decision could not be verified (so): decide again with --unverified if it must count"
    )
    unread = after_readback(
        a_refund(Stage.IN_DOUBT, **SAYS_FAILED, looks=2), UNREAD, VERIFY, NOW, 0
    )
    assert unread.alarm is not None
    assert "could not be read back: so" in unread.alarm


def test_the_record_says_on_what_its_end_rests() -> None:
    told = after_readback(
        a_refund(Stage.IN_DOUBT, **SAYS_FAILED, **INSISTS), UNSURE, VERIFY, NOW, 0
    )
    assert told.changes["error_message"] == "settled by a person, not verified: so"
    absent = a_refund(Stage.IN_DOUBT, **SAYS_FAILED, absent_at=NOW - SETTLE)
    seen = after_readback(absent, ABSENT, VERIFY, NOW, 0)
    assert (
        seen.changes["error_message"]
        == "settled by a person, and the provider does not show such a refund"
    )
    secret = replace(UNSURE, reason="sk_live_0123456789abcdef")
    kept = after_readback(
        a_refund(Stage.IN_DOUBT, **SAYS_FAILED, **INSISTS), secret, VERIFY, NOW, 0
    )
    assert "sk_live" not in kept.changes["error_message"]


@pytest.mark.parametrize("fields", [{}, SAYS_FAILED, SAYS_ABSENT | INSISTS])
def test_a_proof_that_is_another_refunds_is_for_a_person(fields: dict[str, Any]) -> None:
    step = after_owned(
        a_refund(Stage.IN_DOUBT, **fields), {"error_code": "owned_elsewhere"}, "b owns it"
    )
    assert plain(step) == back("owned_elsewhere", {"error_code": "owned_elsewhere"})
    assert step.alarm == "b owns it"


def test_a_person_may_give_up_what_is_another_refunds() -> None:
    step = after_owned(
        a_refund(Stage.IN_DOUBT, **SAYS_FAILED, **INSISTS), {"error_code": "x"}, "b owns it"
    )
    assert plain(step) == given_up("operator")
    assert step.changes["error_message"] == "settled by a person: b owns it"
    named = after_owned(
        a_refund(Stage.IN_DOUBT, **SAYS_FAILED, **INSISTS),
        {"provider_refund_id": None},
        "b owns it",
    )
    assert named == replace(step, changes={**step.changes, "provider_refund_id": None})
