"""Rechecks: reads refunds again outside their own schedule, and saves what the provider shows.

Webhooks and the watch of settled refunds cause them; `rules.rechecks` judges the answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import structlog

from worker.engine import endings
from worker.engine.candidates import CandidateReader
from worker.engine.endings import Ending
from worker.engine.recorder import Recorder
from worker.model.answers import Outcome, ProviderRefund
from worker.model.refund import Refund, Stage
from worker.model.steps import Step
from worker.provider.gateway import Gateway, Permit
from worker.rules import proofs, rechecks
from worker.rules.outcomes import classify
from worker.rules.rechecks import Candidate, CandidateVerdict, RecheckResult
from worker.store.saves import Saved

log = structlog.get_logger(__name__)


class Rechecker:
    """Rechecks one worker's refunds; `on_recheck` is called with each result."""

    def __init__(
        self,
        gateway: Gateway,
        recorder: Recorder,
        candidates: CandidateReader,
        *,
        clock: Callable[[], float],
        note_trouble: Callable[[Outcome], Awaitable[None]],
        note_answer: Callable[[], None],
        on_recheck: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._clock = clock
        self._recorder = recorder
        self._candidates = candidates
        self._note_trouble = note_trouble
        self._note_answer = note_answer
        self._on_recheck = on_recheck

    async def run(
        self, refund: Refund, recheck: str, now: datetime, permit: Permit
    ) -> Ending | None:
        """Read a refund and its candidates again; return its ending.

        None if nothing was found and another action is due. `recheck` is as loaded.
        """
        ending: Ending | None = None
        answered, began = True, self._clock()
        if refund.stage is Stage.SETTLED:
            answered, ending = await self._recheck_settled(refund, now, permit)
        candidates = await self._candidates.read(refund, permit)
        read_at = self._records_time(now, began)
        # What contradicts comes first: once another one has settled the refund, a review of the
        # record as it was loaded would not be saved.
        for candidate in sorted(candidates, key=_agrees):
            ending = await self._act_on(refund, candidate, read_at) or ending
        over = _over(refund, candidates)
        ended = await self._candidates.end(refund, over, recheck=recheck, answered=answered)
        if ended.result != "done":
            self._on_recheck(ended.result)
        unread = [one.id for one in candidates if one.verdict is CandidateVerdict.UNREADABLE]
        if ended.result == "given_up":
            log.warning("recheck_given_up", refund_id=refund.refund_id)
            holds = unread and _may_be_sent(refund) and not rechecks.is_insisted(refund)
            if ending is None and holds:
                _, ending = await self._recorder.save(refund, rechecks.unreadable_hint(refund), {})
        if ending is None and _may_be_sent(refund) and ended.result != "again":
            return None
        return ending or endings.standing(refund)

    async def _recheck_settled(
        self, refund: Refund, now: datetime, permit: Permit
    ) -> tuple[bool, Ending | None]:
        """Read a settled refund's own provider refund, and those of earlier generations.

        Return whether each was answered, and the ending if anything changed.
        """
        answered: bool = True
        ending: Ending | None = None
        if refund.provider_refund_id is not None:
            answered, ending = await self._recheck_own(
                refund, refund.provider_refund_id, now, permit
            )
        for prior in rechecks.priors_of(refund):
            is_read, changed = await self._recheck_prior(refund, prior, now, permit)
            answered, ending = answered and is_read, changed or ending
        return answered, ending

    async def _recheck_prior(
        self, refund: Refund, prior: str, now: datetime, permit: Permit
    ) -> tuple[bool, Ending | None]:
        """Read the provider's refund of an earlier generation, which had failed.

        Money that it moved since contradicts the record, whatever became of the retry.
        """
        answer = await self._gateway.get_refund(prior, permit, about=refund)
        owner = await self._recorder.owner_of(prior)
        result, found = rechecks.after_prior_recheck(refund, prior, answer, owner)
        if found is None:
            outcome = await self._gateway.whose_refusal(classify(answer, refund))
            await self._note_trouble(outcome)
            return False, None
        self._note_answer()
        if result is RecheckResult.CHANGED:
            self._on_recheck(RecheckResult.CONTRADICTS.value)
            await self._recorder.contradict(refund, proofs.done(refund, found, "lookup", now))
            return True, endings.CONTRADICTED
        if result is RecheckResult.CONTRADICTS:
            self._contradicts(refund, prior)
        else:
            self._on_recheck(result.value)
        return True, None

    async def _recheck_own(
        self, refund: Refund, provider_refund_id: str, now: datetime, permit: Permit
    ) -> tuple[bool, Ending | None]:
        """Read a settled refund by its provider id.

        Return whether that was answered, and the ending if it changed.
        """
        began = self._clock()
        answer = await self._gateway.get_refund(provider_refund_id, permit, about=refund)
        read_at = self._records_time(now, began)
        result, step = rechecks.after_recheck(refund, answer, read_at)
        if result is RecheckResult.AGAIN:
            outcome = await self._gateway.whose_refusal(classify(answer, refund))
            await self._note_trouble(outcome)
            return False, None
        self._note_answer()
        if result is RecheckResult.CONTRADICTS:
            self._contradicts(refund, provider_refund_id)
        if step is None:
            if result is RecheckResult.CONFIRMED:
                self._on_recheck(result.value)
            return True, None
        self._on_recheck(step.label)
        step = proofs.settles_soon_after(step, read_at)
        saved, ending = await self._recorder.save(refund, step, {"seen": "recheck"}, insist=True)
        # It was decided on a record that has changed since, or long ago, so it is read again.
        return saved.result not in {"stale", "late"}, ending

    def _records_time(self, now: datetime, began: float) -> datetime:
        """Return the records' time, which was `now` when this worker's clock was `began`."""
        return now + timedelta(seconds=self._clock() - began)

    async def _act_on(
        self, refund: Refund, candidate: Candidate, read_at: datetime
    ) -> Ending | None:
        """Save what a candidate shows; return the refund's ending if anything was saved."""
        found = candidate.found
        match candidate.verdict:
            case CandidateVerdict.OURS if found is not None:
                identified = rechecks.identified(refund, found)
                self._on_recheck("found" if identified is None else identified.label)
                if identified is not None:
                    return (await self._save(refund, identified))[1]
                return await self._take_ours(refund, found, read_at)
            case CandidateVerdict.EARLIER if found is not None and rechecks.was_never_sent(refund):
                self._on_recheck("found")
                return await self._take_prior(refund, found, read_at)
            case CandidateVerdict.EARLIER | CandidateVerdict.LATER if found is not None:
                self._on_recheck("contradicts")
                await self._recorder.contradict(
                    refund, proofs.done(refund, found, "lookup", read_at)
                )
                return endings.CONTRADICTED
            case CandidateVerdict.CONTRADICTS:
                return await self._in_conflict(refund, candidate, read_at)
            case CandidateVerdict.OTHER | CandidateVerdict.UNNAMED:
                self._on_recheck("refuted")
        return None

    async def _take_ours(self, refund: Refund, found: ProviderRefund, read_at: datetime) -> Ending:
        """Save that a candidate is ours, to be polled at once if it succeeded long ago."""
        step = proofs.done_alone(refund, found, "lookup", read_at)
        saved, ending = await self._save(refund, proofs.settles_soon_after(step, read_at))
        if saved.result == "late":
            step = proofs.succeeded_long_ago(refund, found, "lookup", saved.now)
            _, ending = await self._save(refund, step)
        return ending

    async def _take_prior(self, refund: Refund, found: ProviderRefund, read_at: datetime) -> Ending:
        """Save that an earlier generation's refund was done, so that the retry is not sent.

        If the retry has moved on meanwhile, that refund contradicts the record.
        """
        step = rechecks.prior_done(refund, found, read_at)
        saved, ending = await self._save(refund, proofs.settles_soon_after(step, read_at))
        if saved.result == "late":
            step = rechecks.prior_done_long_ago(refund, found, saved.now)
            saved, ending = await self._save(refund, step)
        if saved.result != "stale":
            return ending
        await self._recorder.contradict(refund, proofs.done(refund, found, "lookup", read_at))
        return endings.CONTRADICTED

    async def _save(self, refund: Refund, step: Step) -> tuple[Saved, Ending]:
        return await self._recorder.save(refund, step, {"seen": "webhook"}, insist=True)

    async def _in_conflict(
        self, refund: Refund, candidate: Candidate, read_at: datetime
    ) -> Ending | None:
        """Send an unsettled refund to review; a settled one keeps its status, with an alarm."""
        self._on_recheck("contradicts")
        if rechecks.is_told(refund, candidate):
            return None
        step = rechecks.in_conflict(refund, candidate, read_at)
        if step is None:
            self._alarm(refund, candidate.id)
            return None
        saved, ending = await self._save(refund, step)
        if step.quiet or saved.result != "saved":
            self._alarm(refund, candidate.id)
        if saved.result == "stale":
            # It was decided, retried or settled meanwhile. What was read is not read again, so it
            # is stored on what the record is now, before that is sent.
            return await self._recorder.save_on_current(
                refund,
                step,
                lambda current, now: rechecks.in_conflict(current, candidate, now),
                {"seen": "webhook"},
            )
        return None if step.quiet else ending

    def _contradicts(self, refund: Refund, provider_refund_id: str) -> None:
        self._on_recheck("contradicts")
        self._alarm(refund, provider_refund_id)

    def _alarm(self, refund: Refund, provider_refund_id: str) -> None:
        log.critical(
            "proof_against_settled",
            refund_id=refund.refund_id,
            alarm=True,
            provider_refund_id=provider_refund_id,
        )


def _agrees(candidate: Candidate) -> bool:
    return candidate.verdict is not CandidateVerdict.CONTRADICTS


def _over(refund: Refund, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that need not be read again.

    What contradicts a refund that another one has just ended is read once more on what the record
    is now, and so before a retry.
    """
    is_ended = not refund.settled and any(
        one.verdict is CandidateVerdict.OURS and one.found is not None and not one.found.is_pending
        for one in candidates
    )
    return [one for one in candidates if _agrees(one) or not is_ended]


def _may_be_sent(refund: Refund) -> bool:
    return refund.stage in {Stage.QUEUED, Stage.WAITING}
