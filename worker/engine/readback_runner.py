"""Read-backs: gathers what the provider shows for a doubtful refund and its payment.

`rules.evidence` judges it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Final

from worker.engine.account import Account
from worker.engine.candidates import CandidateReader
from worker.engine.recorder import Recorder
from worker.model.answers import (
    Answer,
    Outcome,
    PaymentView,
    ProviderRefund,
    Readback,
    ReadbackVerdict,
    Reply,
    TryVerdict,
)
from worker.model.refund import Refund
from worker.provider.gateway import Gateway, Permit, shows
from worker.rules import proofs, rechecks
from worker.rules.attempts import Rules
from worker.rules.evidence import judge_absence, judge_list, judge_totals, known_refunds_of
from worker.rules.outcomes import classify
from worker.store import reads
from worker.store.async_store import AsyncStore

MOST_REREAD: Final = 50
"""Maximum refunds of one payment that a read-back by totals rereads, one call each.

With more it is inconclusive.
"""


class ReadbackRunner:
    """Reads back doubtful refunds, in the mode set by `rules.readback`.

    `note_trouble` is called after a read that failed, `note_answer` after any other.
    """

    def __init__(
        self,
        store: AsyncStore,
        gateway: Gateway,
        recorder: Recorder,
        *,
        rules: Rules,
        account: Account,
        candidates: CandidateReader,
        note_trouble: Callable[[Outcome], Awaitable[None]],
        note_answer: Callable[[], None],
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._recorder = recorder
        self._rules = rules
        self._account = account
        self._candidates = candidates
        self._note_trouble = note_trouble
        self._note_answer = note_answer

    async def run(self, refund: Refund, now: datetime, permit: Permit) -> Readback:
        """Return what the provider shows for a refund in doubt, at `now` (the records' time).

        Also saves reversals of its siblings found meanwhile. What webhooks named is read first, in
        every mode.

        `permit` is awaited before each call, because a list may have many pages and a payment many
        refunds.
        """
        if refund.candidates:
            read_back = await self._candidates.read_back(refund, permit)
            if read_back is not None:
                return read_back
        if refund.operator_says is not None and refund.provider_refund_id is not None:
            # The provider gave this id once, so a person's statement about the refund can be
            # checked by that id.
            read_back = await self._read_by_id(refund, refund.provider_refund_id, permit)
            if read_back is not None:
                return read_back
        match self._rules.readback:
            case "list":
                return await self._read_list(refund, now, permit)
            case "totals":
                return await self._read_totals(refund, now, permit)
            case "none":
                return Readback(
                    verdict=ReadbackVerdict.INCONCLUSIVE, reason="nothing may be read back"
                )

    async def _read_by_id(
        self, refund: Refund, provider_refund_id: str, permit: Permit
    ) -> Readback | None:
        """Return the result of reading by provider id, None if the provider does not know it."""
        answer = await self._gateway.get_refund(provider_refund_id, permit, about=refund)
        outcome = classify(answer, refund)
        is_shown = outcome.found is not None and outcome.found.id == provider_refund_id
        if outcome.verdict is TryVerdict.DONE and is_shown:
            self._note_answer()
            return Readback(
                verdict=ReadbackVerdict.FOUND,
                reason="read by its id",
                found=outcome.found,
                source="lookup",
            )
        if outcome.http_status == HTTPStatus.NOT_FOUND and outcome.verdict is TryVerdict.REFUSED:
            self._note_answer()
            return None
        if is_shown and refund.operator_says == "absent":
            # With an unknown status. It exists, so no word has it sent again. It may be given up.
            self._note_answer()
            return Readback(
                verdict=ReadbackVerdict.CONFLICT,
                reason=outcome.message or outcome.code,
                found=outcome.found,
                source="lookup",
            )
        if outcome.verdict is TryVerdict.DONE or outcome.code == "contradictory_reply":
            self._note_answer()
            reason = outcome.message or "the answer shows another refund"
            return Readback(
                verdict=ReadbackVerdict.CONFLICT,
                reason=f"{provider_refund_id} was read: {reason}",
                source="lookup",
            )
        return await self._unread(answer, refund)

    async def _read_list(self, refund: Refund, now: datetime, permit: Permit) -> Readback:
        listed = await self._gateway.list_refunds(refund.payment_intent, permit, about=refund)
        if not isinstance(listed, tuple):
            read_back = await self._unread(listed, refund)
            return (
                await self._if_shown(read_back, refund, permit) if read_back.missing else read_back
            )
        self._note_answer()
        entries, complete = listed
        siblings = await self._store.run(reads.siblings(refund.payment_intent, refund.refund_id))
        by_id = {entry.id: entry for entry in entries}
        for sibling in siblings or ():
            # One that has moved since the list was asked for may know better than the list.
            if sibling.provider_refund_id in by_id and sibling.updated_at < now:
                await self._reverse(sibling, by_id[sibling.provider_refund_id], "list", now)
        read_back = judge_list(refund, entries, complete=complete, siblings=siblings)
        # A key of another account reads every list as empty, so absence counts only if the payment
        # itself is shown.
        if read_back.verdict is not ReadbackVerdict.ABSENT:
            return read_back
        return await self._if_shown(read_back, refund, permit, entries)

    async def _if_shown(
        self,
        read_back: Readback,
        refund: Refund,
        permit: Permit,
        entries: Sequence[ProviderRefund] | None = None,
    ) -> Readback:
        """Return `read_back` if the provider shows the payment, else the result for one not shown.

        With the `entries` of a list that proves absence, the payment's total must not contradict
        them.
        """
        answer = await self._gateway.get_payment_intent(refund.payment_intent, permit, about=refund)
        if not shows(answer, refund.payment_intent):
            if (
                isinstance(answer, Reply)
                and answer.http_status == HTTPStatus.OK
                and answer.payload is not None
            ):
                return Readback(
                    verdict=ReadbackVerdict.INCONCLUSIVE,
                    reason="the provider showed another payment",
                )
            return await self._unpaid(answer, refund, permit)
        await self._account.shown(refund.payment_intent)
        if entries is None or not isinstance(answer, Reply) or answer.payload is None:
            return read_back
        view = await self._gateway.totals_of(answer.payload, permit, about=refund)
        if not isinstance(view, PaymentView):
            return await self._unread(view, refund)
        problem = judge_absence(refund, entries, view, totals_proof=self._rules.totals_proof)
        return (
            read_back
            if problem is None
            else Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason=problem)
        )

    async def _read_totals(self, refund: Refund, now: datetime, permit: Permit) -> Readback:
        if refund.baseline is None:
            return judge_totals(refund, PaymentView(), siblings=(), reread={}, totals_proof=False)
        # Read the siblings first: if one changes after that, the totals change too, and the result
        # is inconclusive.
        siblings = await self._store.run(
            reads.siblings(refund.payment_intent, refund.refund_id, most=MOST_REREAD)
        )
        reread: dict[str, ProviderRefund | None] = {}
        for sibling in siblings or ():
            for provider_refund_id in known_refunds_of(sibling):
                reread[provider_refund_id] = await self._reread(
                    sibling, provider_refund_id, now, permit
                )
        view = await self._gateway.get_payment(refund.payment_intent, permit, about=refund)
        if not isinstance(view, PaymentView):
            return await self._unpaid(view, refund, permit)
        self._note_answer()
        if view.shown:
            await self._account.shown(refund.payment_intent)
        return judge_totals(
            refund, view, siblings=siblings, reread=reread, totals_proof=self._rules.totals_proof
        )

    async def _reread(
        self, sibling: Refund, provider_refund_id: str, now: datetime, permit: Permit
    ) -> ProviderRefund | None:
        answer = await self._gateway.get_refund(provider_refund_id, permit, about=sibling)
        found = (
            answer.payload.refund
            if isinstance(answer, Reply) and answer.payload is not None
            else None
        )
        if found is None or found.id != provider_refund_id:
            return None
        await self._reverse(sibling, found, "lookup", now)
        return found

    async def _reverse(
        self, sibling: Refund, found: ProviderRefund, source: str, now: datetime
    ) -> None:
        step = rechecks.changed_by_provider(sibling, found, source, now)
        if step is not None:
            step = proofs.settles_soon_after(step, now)
            await self._recorder.save(sibling, step, {"look": step.label})

    async def _unpaid(self, answer: Answer, refund: Refund, permit: Permit) -> Readback:
        """Return the result for a payment that was not shown.

        If it was shown before, this concerns every refund.
        """
        read_back = await self._unread(answer, refund)
        if read_back.missing and await self._account.is_lost(refund.payment_intent, permit):
            reason = (
                "the payment was shown before and is missing now: the key may be of another account"
            )
            return Readback(verdict=ReadbackVerdict.UNREADABLE, reason=reason, credentials=True)
        return read_back

    async def _unread(self, answer: Answer, refund: Refund) -> Readback:
        """Return the result for an unanswered read-back.

        A readable refusal will not improve by itself.
        """
        outcome = await self._gateway.whose_refusal(classify(answer, refund))
        await self._note_trouble(outcome)
        if outcome.verdict is TryVerdict.REFUSED:
            missing = outcome.http_status == HTTPStatus.NOT_FOUND
            reason = f"the provider refuses to show it: {outcome.code}"
            return Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason=reason, missing=missing)
        return Readback(
            verdict=ReadbackVerdict.UNREADABLE,
            reason=outcome.message or outcome.code,
            retry_after=outcome.retry_after,
            credentials=outcome.credentials,
        )
