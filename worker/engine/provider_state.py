"""What an answer says of the provider as a whole, and who is to know: a rate limit, a refused key, an outage."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import structlog

from worker.engine.breaker import Breaker
from worker.engine.rate_gate import RateGate
from worker.errors import StoreUnavailable
from worker.model.answers import Outcome, Seen
from worker.provider.gateway import Gateway
from worker.store.async_store import AsyncStore

log = structlog.get_logger(__name__)

FIRST_BLOCK: Final = timedelta(seconds=1)
LONGEST_BLOCK: Final = timedelta(minutes=2)


class ProviderTrouble:
    """Told of every outcome; closes the gate and parks the key for all workers, opens the breaker of its own."""

    def __init__(self, store: AsyncStore, gateway: Gateway, gate: RateGate, *, jitter: Callable[[], float]) -> None:
        self.breaker = Breaker(self._provider_answers, jitter=jitter)
        self._store = store
        self._gateway = gateway
        self._gate = gate
        self._blocks = 0

    async def note(self, outcome: Outcome) -> None:
        """Let all workers know what one answer says of the provider as a whole.

        Where Redis is away they are not told: the next answer says it again, and what this one says of its own refund
        is still to be saved.
        """
        self.breaker.record(outcome)
        try:
            await self._tell(outcome)
        except StoreUnavailable as error:
            log.warning("trouble_untold", code=outcome.code, error=str(error))

    async def _tell(self, outcome: Outcome) -> None:
        if outcome.credentials and outcome.seen is not Seen.REFUSED:
            await self.refuse_credentials()
        if outcome.code == "rate_limited":
            self._blocks += 1
            own = min(LONGEST_BLOCK, FIRST_BLOCK * 2 ** min(self._blocks - 1, 10))
            wait = max(outcome.retry_after or own, FIRST_BLOCK)
            await self._gate.block(wait)
            log.warning("rate_limited", seconds=wait.total_seconds())
        elif outcome.seen is Seen.DONE:
            self._blocks = 0

    async def refuse_credentials(self) -> None:
        """Open the credentials breaker: nothing is failed, all wait, an alarm rings.

        What the provider said is not logged: it may repeat what it was asked, metadata included.
        """
        opened = await self._store.flag("credentials_refused_at", once=True)
        if opened:
            log.error("credentials_refused", alarm=True)

    async def probe_credentials(self) -> bool:
        """Close the credentials breaker where the provider accepts the key again; return whether it is closed."""
        if not await self._store.flagged("credentials_refused_at"):
            return True
        if await self._gateway.key_is_accepted():
            await self._store.unflag("credentials_refused_at")
            log.info("credentials_accepted")
            return True
        return False

    async def _provider_answers(self) -> bool:
        return await self._gateway.key_is_accepted() is not None
