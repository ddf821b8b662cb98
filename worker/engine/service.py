"""Handles refunds: gathers facts, lets the rules decide, and saves.

Plain coroutines over store and gateway.

This module does not know Celery, and leaves all decisions to the rules.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Final

import structlog

from worker.engine import endings
from worker.engine.account import Account
from worker.engine.candidates import CandidateReader
from worker.engine.checker import Checker
from worker.engine.endings import Ending
from worker.engine.positions import Positions
from worker.engine.provider_state import ProviderTrouble
from worker.engine.rate_gate import CallPermits, RateGate
from worker.engine.readback_runner import ReadbackRunner
from worker.engine.rechecker import Rechecker
from worker.engine.recorder import SOON, Recorder
from worker.engine.records_guard import REFUSALS, RecordsGuard
from worker.engine.slots import Slots
from worker.errors import NotDurable, StoreUnavailable
from worker.model.answers import Answer, NotSent, Outcome, Reply, TryVerdict
from worker.model.refund import Baseline, Lane, Refund, Stage
from worker.model.steps import Action, Step
from worker.provider.gateway import Gateway, is_missing
from worker.rules import attempts, preflight, readback
from worker.rules.attempts import Rules
from worker.rules.outcomes import classify, owned_elsewhere
from worker.store import claims, reads, sweeps
from worker.store.async_store import AsyncStore
from worker.store.claims import Claim, ClaimKind

log = structlog.get_logger(__name__)

MAX_ACTIONS: Final = 4
"""Maximum consecutive actions per run, to bound the loop.

