"""Gathers the nudges of a few milliseconds into one message for each lane.

A message of ten ids costs what a message of one does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import structlog

from worker.broker.names import BULK_IDS
from worker.broker.queues import PUBLISH_ERRORS
from worker.errors import RefundError
from worker.model.refund import Lane, Stage
from worker.store.sweeps import Due

log = structlog.get_logger(__name__)

GATHER_SECONDS: Final = 0.005
_AT_ONCE: Final = {Lane.SINGLE: 20, Lane.BULK: BULK_IDS}
"""The most ids in a message: a worker handles those of one message together."""
_BEHIND: Final = 200
"""From so many ids in a lane on, messages are as large as in the lane of files.

Each costs the same, and with small ones ids would come faster than they are sent.
"""


class Nudges:
    """Sends nudges, gathered. For one event loop.

    `publish` blocks, so it runs in a thread. `lost` receives the ids of a message that was not
    sent, and makes them due for the next sweep.
    """

    def __init__(
        self,
        publish: Callable[[Sequence[str], Lane], None],
        lost: Callable[[Sequence[str]], Awaitable[object]],
    ) -> None:
        self._publish = publish
        self._lost = lost
        self._waiting: dict[Lane, dict[str, None]] = {lane: {} for lane in Lane}
        self._sender: asyncio.Task[None] | None = None

    def add(self, dues: Iterable[Due]) -> None:
        """Nudge these refunds within a few milliseconds."""
        for due in dues:
            self._waiting[due.lane][due.refund_id] = None
        if self._sender is None and any(self._waiting.values()):
            self._sender = asyncio.create_task(self._send())

    async def close(self) -> None:
        """Send what is gathered."""
        if self._sender is not None:
            await self._sender

    async def _send(self) -> None:
        try:
            while any(self._waiting.values()):
                await asyncio.sleep(GATHER_SECONDS)
                for lane, size in _AT_ONCE.items():
                    ids = [*self._waiting[lane]]
                    self._waiting[lane].clear()
                    together = size if len(ids) < _BEHIND else BULK_IDS
                    for start in range(0, len(ids), together):
                        await self._message(ids[start : start + together], lane)
        finally:
            self._sender = None

    async def _message(self, ids: Sequence[str], lane: Lane) -> None:
        try:
            await asyncio.to_thread(self._publish, ids, lane)
        except PUBLISH_ERRORS as error:
            log.warning(
                "nudge_not_sent", refund_id=ids[0], count=len(ids), error=type(error).__name__
            )
            try:
                await self._lost(ids)
            except RefundError as failure:
                # The records hold that they are due; the sweep only finds them later.
                log.warning("nudge_not_given_back", error=str(failure))


def from_thread(
    nudge: Callable[[Iterable[Due]], None], loop: asyncio.AbstractEventLoop
) -> Callable[[Sequence[str]], None]:
    """Return what nudges refunds of files by their ids, from a thread beside the loop."""

    def nudged(ids: Sequence[str]) -> None:
        dues = [Due(refund_id=each, lane=Lane.BULK, stage=Stage.QUEUED) for each in ids]
        loop.call_soon_threadsafe(nudge, dues)

    return nudged
