"""Checks before a send: reads the payment's needed facts at the provider, and saves any hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from worker.engine import endings
from worker.engine.account import Account
from worker.engine.endings import Ending
from worker.engine.recorder import Recorder
from worker.model.answers import Outcome, PaymentView, Readback
from worker.model.refund import Refund
from worker.model.steps import Step
from worker.provider.gateway import Gateway, Permit, is_missing
from worker.rules import preflight, proofs, rechecks
from worker.rules.attempts import Rules
from worker.rules.outcomes import classify

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A refund that was not sent: its ending, and whether its next action is due at once."""

    ending: Ending
    continues: bool
    stale: bool
    """Whether the record had changed, so that nothing was saved."""


class Checker:
    """Reads payments before a send, and saves the step if a refund is held back.

    `note_trouble` and `note_answer` are the same as for `ReadbackRunner`.
    """

    def __init__(
        self,
        gateway: Gateway,
        recorder: Recorder,
        *,
        rules: Rules,
        account: Account,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        note_trouble: Callable[[Outcome], Awaitable[None]],
        note_answer: Callable[[], None],
    ) -> None:
        self._gateway = gateway
        self._recorder = recorder
        self._rules = rules
        self._account = account
        self._clock = clock
        self._jitter = jitter
        self._note_trouble = note_trouble
        self._note_answer = note_answer

    async def read_payment(
        self, refund: Refund, now: datetime, permit: Permit
    ) -> PaymentView | Ending:
        """Return the payment's view if the refund may be sent, else the saved step's ending."""
        seen = await self._gateway.get_payment(refund.payment_intent, permit, about=refund)
        if isinstance(seen, PaymentView):
            self._note_answer()
            view, code = seen, ""
            step: Step | None = preflight.after_view(refund, seen, now, self._jitter())
        else:
            outcome = await self._gateway.whose_refusal(classify(seen, refund))
            await self._note_trouble(outcome)
            view, code = PaymentView(), outcome.code
            if is_missing(seen) and await self._account.is_lost(refund.payment_intent, permit):
                step = preflight.account_lost(refund)
            else:
                step = preflight.after_no_view(refund, outcome, self._rules, now, self._jitter())
        if step is None:
            return view
        return (await self._keep_back(refund, step, code, {})).ending

    async def read_prior(
        self, refund: Refund, now: datetime, permit: Permit, *, may_have_left: bool
    ) -> Ending | None:
        """Read the provider's refunds of earlier generations before a retry is sent.

        Return None if they moved nothing, else the saved step's ending. `may_have_left` says that
        the retry itself may have been sent before.
        """
        began = self._clock()
        for prior in refund.prior_ids:
            if prior == refund.provider_refund_id:
                # It is the record's own, which a read-back has read.
                continue
            answer = await self._gateway.get_refund(prior, permit, about=refund)
            found = rechecks.shown_refund(answer)
            code = ""
            if found is not None and found.id == prior:
                self._note_answer()
                owner = await self._recorder.owner_of(prior)
                step = preflight.after_prior(
                    refund, found, now, may_have_left=may_have_left, owner=owner
                )
            else:
                outcome = await self._gateway.whose_refusal(classify(answer, refund))
                await self._note_trouble(outcome)
                code = outcome.code
                if not rechecks.is_gone(outcome):
                    step = preflight.prior_unreadable(
                        refund, outcome, self._rules, now, self._jitter()
                    )
                elif await self._account.is_lost(refund.payment_intent, permit):
                    step = preflight.account_lost(refund)
                else:
                    step = preflight.prior_missing(refund, prior)
            if step is None:
                continue
            step = proofs.settles_soon_after(step, now + timedelta(seconds=self._clock() - began))
            held = await self._keep_back(refund, step, code, {"prior": prior})
            if held.stale and found is not None and step.label in preflight.PRIOR_DONE:
                # The retry was canceled or found meanwhile. The proof is kept beside that.
                await self._recorder.contradict(refund, rechecks.prior_done(refund, found, now))
            return held.ending
        return None

    async def judge(self, refund: Refund, read_back: Readback, now: datetime) -> Held | None:
        """Judge a read-back before the first send.

        Return None if the refund may be sent, else save the step.
        """
        step = preflight.after_first_readback(refund, read_back, self._rules, now, self._jitter())
        if step is None:
            return None
        detail = {"look": read_back.verdict.value, "reason": read_back.reason}
        return await self._keep_back(refund, step, "", detail)

    async def _keep_back(
        self, refund: Refund, step: Step, code: str, detail: dict[str, Any]
    ) -> Held:
        saved, ending = await self._recorder.save(refund, step, detail)
        is_saved = saved.result == "saved"
        if step.quiet:
            reason = code if step.label == preflight.UNREADABLE else step.label
            log.info(
                "refund_postponed", refund_id=refund.refund_id, reason=reason, code=code or None
            )
            if is_saved:
                ending = endings.postponed(refund, reason)
        return Held(
            ending=ending,
            continues=is_saved and not step.quiet,
            stale=saved.result == "stale",
        )
