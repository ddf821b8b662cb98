"""What a decision is: a step to another stage, or the next action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any

from worker.model.refund import Stage, Status


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A decision as data: where the refund goes, what changes on it, and when to look again.

    `to` equal to the present stage with `quiet` set only moves `next_check_at` (and counters): no version, no history.
    A `None` in `changes` removes the field.
    """

    to: Stage
    status: Status
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    delay: timedelta | None = None
    quiet: bool = False
    proof: bool = False
    """Proof of done: accepted at any version while the refund is unsettled."""
    alarm: str | None = None
    source: str | None = None
    """What concluded this: `reply`, `list`, `totals`, `lookup` (read by id) or `operator`; None if nothing did."""
    by: str | None = None
    """The person on whose word or decision this rests."""


class Action(StrEnum):
    """What a due refund needs now."""

    NOTHING = "nothing"
    SEND = "send"
    REPLAY = "replay"
    LAPSE = "lapse"
    LOOK = "look"
    POLL = "poll"
    REVIEW = "review"
