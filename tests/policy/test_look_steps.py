"""Each decision on a look in full."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, MINUTE, NOW, SECOND, VERIFY, a_refund, found
from tests.policy.stepping import ANEW, DAY, DROPPED, TOLD, pending, plain, settled
from worker.looks import after_look
from worker.model import Baseline, Look, Sight, Stage, Status, Step
from worker.policy import Rules, done

SETTLE = VERIFY.settle
FOUND = Look(sight=Sight.FOUND_IN_TOTALS, reason="so")
ABSENT = Look(sight=Sight.ABSENT, reason="so")
UNSURE = Look(sight=Sight.INCONCLUSIVE, reason="so")
MISSING = Look(sight=Sight.INCONCLUSIVE, reason="so", missing=True)
UNREAD = Look(sight=Sight.UNREADABLE, reason="so")
BY_TOTALS = DROPPED | {
    "evidence": "totals",
    "provider_status": None,
    "error_code": None,
    "error_message": None,
    "retriable": None,
}
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
        ({"doubt_since": NOW, "first_attempt_at": None}, UNREAD, VERIFY, quiet("unreadable", 5.625 * SECOND)),
        (
            {"first_attempt_at": NOW - 72 * HOUR},
            UNREAD,
            VERIFY,
            pending(Stage.REVIEW, "unreadable", {}, DAY, alarm=TOLD),
        ),
        # Contradictory
        (
            {},
            Look(sight=Sight.CONFLICT, reason="two"),
            VERIFY,
            pending(Stage.REVIEW, "conflict", {"error_code": "conflict", "error_message": TOLD}, DAY, alarm=TOLD),
        ),
        # In the totals
        *(
            (
                {"found_at": None, "looks": 3, "quiet_at": NOW - quiet_for},
                FOUND,
                VERIFY,
                pending(Stage.IN_DOUBT, "found_in_totals", ANEW | {"found_at": NOW}, SETTLE),
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
                ),
            )
            for quiet_at in (NOW - 2 * SETTLE - timedelta(milliseconds=1), None)
        ),
        ({"found_at": NOW - SETTLE + SECOND}, FOUND, VERIFY, quiet("found_in_totals", SECOND)),
        (
            {"found_at": NOW - SETTLE, "baseline": Baseline(refunded=0, currency="eur", remaining=9)},
            FOUND,
            VERIFY,
            settled(Status.SUCCEEDED, "found_in_totals", BY_TOTALS),
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
            settled(Status.SUCCEEDED, "found_in_totals", BY_TOTALS | {"currency": "eur"}),
        ),
        (
            {
                "found_at": NOW - SETTLE,
                "baseline": Baseline(refunded=0, currency="eur", remaining=None),
                "all_remaining": True,
            },
            FOUND,
            VERIFY,
            settled(Status.SUCCEEDED, "found_in_totals", BY_TOTALS),
        ),
        (
            {"found_at": NOW - SETTLE, "baseline": None, "all_remaining": True, "currency": None},
            FOUND,
            VERIFY,
            settled(Status.SUCCEEDED, "found_in_totals", BY_TOTALS),
        ),
        # Absent
        ({"quiet_at": None}, ABSENT, VERIFY, quiet("absent_early", SETTLE)),
        ({"quiet_at": NOW - SETTLE + SECOND}, ABSENT, VERIFY, quiet("absent_early", SECOND)),
        (
            {"quiet_at": NOW - SETTLE, "looks": 2, "found_at": NOW},
            ABSENT,
            VERIFY,
            pending(Stage.IN_DOUBT, "absent", ANEW | {"absent_at": NOW}, SETTLE),
        ),
        (LONG_QUIET | {"absent_at": NOW - SETTLE + SECOND}, ABSENT, VERIFY, quiet("absent", SECOND)),
        (
            LONG_QUIET | {"absent_at": NOW - SETTLE},
            ABSENT,
            VERIFY,
            pending(
                Stage.IN_DOUBT,
                "absence_proven",
                ANEW | {"absent_at": NOW - SETTLE, "proven_absent_at": NOW},
                30 * SECOND,
            ),
        ),
        (
            LONG_QUIET | {"absent_at": NOW - SETTLE, "resends": 3},
            ABSENT,
            VERIFY,
            pending(Stage.REVIEW, "resends_spent", {}, DAY, alarm=TOLD),
        ),
        # A person says that it is absent
        (
            LONG_QUIET | {"operator_says": "absent"},
            UNSURE,
            VERIFY,
            pending(
                Stage.IN_DOUBT,
                "operator_says_absent",
                ANEW | {"absent_at": NOW, "proven_absent_at": NOW},
                30 * SECOND,
            ),
        ),
        (
            LONG_QUIET | {"operator_says": "succeeded"},
            ABSENT,
            VERIFY,
            pending(Stage.IN_DOUBT, "absent", ANEW | {"absent_at": NOW}, SETTLE),
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
        (LONG_QUIET | {"doubt_since": NOW - HOUR + SECOND}, MISSING, VERIFY, quiet("unreadable", 675 * SECOND)),
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
        (
            LONG_QUIET | {"doubt_since": NOW, "operator_says": "absent"},
            MISSING,
            VERIFY,
            pending(
                Stage.IN_DOUBT,
                "operator_says_absent",
                ANEW | {"absent_at": NOW, "proven_absent_at": NOW},
                30 * SECOND,
            ),
        ),
        # Found, with nothing to show for it
        (
            LONG_QUIET | {"looks": 4},
            Look(sight=Sight.FOUND, reason="so"),
            VERIFY,
            pending(Stage.REVIEW, "inconclusive", {"looks": 5}, DAY, alarm=TOLD),
        ),
    ],
)
def test_look_leads_to_this_step_and_no_other(fields: dict[str, Any], look: Look, rules: Rules, step: Step) -> None:
    assert plain(after_look(a_refund(Stage.IN_DOUBT, **fields), look, rules, NOW, 0.5)) == step


def test_refund_found_in_the_list_is_done_by_that_evidence() -> None:
    look = Look(sight=Sight.FOUND, reason="so", found=found())
    refund = a_refund(Stage.IN_DOUBT)
    assert after_look(refund, look, VERIFY, NOW, 0) == done(refund, found(), "list", NOW)
