"""The commands that only read records: one refund, or our other refunds on a payment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from worker.model.refund import Refund
from worker.model.times import from_ms
from worker.store import scripts
from worker.store.records import decode, pairs_of
from worker.store.scripts import Command

MOST_SIBLINGS: Final = 200
"""Maximum refunds of one payment that one script reads.

More would block the server for over a millisecond.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A record and the records' time, `now`.

    `seq` counts the moves that may change its payment's totals.
    """

    now: datetime
    seq: str
    refund: Refund | None
    recheck: str = ""
    """When the refund is to be read again outside its own schedule, '' if it is not."""


def load(refund_id: str) -> Command[Loaded]:
    """Read a refund and the records' time."""

    def read(reply: Any) -> Loaded:
        refund = decode(pairs_of(reply[2])) if reply[2] else None
        return Loaded(
            now=from_ms(int(reply[0])), seq=str(reply[1]), refund=refund, recheck=str(reply[3])
        )

    # It only reads.
    return Command(script=scripts.LOAD, arguments=[refund_id], read=read, durable=False)


def siblings(
    payment_intent: str, without: str, *, most: int = MOST_SIBLINGS
) -> Command[tuple[Refund, ...] | None]:
    """Read our other refunds on a payment.

    If there are more than `most`, read none and return None.
    """

    def read(reply: Any) -> tuple[Refund, ...] | None:
        return tuple(decode(pairs_of(flat)) for flat in reply[1:]) if reply[0] == "1" else None

    # It only reads.
    return Command(
        script=scripts.SIBLINGS, arguments=[payment_intent, without, most], read=read, durable=False
    )
