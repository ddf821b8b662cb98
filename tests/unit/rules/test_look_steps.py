"""Each decision on a look in full."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import BLIND, HOUR, MINUTE, NOW, SECOND, VERIFY, a_refund, found
from tests.unit.rules.looking import (
    ABSENT,
    BY_TOTALS,
    FOUND,
    LONG_QUIET,
    MISSING,
    ODD,
    SETTLE,
    UNREAD,
    UNSURE,
    quiet,
)
from tests.unit.rules.stepping import ANEW, DAY, TOLD, pending, plain, settled
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Baseline, Stage, Status
from worker.model.steps import Step
from worker.rules.attempts import Rules
from worker.rules.proofs import done
from worker.rules.readback import after_readback


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
        # Nothing else may be read
        (
            {"quiet_at": NOW},
            UNSURE,
            BLIND,
            pending(Stage.REVIEW, "no_readback", {}, DAY, alarm=TOLD),
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


def test_refund_found_in_the_list_is_done_by_that_evidence() -> None:
    look = Readback(verdict=ReadbackVerdict.FOUND, reason="so", found=found())
    refund = a_refund(Stage.IN_DOUBT)
    assert after_readback(refund, look, VERIFY, NOW, 0) == done(refund, found(), "list", NOW)
