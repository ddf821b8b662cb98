"""The circuit breaker of one worker.

Stops calls if the provider does not answer, and probes until it does.

Without it an outage would put every queued refund in doubt, one timeout after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import structlog

from worker.model.answers import Outcome, TryVerdict
from worker.rules.attempts import backoff

log = structlog.get_logger(__name__)

FAILURES: Final = 8
"""Consecutive calls without a proper answer that open the breaker."""
FIRST_PROBE: Final = timedelta(seconds=1)
LONGEST_PROBE: Final = timedelta(seconds=30)


def is_outage(outcome: Outcome) -> bool:
    """Return whether an outcome indicates an outage.

    The provider is unreachable, silent, or failing by itself.
    """
    if outcome.verdict is TryVerdict.NOT_SENT:
        return True
    return outcome.verdict is TryVerdict.MAYBE and (
        outcome.http_status is None or outcome.server_error
    )


class Breaker:
    """A circuit breaker.

    Closed: all calls may be made. Open: none may, and a probe runs now and then. Half open: one
    trial call may be made, and its result decides.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[bool]], *, jitter: Callable[[], float]
    ) -> None:
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
        """Return whether no call may be made now."""
        return self.is_open and not self._trial

    async def wait(self) -> bool:
        """Wait until a call may be made; return whether it is the trial, first after half open."""
        while self.is_open:
            if self._trial:
                self._trial = self._asked = False
                return True
            self._changed.clear()
            await self._changed.wait()
        return False

    def trial_over(self) -> None:
        """Offer the trial to the next caller if its holder made no call to the provider."""
        if self.is_open and not self._asked:
            self._trial = True
            self._changed.set()

    def answered(self) -> None:
        """Record that the provider answered a call, whatever the answer."""
        self._asked = True
        self._failures = 0
        if self.is_open:
            self._close()

    def record(self, outcome: Outcome) -> None:
        """Record the outcome of a call."""
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
            if self._trial or await self._has_answer():
                # One call may try. If none comes, or it fails too, the next round offers the trial
                # again.
                self._trial = True
                self._changed.set()

    async def _has_answer(self) -> bool:
        try:
            return await self._probe()
        except Exception:
            # Whatever it is, the next probe follows: without one, every refund here waits for good.
            log.exception("probe_failed")
            return False

    def stop(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None
