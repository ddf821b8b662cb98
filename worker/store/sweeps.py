"""The commands that find due refunds, and their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from worker.model.refund import Lane, Stage
from worker.rules.proofs import REVIEW_REMINDER
from worker.store import scripts
from worker.store.scripts import Command

NUDGE_GRACE: Final = timedelta(minutes=10)
"""How long a queued refund waits for its nudge before it is nudged again, whatever the queue holds.
"""
LOST_NUDGE: Final = timedelta(seconds=15)
"""Time after which a nudge counts as lost if its lane's queue is empty."""
SWEEP_HOLD: Final = timedelta(seconds=30)
"""How long the next sweeps skip a refund that a sweep has taken."""

MOST_RECHECKS: Final = 100
"""Maximum refunds that one sweep takes to be read again outside their own schedule."""
_RECHECK: Final = "recheck"

_ms = timedelta(milliseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A due refund that a sweep took, or that a webhook made due."""

    refund_id: str
    lane: Lane
    stage: Stage | None
    """None if it is to be read again outside its own schedule."""


def sweep(limit: int, *, dry: frozenset[Lane]) -> Command[tuple[Due, ...]]:
    """Take at most `limit` due refunds, lapsed leases and doubts first.

    `dry` names the lanes with an empty queue.
    """

    def read(reply: Any) -> tuple[Due, ...]:
        rows = reply[1:]
        return tuple(
            Due(
                refund_id=rows[i],
                lane=Lane(rows[i + 1]),
                stage=None if rows[i + 2] == _RECHECK else Stage(rows[i + 2]),
            )
            for i in range(0, len(rows), 3)
        )

    arguments = [
        limit,
        SWEEP_HOLD // _ms,
        NUDGE_GRACE // _ms,
        LOST_NUDGE // _ms,
        "1" if Lane.SINGLE in dry else "",
        "1" if Lane.BULK in dry else "",
        REVIEW_REMINDER // _ms,
        MOST_RECHECKS,
    ]
    # If a crash undoes a sweep, it is repeated.
    return Command(script=scripts.SWEEP, arguments=arguments, read=read, durable=False)


def give_back(refund_ids: Sequence[str]) -> Command[int]:
    """Make queued refunds due at once that a task received and has not claimed."""
    # It only brings a time forward: without it the refund is still swept in the end.
    return Command(script=scripts.GIVE_BACK, arguments=list(refund_ids), read=int, durable=False)
