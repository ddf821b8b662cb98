"""Waits for refunds until they are settled or need review."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from worker.cli.exits import DONE, SOME_FAILED, Detached
from worker.cli.session import ALL_PAUSED, note
from worker.client import Refunds
from worker.model.refund import Refund, Stage, Status
from worker.store import flags

_FIRST_POLL: Final = 0.02
_LONGEST_POLL: Final = 1.0


def wait_for(refunds: Refunds, refund_ids: Sequence[str], seconds: float) -> list[Refund]:
    """Poll until all refunds are settled or need review, or the time is over.

    Return the existing records in order.

    Raises `Detached` on Ctrl-C: the refunds continue unwatched.
    """
    end = time.monotonic() + seconds
    pause = _FIRST_POLL
    # Only unfinished refunds are read again, so that waiting for many costs little once most are
    # finished.
    found: dict[str, Refund] = {}
    moving = list(dict.fromkeys(refund_ids))
    try:
        while True:
            found |= {
                refund.refund_id: refund
                for refund in refunds.get_many(moving)
                if refund is not None
            }
            moving = [
                refund_id
                for refund_id in moving
                if refund_id in found and not found[refund_id].rests
            ]
            left = end - time.monotonic()
            if not moving or left <= 0:
                if moving and flags.read(refunds.store).paused_at is not None:
                    note(ALL_PAUSED)
                return [
                    found[refund_id]
                    for refund_id in dict.fromkeys(refund_ids)
                    if refund_id in found
                ]
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_POLL)
    except KeyboardInterrupt:
        again = " ".join(moving[:5])
        raise Detached(
            f"stopped watching; the refunds continue: see them with 'refunds status {again}'"
        ) from None


def verdict(refunds: Iterable[Refund], seconds: float) -> int:
    """Return the exit code of a wait: 4 if any refund failed, was canceled or needs review.

    A refund still in progress has not failed: it leaves 0, and a note.
    """
    code = DONE
    for refund in refunds:
        if not refund.rests:
            note(
                f"refund {refund.refund_id} is still {refund.status} after {seconds:g} s, which is"
                f" not a failure: see it later with 'refunds status {refund.refund_id}'"
            )
        elif refund.status is not Status.SUCCEEDED:
            code = SOME_FAILED
            if refund.stage is Stage.REVIEW:
                note(
                    f"refund {refund.refund_id} needs review: see why with 'refunds review show"
                    f" {refund.refund_id}'"
                )
    return code
