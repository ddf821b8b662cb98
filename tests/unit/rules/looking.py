"""What a read-back may show of a refund in doubt, and what a person may have said of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.factories import HOUR, NOW, SECOND, VERIFY, found
from tests.unit.rules.stepping import ANEW, DAY, DROPPED, NO_WORD, TOLD, pending, settled
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Retriable, Stage, Status
from worker.model.steps import Step

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
    if source == "operator":
        changes["absent_by_word"] = True
    return pending(Stage.IN_DOUBT, label, changes, 30 * SECOND, source=source, by="ann")
