"""Reacts to answers that concern every refund: rate limits, refused API keys, outages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

import structlog

from worker.engine.breaker import Breaker
from worker.engine.rate_gate import RateGate
from worker.errors import NotStorable, StoreUnavailable
from worker.model.answers import Outcome, TryVerdict
from worker.provider.gateway import Gateway
from worker.store.async_store import AsyncStore

log = structlog.get_logger(__name__)

FIRST_BLOCK: Final = timedelta(seconds=1)
LONGEST_BLOCK: Final = timedelta(minutes=2)


class ProviderTrouble:
    """Receives every outcome, and reacts if the provider is in trouble.

    It closes the rate gate and parks the key for all workers, and opens this worker's breaker.
    """

    def __init__(
        self, store: AsyncStore, gateway: Gateway, gate: RateGate, *, jitter: Callable[[], float]
    ) -> None:
        self.breaker = Breaker(self._provider_answers, jitter=jitter)
        self._store = store
        self._gateway = gateway
        self._gate = gate
        self._blocks = 0

    async def note(self, outcome: Outcome) -> None:
        """Share with all workers what one answer says about the provider as a whole.

        If Redis is away or cannot hold it, this is only logged: the next answer will say it again,
        and what this answer says about its own refund must still be saved.
        """
        self.breaker.record(outcome)
        try:
            await self._tell(outcome)
        except (NotStorable, StoreUnavailable) as error:
            log.warning("trouble_untold", code=outcome.code, error=str(error))

    async def _tell(self, outcome: Outcome) -> None:
        if outcome.credentials and outcome.verdict is not TryVerdict.REFUSED:
            await self.refuse_credentials()
        if outcome.code == "rate_limited":
            self._blocks += 1
            own = min(LONGEST_BLOCK, FIRST_BLOCK * 2 ** min(self._blocks - 1, 10))
            wait = max(outcome.retry_after or own, FIRST_BLOCK)
            await self._gate.block(wait)
            log.warning("rate_limited", seconds=wait.total_seconds())
        elif outcome.verdict is TryVerdict.DONE:
            self._blocks = 0

    async def refuse_credentials(self) -> None:
        """Open the credentials breaker: no refund fails, all wait, and an alarm is raised.

        The provider's text is not logged, because it may repeat the request, including metadata.
        """
        opened = await self._store.flag("credentials_refused_at", once=True)
        if opened:
            log.error("credentials_refused", alarm=True)

    async def probe_credentials(self) -> bool:
        """Close the credentials breaker if the provider accepts the key again.

        Return whether it is closed.
        """
        if not await self._store.flagged("credentials_refused_at"):
            return True
        if await self._gateway.key_is_accepted():
            await self._store.unflag("credentials_refused_at")
            log.info("credentials_accepted")
            return True
        return False

    async def _provider_answers(self) -> bool:
        return await self._gateway.key_is_accepted() is not None
