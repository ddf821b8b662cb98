"""Takes the actions of one refund, each decided by the rules, until none is due now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from worker.engine import endings
from worker.engine.attempt_runner import AttemptRunner
from worker.engine.checker import Checker
from worker.engine.claimer import Claimer
from worker.engine.endings import Ending
from worker.engine.poller import Poller
from worker.engine.rate_gate import CallPermits, RateGate
from worker.engine.readback_runner import ReadbackRunner
from worker.engine.rechecker import Rechecker
from worker.engine.recorder import Recorder
from worker.model.refund import Baseline, Lane, Refund, Stage
from worker.model.steps import Action
from worker.rules import attempts, preflight, proofs, readback
from worker.rules.attempts import Rules
from worker.store import reads
from worker.store.async_store import AsyncStore

log = structlog.get_logger(__name__)

MAX_ACTIONS: Final = 4
"""Maximum consecutive actions per run, to bound the loop.

Lapse, read-back, resend, and one to spare.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A refund's record as of `now`, for its next action.

    `seq` is that of its payment, '' if unknown.

    What an action returns: a snapshot if another action follows at once, else the refund's
    `Ending`.
    """

    now: datetime
    seq: str
    refund: Refund
    recheck: str
    """When the refund is to be read again outside its own schedule, '' if it is not."""


class Actions:
    """Takes the actions of refunds that have begun: sends, read-backs, polls and rechecks."""

    def __init__(
        self,
        store: AsyncStore,
        recorder: Recorder,
        *,
        rules: Rules,
        gate: RateGate,
        claimer: Claimer,
        runner: AttemptRunner,
        checker: Checker,
        readbacks: ReadbackRunner,
        poller: Poller,
        rechecker: Rechecker,
        clock: Callable[[], float],
        wall: Callable[[], datetime],
        jitter: Callable[[], float],
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._rules = rules
        self._gate = gate
        self._claimer = claimer
        self._runner = runner
        self._checker = checker
        self._readbacks = readbacks
        self._poller = poller
        self._rechecker = rechecker
        self._clock = clock
        self._wall = wall
        self._jitter = jitter

    async def run(self, refund_id: str, lane: Lane) -> Ending:
        """Process one refund as far as possible now; return its ending."""
        # Most refunds are claimed and sent without a load, because the claim itself returns the
        # record.
        result = await (
            self._load(refund_id) if self._rules.reads_first else self._send_blind(refund_id, lane)
        )
        permits = CallPermits(lambda: self._gate.go_on(lane))
        for _ in range(MAX_ACTIONS):
            if isinstance(result, Ending):
                return result
            result = await self._act(result.refund, result, lane, permits)
        return result if isinstance(result, Ending) else endings.standing(result.refund)

    async def _load(self, refund_id: str) -> Ending | Snapshot:
        loaded = await self._store.run(reads.load(refund_id))
        if loaded.refund is None:
            log.warning("refund_unknown", refund_id=refund_id)
            return endings.UNKNOWN
        return Snapshot(
            now=loaded.now, seq=loaded.seq, refund=loaded.refund, recheck=loaded.recheck
        )

    async def _act(
        self, refund: Refund, snapshot: Snapshot, lane: Lane, permits: CallPermits
    ) -> Ending | Snapshot:
        """Take the refund's next action."""
        now = snapshot.now
        action = attempts.next_action(
            refund, self._rules, now, self._wall(), recheck=bool(snapshot.recheck)
        )
        match action:
            case Action.NOTHING:
                return endings.standing(refund)
            case Action.SEND:
                return await self._send(refund, snapshot, lane, permits)
            case Action.GIVE_UP:
                return await self._give_up(refund, now, permits)
            case Action.REPLAY:
                return await self._replay(refund, now, lane, permits)
            case Action.LAPSE:
                step = attempts.after_lapse(refund, self._rules, now, self._jitter())
                saved, ending = await self._recorder.save(refund, step, {"seen": "lease_lapsed"})
                return await self._load(refund.refund_id) if saved.result == "saved" else ending
            case Action.READ_BACK:
                return await self._read_back(refund, now, lane, permits)
            case Action.POLL:
                return await self._poller.run(refund, now, permits.take)
            case Action.RECHECK:
                checked = await self._rechecker.run(refund, snapshot.recheck, now, permits.take)
                return checked if checked is not None else await self._load(refund.refund_id)
            case Action.REVIEW:
                step = (
                    attempts.was_pending(refund, now)
                    if refund.stage is Stage.WAITING
                    else proofs.to_review(
                        {}, "no_readback", "it may have happened, and nothing may be read back"
                    )
                )
                _, ending = await self._recorder.save(refund, step, {})
                return ending

    # Sending

    async def _send_blind(self, refund_id: str, lane: Lane) -> Ending | Snapshot:
        """Claim and send without a load; if refused for another action, return its record."""
        claim = await self._claimer.claim(refund_id, "send")
        if claim.result == "unchecked":
            return await self._load(refund_id)
        if claim.result in {"stage", "early"} and claim.refund is not None:
            return Snapshot(now=claim.now, seq="", refund=claim.refund, recheck=claim.recheck)
        return await self._runner.run(claim, lane)

    async def _send(
        self, refund: Refund, snapshot: Snapshot, lane: Lane, permits: CallPermits
    ) -> Ending | Snapshot:
        seq: str | None = None
        baseline: Baseline | None = None
        shown = False
        began = self._clock()
        if self._rules.first_look and refund.first_attempt_at is None:
            held = await self._first_look(refund, snapshot.now, permits)
            if held is not None:
                return held
        checks = preflight.wants_currency(refund)
        if self._rules.wants_baseline or checks:
            view = await self._checker.read_payment(refund, snapshot.now, permits.take)
            if isinstance(view, Ending):
                return view
            if self._rules.wants_baseline:
                baseline = view.baseline
                if baseline is None and refund.baseline is not None and refund.resends:
                    # It stays as a sign that a total may have proven an absence.
                    baseline = refund.baseline.outdated
            seq, shown = snapshot.seq, view.shown
        prior_read_at = self._records_time(snapshot.now, began)
        # If only a person says that an earlier attempt did not happen, it may have been sent.
        held_back = await self._checker.read_prior(
            refund, prior_read_at, permits.take, may_have_left=refund.evidence == "operator"
        )
        if held_back is not None:
            return held_back
        await permits.ready()
        claim = await self._claimer.claim(
            refund.refund_id,
            "send",
            version=refund.version if refund.prior_ids else None,
            seq=seq,
            baseline=baseline,
            currency_checked=checks,
            payment_shown=shown,
            prior_read_at=prior_read_at if refund.prior_ids else None,
        )
        # `moved`: another refund of the payment was sent since the totals were read, so read them
        # again. `unchecked`: a webhook named a refund of the provider meanwhile, or the refund was
        # sent and retried, and its earlier one was not read. `stale`: a retry was retried.
        return (
            await self._load(refund.refund_id)
            if claim.result in {"moved", "unchecked", "stale"}
            else await self._runner.run(claim, lane)
        )

    async def _first_look(
        self, refund: Refund, now: datetime, permits: CallPermits
    ) -> Ending | Snapshot | None:
        """Read a refund back before its first send; return None if it may be sent.

        A retry's earlier refund is read before that: if it was done after all, that is why the
        payment's list and total disagree with the records.
        """
        held_back = await self._checker.read_prior(refund, now, permits.take, may_have_left=False)
        if held_back is not None:
            return held_back
        read_back = await self._readbacks.run(refund, now, permits.take)
        held = await self._checker.judge(refund, read_back, now)
        if held is None:
            return None
        return await self._load(refund.refund_id) if held.continues else held.ending

    def _records_time(self, now: datetime, began: float) -> datetime:
        """Return the records' time, which was at least `now` when this worker's clock was `began`.

        So a fact is never taken for newer than it is.
        """
        return now + timedelta(seconds=self._clock() - began)

    async def _replay(
        self, refund: Refund, now: datetime, lane: Lane, permits: CallPermits
    ) -> Ending | Snapshot:
        began = self._clock()
        checks = preflight.wants_currency(refund)
        if checks and isinstance(
            held := await self._checker.read_payment(refund, now, permits.take), Ending
        ):
            return held
        prior_read_at = self._records_time(now, began)
        held_back = await self._checker.read_prior(
            refund, prior_read_at, permits.take, may_have_left=True
        )
        if held_back is not None:
            return held_back
        await permits.ready()
        claim = await self._claimer.claim(
            refund.refund_id,
            "replay",
            version=refund.version if refund.prior_ids else None,
            currency_checked=checks,
            prior_read_at=prior_read_at if refund.prior_ids else None,
        )
        # `window`: the provider may have forgotten the key by now, so another action is due.
        return (
            await self._load(refund.refund_id)
            if claim.result in {"window", "unchecked", "stale"}
            else await self._runner.run(claim, lane)
        )

    async def _give_up(self, refund: Refund, now: datetime, permits: CallPermits) -> Ending:
        """Fail an unsent refund as a person decided, unless an earlier one was done after all."""
        held_back = await self._checker.read_prior(refund, now, permits.take, may_have_left=False)
        if held_back is not None:
            return held_back
        step = readback.given_up(refund, "operator", "settled by a person")
        _, ending = await self._recorder.save(refund, step, {})
        return ending

    # Reading back

    async def _read_back(
        self, refund: Refund, now: datetime, lane: Lane, permits: CallPermits
    ) -> Ending:
        """Read a refund in doubt back, and send it again if it is proven absent."""
        began = self._clock()
        read_back = await self._readbacks.run(refund, now, permits.take)
        step = readback.after_readback(refund, read_back, self._rules, now, self._jitter())
        step = proofs.settles_soon_after(step, self._records_time(now, began))
        detail = {"look": read_back.verdict.value, "reason": read_back.reason}
        is_resent = step.changes.get("proven_absent_at") is not None
        checks = is_resent and preflight.wants_currency(refund)
        if checks and isinstance(
            held := await self._checker.read_payment(refund, now, permits.take), Ending
        ):
            return held
        is_over = is_resent or step.label == "operator_says_failed"
        # What could not be read just now becomes an earlier one if a person insists.
        has_prior = refund.prior_ids or "prior_refund_ids" in step.changes
        prior_read_at = self._records_time(now, began) if is_over and has_prior else None
        if prior_read_at is not None:
            # If only a person says that the retry did not happen, it may have been sent too.
            held_back = await self._checker.read_prior(
                refund, prior_read_at, permits.take, may_have_left=step.source == "operator"
            )
            if held_back is not None:
                return held_back
        saved, ending = await self._recorder.save(refund, step, detail, insist=step.proof)
        if saved.result == "late" and step.proof and read_back.found is not None:
            evidence = step.changes["evidence"]
            step = proofs.succeeded_long_ago(refund, read_back.found, evidence, saved.now)
            _, ending = await self._recorder.save(refund, step, detail, insist=True)
            return ending
        if saved.result != "saved" or "proven_absent_at" not in step.changes or step.quiet:
            return ending
        if step.changes["proven_absent_at"] is None:
            return ending
        # The verdict is fresh for half a minute: send at once, or read back again.
        await permits.ready()
        claim = await self._claimer.claim(
            refund.refund_id,
            "resend",
            version=refund.version + 1,
            currency_checked=checks,
            prior_read_at=prior_read_at,
        )
        return await self._runner.run(claim, lane)
