"""Stops a worker's new work while its Redis server may forget what it acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Final

import structlog

from worker.errors import NotDurable, RefundError, SettingsError, TooFewReplicas
from worker.store.async_store import AsyncStore

log = structlog.get_logger(__name__)

REFUSALS: Final = (NotDurable, SettingsError, TooFewReplicas)
"""The errors of a server that is there and may forget, or whose user may not find out.

`TooFewReplicas` is also a `StoreUnavailable`, so catch these first.
"""


class RecordsGuard:
    """Knows whether a worker may accept and begin refunds; `on_loss` gives back those that wait.

    It learns from a regular check of the server, and from each durable command that was refused.
    Refunds that were begun before continue, because the save of a reply is better than none.
    """

    def __init__(self, store: AsyncStore, *, on_loss: Callable[[], None]) -> None:
        self.fault: str | None = None
        """The setting that is wrong and its fix; None while the server keeps what it acknowledges.
        """
        self._error: RefundError | None = None
        self._store = store
        self._on_loss = on_loss

    def refuses(self) -> bool:
        """Return whether nothing may be accepted or begun now."""
        return self.fault is not None

    def require(self) -> None:
        """Raise the error for which nothing may be accepted now, if there is one."""
        if self._error is not None:
            # A copy, since each raise adds to an error's traceback.
            raise copy(self._error)

    async def check(self) -> None:
        """Check the server. Raises `StoreUnavailable` if it is silent; nothing changes then."""
        try:
            await self._store.require_durable()
        except REFUSALS as error:
            self.refused(error)
        else:
            if self.refuses():
                self.fault = self._error = None
                log.warning("durability_restored")

    def refused(self, error: RefundError) -> None:
        """Begin nothing more until a check succeeds; one alarm is logged for each reason."""
        reason, known = str(error), self.fault
        self.fault, self._error = reason, error
        if reason != known:
            log.error("durability_lost", alarm=True, error=reason)
        if known is None:
            self._on_loss()
