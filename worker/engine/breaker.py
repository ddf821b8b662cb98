"""The outage breaker of one worker: when the provider does not answer, stop asking, and probe until it does.

Without it an outage would put every queued refund in doubt, one timeout after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import structlog

from worker.model.answers import Outcome, Seen
from worker.rules.attempts import backoff

log = structlog.get_logger(__name__)

FAILURES: Final = 8
"""Calls in a row without a proper answer that open it."""
FIRST_PROBE: Final = timedelta(seconds=1)
LONGEST_PROBE: Final = timedelta(seconds=30)


def is_outage(outcome: Outcome) -> bool:
    """Tell whether an outcome speaks of a provider that is away: unreachable, silent, or failing by itself."""
    if outcome.seen is Seen.NOT_SENT:
        return True
    return outcome.seen is Seen.MAYBE and (outcome.http_status is None or outcome.server_error)


class Breaker:
    """Closed: all may call. Open: none may, and a probe asks now and then. Half open: one may, and decides."""

    def __init__(self, probe: Callable[[], Awaitable[bool]], *, jitter: Callable[[], float]) -> None:
        self.is_open = False
        self._probe = probe
        self._jitter = jitter
        self._failures = 0
        self._trial = False
        self._asked = False
        """Whether any call has ended since the trial was taken."""
        self._probing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def resting(self) -> bool:
        """Tell whether no call would be let through now."""
        return self.is_open and not self._trial

    async def wait(self) -> bool:
        """Wait until a call may be made; return whether it is the trial: half open, that is the first to come."""
        while self.is_open:
            if self._trial:
                self._trial = self._asked = False
                return True
            self._changed.clear()
            await self._changed.wait()
        return False

    def trial_over(self) -> None:
        """Offer the trial to the next where whoever had it has asked the provider nothing."""
        if self.is_open and not self._asked:
            self._trial = True
            self._changed.set()

    def answered(self) -> None:
        """Note that the provider answered a call, whatever it said."""
        self._asked = True
        self._failures = 0
        if self.is_open:
            self._close()

    def record(self, outcome: Outcome) -> None:
        """Note how a call ended."""
        if not is_outage(outcome):
            self.answered()
            return
        self._asked = True
        self._failures += 1
        if not self.is_open and self._failures >= FAILURES:
            self.is_open = True
            log.error("provider_away", alarm=True, failures=self._failures, reason=outcome.code)
        if self.is_open and self._probing is None:
            self._probing = asyncio.create_task(self._probe_until_answered())

    def _close(self) -> None:
        self.is_open = self._trial = False
        self.stop()
        self._changed.set()
        log.info("provider_back")

    async def _probe_until_answered(self) -> None:
        count = 0
        while True:
            count += 1
            pause = backoff(count, base=FIRST_PROBE, cap=LONGEST_PROBE, jitter=self._jitter())
            await asyncio.sleep(pause.total_seconds())
            if self._trial or await self._probe():
                # One call may try; where none comes, or it fails too, the next round offers it again.
                self._trial = True
                self._changed.set()

    def stop(self) -> None:
        """End the probe."""
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None
