"""Notices a server that forgot claims: one that was promoted without them, or restored.

Each claim has a position, and each worker remembers the latest one that was confirmed to it. A
server that lacks it grants no claim, and stops those of all workers until `refunds recover`.
"""

from __future__ import annotations

from datetime import datetime

import structlog

from worker.model.times import rfc3339
from worker.store import claims
from worker.store.async_store import AsyncStore

log = structlog.get_logger(__name__)


class Positions:
    """The latest position that one worker remembers."""

    def __init__(self, store: AsyncStore) -> None:
        self.latest = ""
        self._rank: tuple[int, ...] = ()
        self._store = store
        self._behind_since: datetime | None = None

    def confirmed(self, position: str) -> None:
        """Remember the position of a claim that is safe; replies may come in any order.

        Nothing is remembered of a server that may forget.
        """
        if not position or not self._store.may_not_forget:
            return
        run, counter, _ = position.split(":")
        rank = int(run.partition("-")[0]), int(counter)
        self._rank, self.latest = max((self._rank, self.latest), (rank, position))

    async def check(self) -> None:
        """Compare the server with what is remembered; one alarm is logged for each stop.

        Raises `StoreUnavailable`.
        """
        since = await self._store.run(claims.position(self.latest))
        if since is not None and since != self._behind_since:
            log.critical(
                "records_behind",
                alarm=True,
                since=rfc3339(since),
                error="this Redis has forgotten claims, so nothing is sent: run 'refunds recover"
                " --since TIME' with a time shortly before the failover or the snapshot",
            )
        if since is None and self._behind_since is not None:
            log.warning("records_trusted_again")
        self._behind_since = since
