"""The sweep: finds due refunds and sends nudges for them.

Any number of sweepers may run; no particular one must.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from worker.model.refund import Lane, Stage
from worker.store import sweeps
from worker.store.async_store import AsyncStore
from worker.store.sweeps import Due

log = structlog.get_logger(__name__)

LIMIT: Final = 500
"""Maximum refunds taken at a time."""
ROUNDS: Final = 10
"""Maximum consecutive full takes in one sweep."""
SINGLES_A_MESSAGE: Final = 10
BULK_A_MESSAGE: Final = 100
# Refunds that may already exist at the provider are checked before any new row of a file.
_URGENT: Final = frozenset({Stage.SENDING, Stage.IN_DOUBT, Stage.PROCESSING})

Nudge = Callable[[Sequence[str], Lane], None]
Depth = Callable[[Lane], int]


async def sweep(store: AsyncStore, *, nudge: Nudge, depth: Depth) -> int:
    """Take due refunds and send nudges for them; return how many.

    `nudge` and `depth` block, so they run in a thread.

    Raises `StoreUnavailable`, and passes on the broker's errors; the refunds taken are due again in
    half a minute.
    """
    total = 0
    for _ in range(ROUNDS):
        depths = await asyncio.to_thread(lambda: {lane: depth(lane) for lane in Lane})
        dry = frozenset(lane for lane, waiting in depths.items() if waiting == 0)
        taken = await store.run(sweeps.sweep(LIMIT, dry=dry))
        reminders = [due.refund_id for due in taken if due.stage is Stage.REVIEW]
        for refund_id in reminders:
            log.error("refund_still_in_review", refund_id=refund_id, alarm=True)
        messages = _messages(taken)
        if messages:
            await asyncio.to_thread(_send, messages, nudge)
            log.info("refunds_swept", count=len(taken) - len(reminders))
        total += len(taken)
        if len(taken) < LIMIT:
            break
    return total


def _messages(taken: Sequence[Due]) -> list[tuple[list[str], Lane]]:
    lanes: dict[Lane, list[str]] = {lane: [] for lane in Lane}
    for due in taken:
        if due.stage is not Stage.REVIEW:
            lanes[Lane.SINGLE if due.stage in _URGENT else due.lane].append(due.refund_id)
    sizes = {Lane.SINGLE: SINGLES_A_MESSAGE, Lane.BULK: BULK_A_MESSAGE}
    return [
        (ids[start : start + sizes[lane]], lane)
        for lane, ids in lanes.items()
        for start in range(0, len(ids), sizes[lane])
    ]


def _send(messages: Sequence[tuple[list[str], Lane]], nudge: Nudge) -> None:
    for ids, lane in messages:
        nudge(ids, lane)
