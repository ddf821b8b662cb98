"""Saves decided steps and logs them; a step that carries a reply is retried until it is saved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import structlog

from worker.engine import endings
from worker.engine.endings import Ending
from worker.errors import IllegalMove, NotStorable, StoreUnavailable
from worker.model.answers import TryVerdict
from worker.model.hints import Hint
from worker.model.refund import Lane, Refund, Stage
from worker.model.steps import Step
from worker.rules import contradictions, readback, transitions
from worker.store import claims, reads, rechecks, saves
from worker.store.async_store import AsyncStore
from worker.store.saves import Saved
from worker.store.scripts import Command

T = TypeVar("T")

log = structlog.get_logger(__name__)

SAVE_SECONDS: Final = 120.0
STOPPING_SAVE_SECONDS: Final = 15.0
"""How long a stopping worker retries a save.

The lapsed lease leads to a read-back, which finds what was done.
"""
SOON: Final = timedelta(seconds=5)
"""A check due within this time, before the next sweep, is made by the worker that scheduled it."""
_LET_GO_PAUSES: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Delays between tries, in seconds; the refund's slot is held meanwhile."""
_KEEP_TRIES: Final = 20
"""Maximum tries to store a proof if the record keeps changing meanwhile."""
_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0

HandleAgain = Callable[[str, Lane, timedelta], None]


