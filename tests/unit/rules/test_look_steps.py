"""Each decision on a look in full."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, MINUTE, NOW, SECOND, VERIFY, a_refund, found
from tests.unit.rules.stepping import ANEW, DAY, DROPPED, NO_WORD, TOLD, pending, plain, settled
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Baseline, Retriable, Stage, Status
from worker.model.steps import Step
from worker.rules.attempts import Rules, done
from worker.rules.readback import after_owned, after_readback

SETTLE = VERIFY.settle
FOUND = Readback(verdict=ReadbackVerdict.FOUND_IN_TOTALS, reason="so")
ABSENT = Readback(verdict=ReadbackVerdict.ABSENT, reason="so")
UNSURE = Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so")
MISSING = Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so", missing=True)
UNREAD = Readback(verdict=ReadbackVerdict.UNREADABLE, reason="so")
BY_TOTALS = DROPPED | {
    "evidence": "totals",
    "provider_status": None,
    "error_code": None,
    "error_message": None,
    "retriable": None,
}
CONFLICT = Readback(verdict=ReadbackVerdict.CONFLICT, reason="two")
ODD = Readback(
    verdict=ReadbackVerdict.CONFLICT, reason="its status is paid", found=found(status="paid")
)
CONFLICTING = {"error_code": "conflict", "error_message": TOLD}
LONG_QUIET = {"quiet_at": NOW - HOUR, "doubt_since": NOW - HOUR}


def quiet(label: str, delay: timedelta, changes: dict[str, Any] | None = None) -> Step:
    return pending(Stage.IN_DOUBT, label, changes or {}, delay, quiet=True)


@pytest.mark.parametrize(
    ("fields", "look", "rules", "step"),
    [
        # Not readable
        ({"doubt_since": NOW - 8 * MINUTE}, UNREAD, VERIFY, quiet("unreadable", 135 * SECOND)),
        ({"doubt_since": NOW}, UNREAD, VERIFY, quiet("unreadable", 5.625 * SECOND)),
        ({"doubt_since": None}, UNREAD, VERIFY, quiet("unreadable", 5.625 * SECOND)),
        ({"doubt_since": NOW - 9 * HOUR}, UNREAD, VERIFY, quiet("unreadable", 675 * SECOND)),
        (
            {"doubt_since": NOW - 8 * MINUTE},
            replace(UNREAD, retry_after=HOUR),
            VERIFY,
            quiet("unreadable", HOUR),
        ),
        (
            {"doubt_since": NOW - 8 * MINUTE},
            replace(UNREAD, retry_after=SECOND),
            VERIFY,
            quiet("unreadable", 135 * SECOND),
        ),
        (
            {"doubt_since": NOW, "first_attempt_at": None},
            UNREAD,
            VERIFY,
            quiet("unreadable", 5.625 * SECOND),
        ),
        (
            {"first_attempt_at": NOW - 72 * HOUR},
            UNREAD,
            VERIFY,
            pending(Stage.REVIEW, "unreadable", {}, DAY, alarm=TOLD),
        ),
        # Contradictory
        (
            {},
            Readback(verdict=ReadbackVerdict.CONFLICT, reason="two"),
            VERIFY,
            pending(
                Stage.REVIEW,
                "conflict",
                {"error_code": "conflict", "error_message": TOLD},
                DAY,
                alarm=TOLD,
                source="list",
            ),
        ),
        *(
            (
                {},
                replace(ODD, source=source),
                VERIFY,
                pending(
                    Stage.REVIEW,
                    "unknown_status",
                    {
                        "provider_refund_id": "re_1",
                        "provider_status": "paid",
                        "error_code": "unknown_status",
                        "error_message": TOLD,
                    },
                    DAY,
                    alarm=TOLD,
                    source=source or "list",
                ),
            )
            for source in (None, "lookup")
        ),
        # In the totals
        *(
            (
                {"found_at": None, "looks": 3, "quiet_at": NOW - quiet_for},
                FOUND,
                VERIFY,
                pending(
                    Stage.IN_DOUBT,
                    "found_in_totals",
                    ANEW | {"found_at": NOW},
                    SETTLE,
                    source="totals",
                ),
            )
            for quiet_for in (timedelta(0), 2 * SETTLE)
        ),
        # Seen so late, the rise may be somebody else's.
        *(
            (
                {"found_at": None, "quiet_at": quiet_at},
                FOUND,
                VERIFY,
                pending(
                    Stage.REVIEW,
                    "found_late",
                    {"error_code": "found_late", "error_message": TOLD},
                    DAY,
                    alarm=TOLD,
                    source="totals",
                ),
            )
            for quiet_at in (NOW - 2 * SETTLE - timedelta(milliseconds=1), None)
        ),
        ({"found_at": NOW - SETTLE + SECOND}, FOUND, VERIFY, quiet("found_in_totals", SECOND)),
        (
            {
                "found_at": NOW - SETTLE,
                "baseline": Baseline(refunded=0, currency="eur", remaining=9),
            },
            FOUND,
            VERIFY,
            settled(Status.SUCCEEDED, "found_in_totals", BY_TOTALS, source="totals"),
        ),
        (
            {
                "found_at": NOW - SETTLE,
                "baseline": Baseline(refunded=0, currency="eur", remaining=9),
                "all_remaining": True,
                "amount": None,
                "currency": None,
            },
            FOUND,
            VERIFY,
            settled(
                Status.SUCCEEDED,
                "found_in_totals",
                BY_TOTALS | {"currency": "eur"},
                source="totals",
            ),
        ),
        (
            {
                "found_at": NOW - SETTLE,
                "baseline": Baseline(refunded=0, currency="eur", remaining=None),
                "all_remaining": True,
            },
            FOUND,
            VERIFY,
            settled(Status.SUCCEEDED, "found_in_totals", BY_TOTALS, source="totals"),
        ),
        (
            {"found_at": NOW - SETTLE, "baseline": None, "all_remaining": True, "currency": None},
            FOUND,
            VERIFY,
            settled(Status.SUCCEEDED, "found_in_totals", BY_TOTALS, source="totals"),
        ),
        # Absent
        ({"quiet_at": None}, ABSENT, VERIFY, quiet("absent_early", SETTLE)),
        ({"quiet_at": NOW - SETTLE + SECOND}, ABSENT, VERIFY, quiet("absent_early", SECOND)),
        (
            {"quiet_at": NOW - SETTLE, "looks": 2, "found_at": NOW},
            ABSENT,
            VERIFY,
            pending(Stage.IN_DOUBT, "absent", ANEW | {"absent_at": NOW}, SETTLE, source="list"),
        ),
        (
            LONG_QUIET | {"absent_at": NOW - SETTLE + SECOND},
            ABSENT,
            VERIFY,
            quiet("absent", SECOND),
        ),
        (
            LONG_QUIET | {"absent_at": NOW - SETTLE},
            ABSENT,
            VERIFY,
            pending(
                Stage.IN_DOUBT,
                "absence_proven",
                ANEW | {"absent_at": NOW - SETTLE, "proven_absent_at": NOW, "evidence": "list"},
                30 * SECOND,
                source="list",
            ),
        ),
        (
            LONG_QUIET | {"absent_at": NOW - SETTLE, "resends": 3},
            ABSENT,
            VERIFY,
            pending(Stage.REVIEW, "resends_spent", {}, DAY, alarm=TOLD),
        ),
        (
            LONG_QUIET | {"operator_says": "succeeded"},
            ABSENT,
            VERIFY,
            pending(Stage.IN_DOUBT, "absent", ANEW | {"absent_at": NOW}, SETTLE, source="list"),
        ),
        # Not to be told
        ({"quiet_at": None}, UNSURE, VERIFY, quiet("too_early", SETTLE)),
        ({"quiet_at": NOW - SETTLE + SECOND}, UNSURE, VERIFY, quiet("too_early", SECOND)),
        (
            {"quiet_at": NOW - SETTLE},
            UNSURE,
            VERIFY,
            quiet(
                "inconclusive",
                225 * SECOND,
                {"looks": 1, "absent_at": None, "found_at": None, "proven_absent_at": None},
            ),
        ),
        (
            LONG_QUIET | {"looks": 2, "quiet_at": NOW - 9 * HOUR},
            UNSURE,
            replace(VERIFY, settle=3 * HOUR),
            quiet(
                "inconclusive",
                4.5 * HOUR,
                {"looks": 3, "absent_at": None, "found_at": None, "proven_absent_at": None},
            ),
        ),
        (
            LONG_QUIET | {"looks": 4},
            UNSURE,
            VERIFY,
            pending(Stage.REVIEW, "inconclusive", {"looks": 5}, DAY, alarm=TOLD),
        ),
        # Answered with 404
        (
            LONG_QUIET | {"doubt_since": NOW - HOUR + SECOND},
            MISSING,
            VERIFY,
            quiet("unreadable", 675 * SECOND),
        ),
        (LONG_QUIET | {"doubt_since": None}, MISSING, VERIFY, quiet("unreadable", 5.625 * SECOND)),
        (
            LONG_QUIET,
            MISSING,
            VERIFY,
            quiet(
                "inconclusive",
                225 * SECOND,
                {"looks": 1, "absent_at": None, "found_at": None, "proven_absent_at": None},
            ),
        ),
        # Found, with nothing to show for it
        (
            LONG_QUIET | {"looks": 4},
            Readback(verdict=ReadbackVerdict.FOUND, reason="so"),
            VERIFY,
            pending(Stage.REVIEW, "inconclusive", {"looks": 5}, DAY, alarm=TOLD),
        ),
    ],
)
def test_look_leads_to_this_step_and_no_other(
    fields: dict[str, Any], look: Readback, rules: Rules, step: Step
) -> None:
    assert plain(after_readback(a_refund(Stage.IN_DOUBT, **fields), look, rules, NOW, 0.5)) == step


SAYS_ABSENT = LONG_QUIET | {"operator_says": "absent", "operator_by": "ann"}
SAYS_FAILED = LONG_QUIET | {
    "operator_says": "failed",
    "operator_by": "ann",
    "operator_code": "gone",
}
INSISTS = {"operator_unverified": True}


def given_up(source: str) -> Step:
    changes = {
        "error_code": "gone",
        "error_message": TOLD,
        "retriable": Retriable.NO,
        "evidence": source,
        **DROPPED,
    }
    return settled(Status.FAILED, "operator_says_failed", changes, source=source, by="ann")


def back(label: str, changes: dict[str, Any] | None = None, **fields: Any) -> Step:
    return pending(Stage.REVIEW, label, NO_WORD | (changes or {}), DAY, alarm=TOLD, **fields)


def taken_for_absent(source: str, label: str, absent_at: Any = NOW, **more: Any) -> Step:
    changes = ANEW | {"absent_at": absent_at, "proven_absent_at": NOW, "evidence": source} | more
    return pending(Stage.IN_DOUBT, label, changes, 30 * SECOND, source=source, by="ann")


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
        (
            SAYS_ABSENT | INSISTS | {"provider_refund_id": "re_1"},
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


def test_refund_found_in_the_list_is_done_by_that_evidence() -> None:
    look = Readback(verdict=ReadbackVerdict.FOUND, reason="so", found=found())
    refund = a_refund(Stage.IN_DOUBT)
    assert after_readback(refund, look, VERIFY, NOW, 0) == done(refund, found(), "list", NOW)
