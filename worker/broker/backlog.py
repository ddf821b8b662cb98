"""Backlog warning: logs if a queue grows deep. It checks at intervals and never blocks a refund."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from worker.errors import StoreUnavailable
from worker.model.refund import Lane

# Producers configure their own logging, so this module uses the standard library.
log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 10.0


class BacklogWatch:
    """Checks a lane's depth if the last check is older than `PAUSE_SECONDS`.

    Safe to share between threads.
    """

    def __init__(self, warning: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._warning = warning
        self._clock = clock
        # One timer per lane, so that a check of single refunds does not delay the warning about
        # files.
        self._due = dict.fromkeys(Lane, 0.0)

    def look(self, lane: Lane, depth: Callable[[], int]) -> None:
        """Log a warning if a lane is deep.

        `depth` is called rarely, and refunds are accepted whatever it returns.
        """
        now = self._clock()
        if now < self._due[lane]:
            return
        self._due[lane] = now + PAUSE_SECONDS
        try:
            queued = depth()
        except Exception as error:  # noqa: BLE001 - whatever it is, the refund is accepted
            known = isinstance(error, StoreUnavailable)
            reason = str(error) if known else type(error).__name__
            log.info("backlog_unknown", extra={"lane": lane.value, "error": reason})
            return
        if queued > self._warning:
            log.warning("backlog_deep", extra={"lane": lane.value, "queued": queued})
