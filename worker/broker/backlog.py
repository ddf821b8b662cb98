"""Whether refunds come in faster than they go out: asked now and then, said in the log, and never in anybody's way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from worker.errors import StoreUnavailable
from worker.model.refund import Lane

# A producer's process logs as it likes, so through the standard library.
log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 10.0


class BacklogWatch:
    """Asks for a lane's depth where the last time was a while ago; safe to share between threads."""

    def __init__(self, warning: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._warning = warning
        self._clock = clock
        # A timer for each lane: a shop's single refunds must not silence what is said of its files.
        self._due = dict.fromkeys(Lane, 0.0)

    def look(self, lane: Lane, depth: Callable[[], int]) -> None:
        """Say so where a lane is deep; `depth` is asked seldom, and whatever it says the refunds are accepted."""
        now = self._clock()
        if now < self._due[lane]:
            return
        self._due[lane] = now + PAUSE_SECONDS
        try:
            queued = depth()
        except StoreUnavailable as error:
            log.info("backlog_unknown", extra={"lane": lane.value, "error": str(error)})
            return
        if queued > self._warning:
            log.warning("backlog_deep", extra={"lane": lane.value, "queued": queued})
