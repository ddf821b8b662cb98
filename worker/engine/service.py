"""Handles refunds: begins each in its turn, and gives back what cannot begin.

Plain coroutines over store and gateway. What is done with a refund that has begun is in `actions`.

This module does not know Celery, and leaves all decisions to the rules.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog

from worker.engine import endings
from worker.engine.account import Account
from worker.engine.actions import Actions
from worker.engine.attempt_runner import AttemptRunner
from worker.engine.candidates import CandidateReader
from worker.engine.checker import Checker
from worker.engine.claimer import Claimer
from worker.engine.endings import Ending
from worker.engine.poller import Poller
from worker.engine.positions import Positions
from worker.engine.provider_state import ProviderTrouble
from worker.engine.rate_gate import RateGate
from worker.engine.readback_runner import ReadbackRunner
from worker.engine.rechecker import Rechecker
from worker.engine.recorder import Recorder
from worker.engine.records_guard import REFUSALS, RecordsGuard
from worker.engine.slots import Slots
from worker.errors import StoreUnavailable
from worker.model.answers import Outcome
from worker.model.refund import Lane
from worker.provider.gateway import Gateway
from worker.provider.lease_clock import since_boot
from worker.rules.attempts import Rules
from worker.store import sweeps
from worker.store.async_store import AsyncStore

log = structlog.get_logger(__name__)

MOST_WOKEN: Final = 1000
"""Refunds in the background from which on none is taken up after a delay: a sweep finds it."""


class Service:
    """Processes refunds. One instance per event loop, shared by everything that runs on it."""

    def __init__(
        self,
        store: AsyncStore,
        gateway: Gateway,
        *,
        rules: Rules,
        slots: Slots,
        gate: RateGate,
        clock: Callable[[], float] = time.monotonic,
        lease_clock: Callable[[], float] = since_boot,
        wall: Callable[[], datetime],
        jitter: Callable[[], float] = random.random,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        on_attempt: Callable[[Outcome], None] = lambda _: None,
        on_recheck: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.slots = slots
        self.gate = gate
        self.stopping = False
        self._clock = clock
        self._lease_clock = lease_clock
        self.trouble = ProviderTrouble(store, gateway, gate, jitter=jitter)
        self.breaker = self.trouble.breaker
        self.account = Account(store, gateway, refuse_credentials=self.trouble.refuse_credentials)
        self.positions = Positions(store)
        self.guard = RecordsGuard(store, on_loss=self._end_waits)
        self._recorder = Recorder(store, clock=clock, handle_again=self._handle_again)
        self._extra: set[asyncio.Task[None]] = set()
        self._waits: set[asyncio.Timeout] = set()
        self._actions = self._assembled(
            gateway,
            rules=rules,
            wall=wall,
            jitter=jitter,
            token=token,
            on_attempt=on_attempt,
            on_recheck=on_recheck,
        )

    def _assembled(
        self,
        gateway: Gateway,
        *,
        rules: Rules,
        wall: Callable[[], datetime],
        jitter: Callable[[], float],
        token: Callable[[], str],
        on_attempt: Callable[[Outcome], None],
        on_recheck: Callable[[str], None],
    ) -> Actions:
        candidates = CandidateReader(
            self.store,
            gateway,
            account=self.account,
            note_trouble=self.trouble.note,
            note_answer=self.breaker.answered,
        )
        return Actions(
            self.store,
            self._recorder,
            rules=rules,
            gate=self.gate,
            claimer=Claimer(
                self.store,
                self._recorder,
                rules=rules,
                positions=self.positions,
                gate=self.gate,
                clock=self._lease_clock,
                jitter=jitter,
                token=token,
                handle_again=self._handle_again,
            ),
            runner=AttemptRunner(
                self.store,
                gateway,
                self._recorder,
                rules=rules,
                account=self.account,
                gate=self.gate,
                clock=self._lease_clock,
                wall=wall,
                jitter=jitter,
                note_trouble=self.trouble.note,
                on_attempt=on_attempt,
                holds_back=self._holds_back,
            ),
            checker=Checker(
                gateway,
                self._recorder,
                rules=rules,
                account=self.account,
                clock=self._clock,
                jitter=jitter,
                note_trouble=self.trouble.note,
                note_answer=self.breaker.answered,
            ),
            readbacks=ReadbackRunner(
                self.store,
                gateway,
                self._recorder,
                rules=rules,
                account=self.account,
                candidates=candidates,
                note_trouble=self.trouble.note,
                note_answer=self.breaker.answered,
            ),
            poller=Poller(
                gateway,
                self._recorder,
                account=self.account,
                clock=self._clock,
                jitter=jitter,
                note_trouble=self.trouble.note,
            ),
            rechecker=Rechecker(
                gateway,
                self._recorder,
                candidates,
                clock=self._clock,
                note_trouble=self.trouble.note,
                note_answer=self.breaker.answered,
                on_recheck=on_recheck,
            ),
            clock=self._clock,
            wall=wall,
            jitter=jitter,
        )

    # Handling

    async def process(
        self, refund_ids: Sequence[str], lane: Lane, *, seconds: float
    ) -> list[Ending]:
        """Handle the refunds of one message; return their endings in the same order.

        Refunds that were not begun within `seconds` are given back.
        """
        until = self._clock() + seconds
        # An unforeseen error concerns only its own refund; the others of the message continue.
        results = await asyncio.gather(
            *(self.handle(refund_id, lane, until=until) for refund_id in refund_ids),
            return_exceptions=True,
        )
        ended: list[Ending] = []
        for refund_id, result in zip(refund_ids, results, strict=True):
            if isinstance(result, BaseException):
                ended.append(_broken(refund_id, result))
            else:
                ended.append(result)
        left = [
            refund_id
            for refund_id, ending in zip(refund_ids, ended, strict=True)
            if not ending.begun
        ]
        if left:
            try:
                await self.store.run(sweeps.give_back(left))
            except StoreUnavailable as error:
                log.warning("give_back_failed", count=len(left), error=str(error))
        return ended

    async def handle(self, refund_id: str, lane: Lane, *, until: float | None = None) -> Ending:
        """Process one refund as far as possible now.

        Return its ending: "given back" if it could not begin in time.
        """
        is_trial = False
        if self.guard.refuses():
            return endings.NOT_SAFE
        try:
            async with asyncio.timeout(
                None if until is None else max(0.0, until - self._clock())
            ) as wait:
                self._waits.add(wait)
                async with self.slots.hold(lane):
                    # Wait for the outage breaker and the rate before the claim, never while holding
                    # it.
                    is_trial = await self.breaker.wait()
                    await self.gate.acquire(lane)
                    self._waits.discard(wait)
                    wait.reschedule(None)
                    if not self.stopping and not self.guard.refuses():
                        return await self._actions.run(refund_id, lane)
        except TimeoutError:
            pass
        except REFUSALS as error:
            # Nothing was sent under the refused claim, and a sweep finds the refund again.
            self.guard.refused(error)
            return endings.NOT_BEGUN
        except StoreUnavailable as error:
            # The refund's time in `due` is unchanged, so a sweep finds it again.
            log.warning("refund_deferred", refund_id=refund_id, error=str(error))
            return endings.STORE_AWAY
        finally:
            self._waits.discard(wait)
            if is_trial:
                self.breaker.trial_over()
        if self.guard.refuses():
            return endings.NOT_SAFE
        return endings.given_back(stopping=self.stopping, provider_away=self.breaker.is_open)

    def _holds_back(self) -> bool:
        return self.stopping or self.breaker.is_open or self.guard.refuses()

    def stop(self) -> None:
        """Begin no more refunds: waiting ones are given back at once, ones already begun continue.

        A refund that waits for a permit for one more read is given back too. The rate may make it
        wait for long, and the next worker that takes the refund repeats the read.
        """
        self.stopping = self._recorder.stopping = True
        self.gate.stop()
        self._end_waits()

    def _end_waits(self) -> None:
        for wait in self._waits:
            # A timeout that expires at this very moment ends by itself, and must not be
            # rescheduled.
            if not wait.expired():
                wait.reschedule(0)

    def _handle_again(self, refund_id: str, lane: Lane, delay: timedelta) -> None:
        """Handle a refund in the background after `delay`.

        Its payment is free now, or its next check is soon.

        The refund is dropped if this process ends or has too many of them, because a sweep finds
        it.
        """
        if delay <= timedelta(0):
            self._wake(refund_id, lane)
        elif len(self._extra) < MOST_WOKEN:
            asyncio.get_running_loop().call_later(
                delay.total_seconds(), self._wake, refund_id, lane
            )

    def _wake(self, refund_id: str, lane: Lane) -> None:
        if self.stopping:
            return
        task = asyncio.create_task(self._woken(refund_id, lane))
        self._extra.add(task)
        task.add_done_callback(self._extra.discard)

    async def _woken(self, refund_id: str, lane: Lane) -> None:
        try:
            await self.handle(refund_id, lane)
        except Exception as error:  # noqa: BLE001 - nothing awaits this task; a sweep finds the refund
            _broken(refund_id, error)

    async def drain(self) -> None:
        """Wait for the refunds that are handled in the background."""
        self.breaker.stop()
        while self._extra:
            await asyncio.wait(self._extra)


def _broken(refund_id: str, error: BaseException) -> Ending:
    """Report an unforeseen error in a refund's handling; return the ending."""
    log.error("refund_handling_failed", refund_id=refund_id, alarm=True, exc_info=error)
    return endings.broken(error)