class Recorder:
    """Saves one worker's steps; passes `handle_again` each refund due soon, its lane and delay."""

    def __init__(
        self, store: AsyncStore, *, clock: Callable[[], float], handle_again: HandleAgain
    ) -> None:
        self.stopping = False
        self._store = store
        self._clock = clock
        self._handle_again = handle_again

    async def save(
        self, refund: Refund, step: Step, detail: Mapping[str, Any], *, insist: bool = False
    ) -> tuple[Saved, Ending]:
        """Save a step, and return the refund's ending.

        Set `insist` for a step that carries a reply: the save is then retried for up to two
        minutes.
        """
        if not step.quiet and not step.proof:
            transitions.check_move(refund.refund_id, refund.stage, step.to)
        full = {**detail, "alarm": step.alarm} if step.alarm else dict(detail)
        # Not durable: if a crash undoes this save, the record is as it was at its claim, whose
        # lease lapses into doubt, or before the read-back or poll, which is repeated. The next send
        # needs a claim on disk, and everything saved before that claim is then on disk too.
        saved = await self._run(
            saves.save(refund, step, full, durable=False), refund, step, insist=insist
        )
        ending = await self._after_save(refund, step, saved, full)
        return saved, ending or endings.saved(step, saved.result)

    async def let_go(
        self, refund_id: str, token: str, decide: Callable[[Refund, datetime], Step]
    ) -> None:
        """Save that nothing was sent under a claim with a lost reply, or not known to be on disk.

        Otherwise its lease would lapse into a doubt, as it does if Redis stays away. `decide`
        returns the step for the claimed record at a given time.
        """
        for pause in (*_LET_GO_PAUSES, None):
            try:
                claim = await self._store.run(claims.claimed(refund_id, token))
            except StoreUnavailable:
                if pause is None or self.stopping:
                    return
                await asyncio.sleep(pause)
            else:
                if claim.claimed and claim.refund is not None:
                    log.warning("claim_let_go", refund_id=refund_id)
                    detail = {"attempt": claim.refund.attempts, "seen": TryVerdict.NOT_SENT.value}
                    await self.save(
                        claim.refund, decide(claim.refund, claim.now), detail, insist=True
                    )
                return

    async def _run(self, call: Command[T], refund: Refund, step: Step, *, insist: bool) -> T:
        """Run a call; with `insist`, retry for two minutes while Redis is away."""
        began, pause = self._clock(), _PAUSE
        while True:
            try:
                return await self._store.run(call)
            except StoreUnavailable:
                limit = STOPPING_SAVE_SECONDS if self.stopping else SAVE_SECONDS
                if not insist or self._clock() - began >= limit:
                    log.error(  # noqa: TRY400 - raised below; here are the facts that the error lacks
                        "save_failed",
                        refund_id=refund.refund_id,
                        to=step.to.value,
                        provider_refund_id=step.changes.get("provider_refund_id"),
                    )
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except NotStorable as error:
                # A retry would be refused again. The log entry holds what was not saved, for the
                # repair of the records.
                log.error(  # noqa: TRY400 - see above
                    "save_refused",
                    refund_id=refund.refund_id,
                    alarm=True,
                    to=step.to.value,
                    provider_refund_id=step.changes.get("provider_refund_id"),
                    error=str(error),
                )
                raise

    async def _after_save(
        self, refund: Refund, step: Step, saved: Saved, detail: Mapping[str, Any]
    ) -> Ending | None:
        """Log a save; return the ending of a further save if this one led to it."""
        facts = {name: value for name, value in detail.items() if name not in {"alarm", "reason"}}
        match saved.result:
            case "saved":
                if not step.quiet:
                    log.info(
                        _event(step),
                        refund_id=refund.refund_id,
                        stage=step.to.value,
                        status=step.status.value,
                        label=step.label,
                        **facts,
                    )
                if step.alarm:
                    log.error(
                        "refund_needs_attention",
                        refund_id=refund.refund_id,
                        alarm=True,
                        reason=step.alarm,
                    )
                for woken in saved.due_now:
                    self._handle_again(woken, refund.lane, timedelta(0))
                if step.to is not Stage.SETTLED and step.delay is not None and step.delay <= SOON:
                    self._handle_again(refund.refund_id, refund.lane, step.delay)
            case "owned":
                return await self._owned(refund, saved.other or "", step)
            case "contradicts":
                log.critical(
                    "proof_against_settled",
                    refund_id=refund.refund_id,
                    alarm=True,
                    provider_refund_id=step.changes.get("provider_refund_id"),
                )
                await self.contradict(refund, step)
            case "illegal":
                raise IllegalMove(refund.refund_id, saved.other or "", step.to.value)
            case "stale" | "already" | "missing" | "late":
                _log_superseded(refund, step, saved)
        return None

    async def name(
        self, refund: Refund, step: Step, provider_refund_id: str, *, is_kept: bool
    ) -> None:
        """Note a refund that a reply showed, and no step stores, like one that a webhook names.

        So it is read, also before anything is sent. Like a save, it is insisted on. Set `is_kept`
        for one that carries no id of ours: read only like that, it would not count as ours.
        """
        shown = Hint(provider_refund_id=provider_refund_id, refund_id=refund.refund_id)
        # Not durable, like the save beside it.
        command = replace(rechecks.hint(shown, is_kept=is_kept), durable=False)
        # For the log, if it cannot be noted.
        logged = replace(step, changes={"provider_refund_id": provider_refund_id})
        hinted = await self._run(command, refund, logged, insist=True)
        if hinted.result == "unknown":
            _log_without_record(refund, logged)

    async def contradict(self, refund: Refund, proof: Step) -> None:
        """Store a proof that contradicts the record, on the current record."""
        detail = {"provider_refund_id": proof.changes.get("provider_refund_id")}

        def decide(current: Refund, now: datetime) -> Step | None:
            return contradictions.contradicted(current, proof, now)

        await self.save_on_current(refund, proof, decide, detail)

    async def save_on_current(
        self,
        refund: Refund,
        step: Step,
        decide: Callable[[Refund, datetime], Step | None],
        detail: Mapping[str, Any],
    ) -> Ending | None:
        """Save what `decide` returns for the current record; return the ending of that save.

        `step` is what was decided on `refund`, the record as it was.
        """
        for _ in range(_KEEP_TRIES):
            loaded = await self._run(reads.load(refund.refund_id), refund, step, insist=True)
            current = None if loaded.refund is None else decide(loaded.refund, loaded.now)
            if loaded.refund is None or current is None:
                return None
            saved, ending = await self.save(loaded.refund, current, detail, insist=True)
            if saved.result != "stale":
                return ending
        return None

    async def owner_of(self, provider_refund_id: str) -> str | None:
        """Return the id of the refund whose record has a refund of the provider, if any."""
        return await self._store.owner_of(provider_refund_id)

    async def _owned(self, refund: Refund, owner: str, step: Step) -> Ending | None:
        provider_refund_id = step.changes.get("provider_refund_id")
        alarm = f"the provider's refund {provider_refund_id} already belongs to refund {owner}"
        log.critical(
            "provider_refund_claimed_twice", refund_id=refund.refund_id, alarm=True, owner=owner
        )
        # After an attempt, this is just an answer that may belong to another refund; the rules of
        # attempts handle it.
        if refund.stage in {Stage.QUEUED, Stage.WAITING, Stage.IN_DOUBT, Stage.PROCESSING}:
            changes: dict[str, Any] = {
                "error_code": "owned_elsewhere",
                "error_message": alarm,
                "doubt_since": refund.doubt_since or refund.updated_at,
            }
            if refund.provider_refund_id == provider_refund_id:
                # A person had named this id, and it belongs to the other record. Two records must
                # not show one refund of the provider, and how long that refund has been pending
                # says nothing about ours.
                changes |= {"provider_refund_id": None, "processing_since": None}
            _, ending = await self.save(refund, readback.after_owned(refund, changes, alarm), {})
            return ending
        return None


def _log_superseded(refund: Refund, step: Step, saved: Saved) -> None:
    if step.changes.get("provider_refund_id") is not None and saved.result == "missing":
        _log_without_record(refund, step)
    else:
        log.info(
            "save_superseded",
            refund_id=refund.refund_id,
            result=saved.result,
            label=step.label,
        )


def _log_without_record(refund: Refund, step: Step) -> None:
    # Nothing else here knows that the money moved, or may have.
    log.critical(
        "proof_without_record",
        refund_id=refund.refund_id,
        alarm=True,
        provider_refund_id=step.changes.get("provider_refund_id"),
    )


def _event(step: Step) -> str:
    if step.to is Stage.SETTLED:
        return "refund_settled"
    return f"refund_{step.to.value}" if step.to is not Stage.REVIEW else "refund_sent_to_review"
