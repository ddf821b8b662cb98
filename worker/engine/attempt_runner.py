"""Makes an attempt under a claim: sends the stored request, and saves the outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

import structlog

from worker.engine import endings
from worker.engine.account import Account
from worker.engine.endings import Ending
from worker.engine.rate_gate import RateGate
from worker.engine.recorder import Recorder
from worker.errors import NotStorable, StoreUnavailable
from worker.model.answers import Outcome, TryVerdict
from worker.model.refund import Lane, Refund, Stage
from worker.provider.gateway import Gateway
from worker.rules import attempts, proofs
from worker.rules.attempts import Rules
from worker.rules.outcomes import owned_elsewhere
from worker.store import claims
from worker.store.async_store import AsyncStore
from worker.store.claims import Claim

log = structlog.get_logger(__name__)


class AttemptRunner:
    """Makes attempts, each of one or more tries.

    `note_trouble` and `on_attempt` receive each outcome. `holds_back` returns whether no further
    try may be sent by this worker now.
    """

    def __init__(
        self,
        store: AsyncStore,
        gateway: Gateway,
        recorder: Recorder,
        *,
        rules: Rules,
        account: Account,
        gate: RateGate,
        clock: Callable[[], float],
        wall: Callable[[], datetime],
        jitter: Callable[[], float],
        note_trouble: Callable[[Outcome], Awaitable[None]],
        on_attempt: Callable[[Outcome], None],
        holds_back: Callable[[], bool],
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._recorder = recorder
        self._rules = rules
        self._account = account
        self._gate = gate
        self._clock = clock
        self._wall = wall
        self._jitter = jitter
        self._note_trouble = note_trouble
        self._on_attempt = on_attempt
        self._holds_back = holds_back

    async def run(self, claim: Claim, lane: Lane) -> Ending:
        """Make an attempt if the claim was granted.

        Return the refund's ending, also for a refused claim.
        """
        refund = claim.refund
        if claim.claimed and refund is not None:
            return await self._attempt(claim, refund, lane)
        if claim.result == "no_body" and refund is not None and refund.stage is Stage.IN_DOUBT:
            step = proofs.to_review({}, "no_body", "its stored request is gone")
            _, ending = await self._recorder.save(refund, step, {})
            return ending
        if claim.result == "canceled" and refund is not None and not refund.settled:
            _, ending = await self._recorder.save(refund, attempts.not_canceled(), {})
            return ending
        return endings.not_claimed(claim.result, refund)

    async def _attempt(self, claim: Claim, refund: Refund, lane: Lane) -> Ending:
        started = self._clock()
        outcome = await self._send(claim, refund, lane)
        elapsed = timedelta(seconds=self._clock() - started)
        self._on_attempt(outcome)
        await self._note_trouble(outcome)
        ending = await self._save(refund, outcome, claim.now + elapsed, elapsed)
        if outcome.verdict is TryVerdict.REFUSED and outcome.http_status == HTTPStatus.NOT_FOUND:
            # This refund moved nothing. If its payment was shown once, that stops all others. A
            # stopping worker does not wait for the permit, because another refund of the payment
            # will show the same.
            with suppress(TimeoutError):
                await self._account.is_lost(refund.payment_intent, lambda: self._gate.go_on(lane))
        return ending

    async def _send(self, claim: Claim, refund: Refund, lane: Lane) -> Outcome:
        async def may_go_on() -> bool:
            return await self._may_try_again(refund.refund_id, claim.token, lane)

        window: timedelta | None = None
        if refund.first_attempt_at is not None:
            # Use the clock that is further ahead: this worker's own may close the window, and never
            # opens it.
            now = max(claim.now, self._wall())
            window = refund.first_attempt_at + self._rules.key_window - now
        return await self._gateway.send(
            refund, claim.body, lease_left=claim.lease_left, window_left=window, may_go_on=may_go_on
        )

    async def _save(
        self, refund: Refund, outcome: Outcome, now: datetime, elapsed: timedelta
    ) -> Ending:
        step = attempts.after_attempt(refund, outcome, self._rules, now, self._jitter())
        detail: dict[str, Any] = {
            "attempt": refund.attempts,
            "seen": outcome.verdict.value,
            "ms": elapsed // timedelta(milliseconds=1),
        }
        if outcome.http_status is not None:
            detail["http_status"] = outcome.http_status
        if outcome.tries > 1:
            detail["tries"] = outcome.tries
        if outcome.odd is not None:
            # If the records cannot hold it, the log has it, and the rest is saved all the same.
            with suppress(NotStorable):
                await self._recorder.name(refund, step, outcome.odd, is_kept=outcome.is_unnamed)
        saved, ending = await self._recorder.save(refund, step, detail, insist=True)
        if saved.result == "late" and outcome.found is not None:
            step = proofs.succeeded_long_ago(refund, outcome.found, "reply", saved.now)
            saved, ending = await self._recorder.save(refund, step, detail, insist=True)
        if saved.result == "stale" and outcome.found is not None and not step.proof:
            # Only this reply shows it.
            is_unnamed = outcome.found.refund_id is None
            await self._recorder.name(refund, step, outcome.found.id, is_kept=is_unnamed)
        if saved.result == "owned":
            doubt = owned_elsewhere(outcome, saved.other or "")
            step = attempts.after_attempt(refund, doubt, self._rules, now, self._jitter())
            _, ending = await self._recorder.save(
                refund, step, detail | {"seen": doubt.verdict.value}, insist=True
            )
        return ending

    async def _may_try_again(self, refund_id: str, token: str, lane: Lane) -> bool:
        """Return whether a further try may be sent under a claim.

        Checked last, because each answer goes stale.
        """
        if self._holds_back():
            return False
        try:
            if not await self._gate.try_now(lane):
                return False
            # Since the claim the refund may have been proven done, or claims paused: then no
            # further byte is sent.
            obstacle = await self._store.run(claims.stands(refund_id, token))
        except (NotStorable, StoreUnavailable) as error:
            # The result of the tries so far is kept, and saved as soon as possible.
            obstacle = f"store_unavailable: {error}"
        if obstacle:
            log.info("further_try_left_out", refund_id=refund_id, reason=obstacle)
        return not obstacle