Lapse, read-back, resend, and one to spare.
"""
MOST_WOKEN: Final = 1000

Detail = dict[str, Any]


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
    recheck: str = ""
    """When the refund is to be read again outside its own schedule, '' if it is not."""


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
        wall: Callable[[], datetime],
        jitter: Callable[[], float] = random.random,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        on_attempt: Callable[[Outcome], None] = lambda _: None,
        on_recheck: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.store = store
        self.gateway = gateway
        self.rules = rules
        self.slots = slots
        self.gate = gate
        self.stopping = False
        self._clock = clock
        self._wall = wall
        self._jitter = jitter
        self._token = token
        self._on_attempt = on_attempt
        self.trouble = ProviderTrouble(store, gateway, gate, jitter=jitter)
        self.breaker = self.trouble.breaker
        self.account = Account(store, gateway, refuse_credentials=self.trouble.refuse_credentials)
        self._recorder = Recorder(store, clock=clock, handle_again=self._handle_again)
        candidates = CandidateReader(
            store,
            gateway,
            note_trouble=self.trouble.note,
            note_answer=self.breaker.answered,
        )
        self._rechecker = Rechecker(
            gateway,
            self._recorder,
            candidates,
            note_trouble=self.trouble.note,
            note_answer=self.breaker.answered,
            on_recheck=on_recheck,
        )
        self._readbacks = ReadbackRunner(
            store,
            gateway,
            self._recorder,
            rules=rules,
            account=self.account,
            candidates=candidates,
            note_trouble=self.trouble.note,
            note_answer=self.breaker.answered,
        )
        self._checker = Checker(
            gateway,
            self._recorder,
            rules=rules,
            account=self.account,
            jitter=jitter,
            note_trouble=self.trouble.note,
            note_answer=self.breaker.answered,
        )
        self.positions = Positions(store)
        self.guard = RecordsGuard(store, on_loss=self._end_waits)
        self._extra: set[asyncio.Task[None]] = set()
        self._waits: set[asyncio.Timeout] = set()

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
                log.error(
                    "refund_handling_failed", refund_id=refund_id, alarm=True, exc_info=result
                )
                ended.append(endings.broken(result))
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
                        return await self._advance(refund_id, lane)
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
        await self.handle(refund_id, lane)

    async def drain(self) -> None:
        """Wait for the refunds that are handled in the background."""
        self.breaker.stop()
        while self._extra:
            await asyncio.wait(self._extra)

    async def _advance(self, refund_id: str, lane: Lane) -> Ending:
        # Most refunds are claimed and sent without a load, because the claim itself returns the
        # record.
        result = await (
            self._load(refund_id) if self.rules.reads_first else self._send_blind(refund_id, lane)
        )
        permits = CallPermits(lambda: self.gate.go_on(lane))
        for _ in range(MAX_ACTIONS):
            if isinstance(result, Ending):
                return result
            result = await self._act(result.refund, result, lane, permits)
        return result if isinstance(result, Ending) else endings.standing(result.refund)

    async def _load(self, refund_id: str) -> Ending | Snapshot:
        loaded = await self.store.run(reads.load(refund_id))
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
            refund, self.rules, now, self._wall(), recheck=bool(snapshot.recheck)
        )
        match action:
            case Action.NOTHING:
                return endings.standing(refund)
            case Action.SEND:
                return await self._send(refund, snapshot, lane, permits)
            case Action.REPLAY:
                return await self._replay(refund, now, lane, permits)
            case Action.LAPSE:
                step = attempts.after_lapse(refund, self.rules, now, self._jitter())
                saved, ending = await self._recorder.save(refund, step, {"seen": "lease_lapsed"})
                return await self._load(refund.refund_id) if saved.result == "saved" else ending
            case Action.READ_BACK:
                return await self._read_back(refund, now, lane, permits)
            case Action.POLL:
                return await self._poll(refund, now, permits)
            case Action.RECHECK:
                checked = await self._rechecker.run(refund, snapshot.recheck, now, permits.take)
                return checked if checked is not None else await self._load(refund.refund_id)
            case Action.REVIEW:
                step = attempts.to_review(
                    {}, "no_readback", "it may have happened, and nothing may be read back"
                )
                _, ending = await self._recorder.save(refund, step, {})
                return ending

    # Sending

    async def _send_blind(self, refund_id: str, lane: Lane) -> Ending | Snapshot:
        """Claim and send without a load; if refused for another action, return its record."""
        claim = await self._claim(refund_id, "send")
        if claim.result == "unchecked":
            return await self._load(refund_id)
        if claim.result in {"stage", "early"} and claim.refund is not None:
            return Snapshot(now=claim.now, seq="", refund=claim.refund, recheck=claim.recheck)
        return await self._go(claim, lane)

    async def _send(
        self, refund: Refund, snapshot: Snapshot, lane: Lane, permits: CallPermits
    ) -> Ending | Snapshot:
        seq: str | None = None
        baseline: Baseline | None = None
        shown = False
        began = self._clock()
        if self.rules.first_look and refund.first_attempt_at is None:
            held = await self._first_look(refund, snapshot.now, permits)
            if held is not None:
                return held
        checks = preflight.wants_currency(refund)
        if self.rules.wants_baseline or checks:
            view = await self._checker.read_payment(refund, snapshot.now, permits.take)
            if isinstance(view, Ending):
                return view
            if self.rules.wants_baseline:
                baseline = view.baseline
            seq, shown = snapshot.seq, view.shown
        prior_read_at = self._records_time(snapshot.now, began)
        held_back = await self._checker.read_prior(refund, prior_read_at, permits.take)
        if held_back is not None:
            return held_back
        await permits.ready()
        claim = await self._claim(
            refund.refund_id,
            "send",
            seq=seq,
            baseline=baseline,
            currency_checked=checks,
            payment_shown=shown,
            prior_read_at=prior_read_at if refund.prior_ids else None,
        )
        # `moved`: another refund of the payment was sent since the totals were read, so read them
        # again. `unchecked`: a webhook named a refund of the provider meanwhile.
        return (
            await self._load(refund.refund_id)
            if claim.result in {"moved", "unchecked"}
            else await self._go(claim, lane)
        )

    async def _first_look(
        self, refund: Refund, now: datetime, permits: CallPermits
    ) -> Ending | Snapshot | None:
        """Read a refund back before its first send; return None if it may be sent.

        A retry's earlier refund is read before that: if it was done after all, that is why the
        payment's list and total disagree with the records.
        """
        held_back = await self._checker.read_prior(refund, now, permits.take)
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
        checks = preflight.wants_currency(refund)
        if checks and isinstance(
            held := await self._checker.read_payment(refund, now, permits.take), Ending
        ):
            return held
        began = self._clock()
        held_back = await self._checker.read_prior(refund, now, permits.take, may_have_left=True)
        if held_back is not None:
            return held_back
        await permits.ready()
        claim = await self._claim(
            refund.refund_id,
            "replay",
            currency_checked=checks,
            prior_read_at=self._records_time(now, began) if refund.prior_ids else None,
        )
        # `window`: the provider may have forgotten the key by now, so another action is due.
        return (
            await self._load(refund.refund_id)
            if claim.result in {"window", "unchecked"}
            else await self._go(claim, lane)
        )

    async def _claim(
        self,
        refund_id: str,
        kind: ClaimKind,
        *,
        seq: str | None = None,
        baseline: Baseline | None = None,
        version: int | None = None,
        currency_checked: bool = False,
        payment_shown: bool = False,
        prior_read_at: datetime | None = None,
    ) -> Claim:
        asked, token = self._clock(), self._token()
        call = claims.claim(
            refund_id,
            kind,
            token=token,
            lease=self.rules.lease,
            replay_window=self.rules.key_window - self.rules.request_timeout - attempts.SPARE,
            version=version,
            seq=seq,
            baseline=baseline,
            currency_checked=currency_checked,
            payment_shown=payment_shown,
            prior_read_at=prior_read_at,
            position=self.positions.latest,
        )
        try:
            claim = await self.store.run(call)
        except (NotDurable, StoreUnavailable):
            await self._recorder.let_go(refund_id, token, self._not_sent)
            raise
        if claim.claimed:
            self.positions.confirmed(claim.position)
            # The lease began some time after the request was sent. Count from the request, so that
            # ours ends first.
            spent = timedelta(seconds=self._clock() - asked)
            return claims.shorter(claim, spent)
        if (
            claim.result == "blocked"
            and claim.refund is not None
            and claim.refund.next_check_at is not None
        ):
            left = claim.refund.next_check_at - claim.now
            self.gate.learn(left)
            if left <= SOON:
                self._handle_again(refund_id, claim.refund.lane, left)
        if claim.result == "missing":
            log.warning("refund_unknown", refund_id=refund_id)
        if claim.result == "no_body":
            log.error("stored_request_missing", refund_id=refund_id, alarm=True)
        log.debug("claim_refused", refund_id=refund_id, reason=claim.result)
        return claim

    def _not_sent(self, refund: Refund, now: datetime) -> Step:
        outcome = classify(NotSent(reason="its claim was not known to be on disk"), refund)
        return attempts.after_attempt(refund, outcome, self.rules, now, self._jitter())

    async def _go(self, claim: Claim, lane: Lane) -> Ending:
        """Make an attempt if the claim was granted.

        Return the refund's ending, also for a refused claim.
        """
        refund = claim.refund
        if claim.claimed and refund is not None:
            return await self._attempt(claim, refund, lane)
        if claim.result == "no_body" and refund is not None and refund.stage is Stage.IN_DOUBT:
            step = attempts.to_review({}, "no_body", "its stored request is gone")
            _, ending = await self._recorder.save(refund, step, {})
            return ending
        return endings.not_claimed(claim.result, refund)

    async def _attempt(self, claim: Claim, refund: Refund, lane: Lane) -> Ending:
        started = self._clock()

        async def may_go_on() -> bool:
            return await self._may_try_again(refund.refund_id, claim.token, lane)

        window: timedelta | None = None
        if refund.first_attempt_at is not None:
            # Use the clock that is further ahead: this worker's own may close the window, and never
            # opens it.
            window = refund.first_attempt_at + self.rules.key_window - max(claim.now, self._wall())
        outcome = await self.gateway.send(
            refund, claim.body, lease_left=claim.lease_left, window_left=window, may_go_on=may_go_on
        )
        elapsed = timedelta(seconds=self._clock() - started)
        now = claim.now + elapsed
        self._on_attempt(outcome)
        await self.trouble.note(outcome)
        step = attempts.after_attempt(refund, outcome, self.rules, now, self._jitter())
        detail: Detail = {
            "attempt": refund.attempts,
            "seen": outcome.verdict.value,
            "ms": elapsed // timedelta(milliseconds=1),
        }
        if outcome.http_status is not None:
            detail["http_status"] = outcome.http_status
        if outcome.tries > 1:
            detail["tries"] = outcome.tries
        saved, ending = await self._recorder.save(refund, step, detail, insist=True)
        if saved.result == "owned":
            doubt = owned_elsewhere(outcome, saved.other or "")
            step = attempts.after_attempt(refund, doubt, self.rules, now, self._jitter())
            _, ending = await self._recorder.save(
                refund, step, detail | {"seen": doubt.verdict.value}, insist=True
            )
        if outcome.verdict is TryVerdict.REFUSED and outcome.http_status == HTTPStatus.NOT_FOUND:
            # This refund moved nothing. If its payment was shown once, that stops all others. A
            # stopping worker does not wait for the permit, because another refund of the payment
            # will show the same.
            with suppress(TimeoutError):
                await self.account.is_lost(refund.payment_intent, lambda: self.gate.go_on(lane))
        return ending

    async def _may_try_again(self, refund_id: str, token: str, lane: Lane) -> bool:
        """Return whether a further try may be sent under a claim.

        Checked last, because each answer goes stale.
        """
        if self.stopping or self.breaker.is_open or self.guard.refuses():
            return False
        try:
            if not await self.gate.try_now(lane):
                return False
            # Since the claim the refund may have been proven done, or claims paused: then no
            # further byte is sent.
            obstacle = await self.store.run(claims.stands(refund_id, token))
        except StoreUnavailable as error:
            # The result of the tries so far is kept, and saved as soon as possible.
            obstacle = f"store_unavailable: {error}"
        if obstacle:
            log.info("further_try_left_out", refund_id=refund_id, reason=obstacle)
        return not obstacle

    # Reading

    async def _poll(self, refund: Refund, now: datetime, permits: CallPermits) -> Ending:
        if refund.provider_refund_id is None:
            step = attempts.to_review({}, "no_provider_id", "it is processing under no id")
            _, ending = await self._recorder.save(refund, step, {})
            return ending
        answer = await self.gateway.get_refund(
            refund.provider_refund_id, permits.take, about=refund
        )
        await self.trouble.note(classify(answer, refund))
        step = readback.after_poll(refund, answer, now, self._jitter())
        if (
            readback.says_gone(step)
            and refund.missing_since is not None
            and await self._account_is_lost(refund, permits)
        ):
            step = readback.account_lost()
        _, ending = await self._recorder.save(
            refund, step, {"seen": _shape(answer)}, insist=step.proof
        )
        return ending

    async def _account_is_lost(self, refund: Refund, permits: CallPermits) -> bool:
        """Return whether the payment of a refund is missing too, although it was shown once."""
        payment = await self.gateway.get_payment_intent(
            refund.payment_intent, permits.take, about=refund
        )
        return is_missing(payment) and await self.account.is_lost(
            refund.payment_intent, permits.take
        )

    async def _read_back(
        self, refund: Refund, now: datetime, lane: Lane, permits: CallPermits
    ) -> Ending:
        began = self._clock()
        read_back = await self._readbacks.run(refund, now, permits.take)
        step = readback.after_readback(refund, read_back, self.rules, now, self._jitter())
        detail = {"look": read_back.verdict.value, "reason": read_back.reason}
        is_resent = step.changes.get("proven_absent_at") is not None
        checks = is_resent and preflight.wants_currency(refund)
        if checks and isinstance(
            held := await self._checker.read_payment(refund, now, permits.take), Ending
        ):
            return held
        prior_read_at = self._records_time(now, began) if is_resent and refund.prior_ids else None
        if prior_read_at is not None:
            held_back = await self._checker.read_prior(refund, prior_read_at, permits.take)
            if held_back is not None:
                return held_back
        saved, ending = await self._recorder.save(refund, step, detail, insist=step.proof)
        if saved.result != "saved" or "proven_absent_at" not in step.changes or step.quiet:
            return ending
        if step.changes["proven_absent_at"] is None:
            return ending
        # The verdict is fresh for half a minute: send at once, or read back again.
        await permits.ready()
        claim = await self._claim(
            refund.refund_id,
            "resend",
            version=refund.version + 1,
            currency_checked=checks,
            prior_read_at=prior_read_at,
        )
        return await self._go(claim, lane)


def _shape(answer: Answer) -> str:
    return f"http_{answer.http_status}" if isinstance(answer, Reply) else answer.reason
