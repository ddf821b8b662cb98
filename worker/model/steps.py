"""Decisions as data: a step to another stage, or the next action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from worker.model.refund import Stage, Status


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A state change: the refund's next stage, changed fields, and the delay until the next check.

    If `to` is the current stage and `quiet` is set, only `next_check_at` and counters change: no
    new version and no history entry. A `None` in `changes` removes the field.
    """

    to: Stage
    status: Status
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    delay: timedelta | None = None
    quiet: bool = False
    proof: bool = False
    """Proof that the refund was done; accepted at any version while the refund is unsettled."""
    settles_until: datetime | None = None
    """A proof of success settles the refund only until then, by the records' time."""
    alarm: str | None = None
    source: str | None = None
    """The step's basis: `reply`, `list`, `totals`, `lookup` (read by id), `operator`, or None."""
    by: str | None = None
    """The person whose statement or decision the step is based on."""


class Action(StrEnum):
    """The next action for a due refund."""

    NOTHING = "nothing"
    SEND = "send"
    REPLAY = "replay"
    LAPSE = "lapse"
    READ_BACK = "look"
    POLL = "poll"
    REVIEW = "review"
    RECHECK = "recheck"
    GIVE_UP = "give_up"
    """Fail an unsent refund as a person decided, once what was named for it is read."""
