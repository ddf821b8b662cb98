"""Waiting for refunds under a person's eyes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from worker.cli.exits import DONE, SOME_FAILED, Detached
from worker.cli.session import note
from worker.client import Refunds
from worker.model.refund import Refund, Stage, Status

_FIRST_POLL: Final = 0.02
_LONGEST_POLL: Final = 1.0


def rests(refund: Refund) -> bool:
    """Tell whether waiting is over: settled, or a person must decide."""
    return refund.settled or refund.stage is Stage.REVIEW


def wait_for(refunds: Refunds, refund_ids: Sequence[str], seconds: float) -> list[Refund]:
    """Poll until all rest or the time is over; return the records in order, without those that never stood.

    Raises `Detached` on Ctrl-C: the refunds go on without a watcher.
    """
    end = time.monotonic() + seconds
    pause = _FIRST_POLL
    # Only those that do not rest are read again: a wait for many costs what is left of them.
    found: dict[str, Refund] = {}
    moving = list(dict.fromkeys(refund_ids))
    try:
        while True:
            found |= {refund.refund_id: refund for refund in refunds.get_many(moving) if refund is not None}
            moving = [refund_id for refund_id in moving if refund_id in found and not rests(found[refund_id])]
            left = end - time.monotonic()
            if not moving or left <= 0:
                return [found[refund_id] for refund_id in dict.fromkeys(refund_ids) if refund_id in found]
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_POLL)
    except KeyboardInterrupt:
        again = " ".join(moving[:5])
        raise Detached(f"no longer watching; nothing was stopped: look again with 'refunds status {again}'") from None


def verdict(refunds: Iterable[Refund], seconds: float) -> int:
    """Return the exit code of a wait: 4 if any failed, was canceled or needs a person.

    One that is still on its way has not failed: it leaves 0, and a note.
    """
    code = DONE
    for refund in refunds:
        if not rests(refund):
            note(
                f"refund {refund.refund_id} is still {refund.status} after {seconds:g} s, which is no failure: "
                f"look again with 'refunds status {refund.refund_id}'"
            )
        elif refund.status is not Status.SUCCEEDED:
            code = SOME_FAILED
            if refund.stage is Stage.REVIEW:
                note(f"refund {refund.refund_id} needs a person: 'refunds review show {refund.refund_id}'")
    return code
