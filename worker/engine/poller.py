"""Polls a refund that the provider reports pending, and saves what it shows now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from worker.engine.account import Account
from worker.engine.endings import Ending
from worker.engine.recorder import Recorder
from worker.model.answers import Answer, Outcome, Reply
from worker.model.refund import Refund
from worker.provider.gateway import Gateway, Permit, is_missing
from worker.rules import polls, proofs
from worker.rules.outcomes import classify


class Poller:
    """Polls refunds by their provider id. `note_trouble` receives the outcome of each poll."""

    def __init__(
        self,
        gateway: Gateway,
        recorder: Recorder,
        *,
        account: Account,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        note_trouble: Callable[[Outcome], Awaitable[None]],
    ) -> None:
        self._gateway = gateway
        self._recorder = recorder
        self._account = account
        self._clock = clock
        self._jitter = jitter
        self._note_trouble = note_trouble

    async def run(self, refund: Refund, now: datetime, permit: Permit) -> Ending:
        """Poll a refund at `now` (the records' time), and save the step that follows.

        `permit` is awaited before each call.
        """
        if refund.provider_refund_id is None:
            step = proofs.to_review({}, "no_provider_id", "it is processing under no id")
            _, ending = await self._recorder.save(refund, step, {})
            return ending
        began = self._clock()
        answer = await self._gateway.get_refund(refund.provider_refund_id, permit, about=refund)
        read_at = now + timedelta(seconds=self._clock() - began)
        await self._note_trouble(classify(answer, refund))
        step = polls.after_poll(refund, answer, now, self._jitter())
        if (
            polls.says_gone(step)
            and refund.missing_since is not None
            and await self._account_is_lost(refund, permit)
        ):
            step = polls.account_lost()
        step = proofs.settles_soon_after(step, read_at)
        _, ending = await self._recorder.save(
            refund, step, {"seen": _shape(answer)}, insist=step.proof
        )
        return ending

    async def _account_is_lost(self, refund: Refund, permit: Permit) -> bool:
        """Return whether the payment of a refund is missing too, although it was shown once."""
        payment = await self._gateway.get_payment_intent(
            refund.payment_intent, permit, about=refund
        )
        return is_missing(payment) and await self._account.is_lost(refund.payment_intent, permit)


def _shape(answer: Answer) -> str:
    return f"http_{answer.http_status}" if isinstance(answer, Reply) else answer.reason
