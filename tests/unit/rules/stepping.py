"""What tests of single decisions share: steps in short, and a refund after one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from tests.factories import HOUR, stepped
from worker.model.refund import Refund, Stage, Status
from worker.model.steps import Step
from worker.rules.transitions import TRANSITIONS

DESIGN_MOVES: Mapping[str, set[str]] = {
    "queued": {"sending", "settled"},
    "sending": {"settled", "processing", "waiting", "in_doubt", "review"},
    "waiting": {"sending", "settled", "processing"},
    "in_doubt": {"settled", "processing", "sending", "in_doubt", "review"},
    "processing": {"settled", "review"},
    "review": {"processing", "in_doubt", "settled", "waiting"},
    "settled": {"settled", "queued"},
}


def assert_is_a_move(step: Step, refund: Refund) -> None:
    if step.quiet:
        assert step.to is refund.stage
        assert step.delay is not None
    else:
        assert step.to in TRANSITIONS[refund.stage]
    assert (step.status is Status.PENDING) is (step.to is not Stage.SETTLED)
    assert step.to is Stage.SETTLED or step.delay is None or step.delay >= timedelta(0)
    json.dumps(step.label)


def with_changes(refund: Refund, step: Step, now: datetime) -> Refund:
    return stepped(refund, step.changes, step.to, now, step.delay)


DAY = 24 * HOUR
TOLD = "told"
"""Stands for whatever a person is told."""

ANEW = {"looks": 0, "absent_at": None, "proven_absent_at": None, "found_at": None}
NO_WORD = dict.fromkeys(("operator_says", "operator_by", "operator_code", "operator_unverified"))
DROPPED = dict.fromkeys(
    (
        "doubt_since",
        "doubted",
        "quiet_at",
        "verdicts",
        "lapses",
        "server_errors",
        "resends",
        "baseline",
        "processing_since",
        "missing_since",
        "unconfirmed_since",
        "currency_checked",
        "absent_by_word",
        "operator_says",
        "operator_by",
        "operator_code",
        "operator_unverified",
        "idempotency_key",
        "first_attempt_at",
        "looks",
        "absent_at",
        "proven_absent_at",
        "found_at",
    )
)


def plain(step: Step | None) -> Step | None:
    """A step without the words in which a person is told of it."""
    if step is None:
        return None
    changes = {
        name: TOLD if name == "error_message" and value else value
        for name, value in step.changes.items()
    }
    return replace(step, changes=changes, alarm=TOLD if step.alarm else step.alarm)


def pending(
    to: Stage, label: str, changes: dict[str, Any], delay: timedelta, **fields: Any
) -> Step:
    return Step(to=to, status=Status.PENDING, label=label, changes=changes, delay=delay, **fields)


def settled(status: Status, label: str, changes: dict[str, Any], **fields: Any) -> Step:
    return Step(to=Stage.SETTLED, status=status, label=label, changes=changes, **fields)
