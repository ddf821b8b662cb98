"""Reads the provider's refunds that webhooks named for ours; `rules.rechecks` judges them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from worker.engine.account import Account
from worker.model.answers import Outcome, Readback, ReadbackVerdict
from worker.model.refund import Refund
from worker.provider.gateway import Gateway, Permit
from worker.rules.rechecks import (
    Candidate,
    CandidateVerdict,
    as_readback,
    is_insisted,
    judge_candidate,
    may_succeed_yet,
)
from worker.store import rechecks
from worker.store.async_store import AsyncStore
from worker.store.rechecks import Rechecked


class CandidateReader:
    """Reads what webhooks named, and notes on the record what need not be read again.

    `note_trouble` is called after a read that failed, `note_answer` after any other.
    """

    def __init__(
        self,
        store: AsyncStore,
        gateway: Gateway,
        *,
        account: Account,
        note_trouble: Callable[[Outcome], Awaitable[None]],
        note_answer: Callable[[], None],
    ) -> None:
        self._store = store
        self._gateway = gateway
        self._account = account
        self._note_trouble = note_trouble
        self._note_answer = note_answer

    async def read(self, refund: Refund, permit: Permit) -> list[Candidate]:
        """Return each of the refund's candidates as the provider shows it, one call each."""
        candidates = []
        for provider_refund_id in refund.candidates:
            answer = await self._gateway.get_refund(provider_refund_id, permit, about=refund)
            candidate = judge_candidate(refund, provider_refund_id, answer)
            if candidate.verdict is CandidateVerdict.UNREADABLE:
                outcome = await self._gateway.whose_refusal(candidate.outcome)
                await self._note_trouble(outcome)
                candidate = replace(candidate, outcome=outcome)
            elif candidate.verdict is CandidateVerdict.MISSING:
                self._note_answer()
                candidate = await self._unless_lost(refund, candidate, permit)
            else:
                self._note_answer()
            candidates.append(candidate)
        return candidates

    async def _unless_lost(self, refund: Refund, candidate: Candidate, permit: Permit) -> Candidate:
        """Return a missing candidate as unread if the key may be of another account.

        The payment of a settled refund may be gone for good, and stops nothing.
        """
        if refund.settled or not await self._account.is_lost(refund.payment_intent, permit):
            return candidate
        outcome = replace(candidate.outcome, code="account_lost", credentials=True)
        return replace(candidate, verdict=CandidateVerdict.UNREADABLE, outcome=outcome)

    async def end(
        self,
        refund: Refund,
        candidates: Sequence[Candidate],
        *,
        recheck: str,
        answered: bool,
    ) -> Rechecked:
        """Note which candidates were read, and schedule another recheck if any was not.

        Once rechecks are given up, a candidate that the provider does not know is not read again,
        and no other one either if a person insists on a decision, unless the key was refused.
        """
        all_read = answered and all(one.is_read for one in candidates)
        read = [one.id for one in candidates if one.is_read]
        unnamed = [one.id for one in candidates if one.verdict is CandidateVerdict.UNNAMED]
        ended = await self._store.run(
            rechecks.rechecked(
                refund.refund_id,
                answered=all_read,
                recheck=recheck,
                read=read,
                possible=unnamed[0] if unnamed else None,
                again=[one.id for one in candidates if may_succeed_yet(refund, one)],
            )
        )
        insists = is_insisted(refund)
        dropped = [
            one.id
            for one in candidates
            if one.verdict is CandidateVerdict.MISSING
            or (insists and not one.is_read and not one.outcome.credentials)
        ]
        if ended.result == "given_up" and dropped:
            await self._store.run(
                rechecks.rechecked(refund.refund_id, answered=True, recheck=recheck, read=dropped)
            )
        return ended

    async def read_back(self, refund: Refund, permit: Permit) -> Readback | None:
        """Return what the candidates of a refund in doubt show, None if none of them is ours."""
        candidates = await self.read(refund, permit)
        read_back = as_readback(candidates)
        if read_back is not None and read_back.verdict is not ReadbackVerdict.UNREADABLE:
            # The saved step removes the candidate that is ours. Before that it must not be lost.
            return read_back
        ended = await self.end(refund, candidates, recheck="", answered=True)
        if read_back is None:
            return None
        if ended.result == "given_up" and not any(
            one.verdict is CandidateVerdict.UNREADABLE for one in candidates
        ):
            return None
        wait = max(ended.wait, read_back.retry_after) if read_back.retry_after else ended.wait
        return replace(read_back, retry_after=wait)
