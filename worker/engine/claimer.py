"""Claims a refund for one attempt, and learns from a claim that is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from worker.engine.positions import Positions
from worker.engine.rate_gate import RateGate
from worker.engine.recorder import SOON, HandleAgain, Recorder
from worker.errors import NotDurable, StoreUnavailable
from worker.model.answers import NotSent
from worker.model.refund import Baseline, Refund
from worker.model.steps import Step
from worker.rules import attempts
from worker.rules.attempts import Rules
from worker.rules.outcomes import classify
from worker.store import claims
from worker.store.async_store import AsyncStore
from worker.store.claims import Claim, ClaimKind

log = structlog.get_logger(__name__)


class Claimer:
    """Claims refunds, each for one attempt.

    `handle_again` is called for a refund that the rate gate holds back for a moment only.
    """

    def __init__(
        self,
        store: AsyncStore,
        recorder: Recorder,
        *,
        rules: Rules,
        positions: Positions,
        gate: RateGate,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        token: Callable[[], str],
        handle_again: HandleAgain,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._rules = rules
        self._positions = positions
        self._gate = gate
        self._clock = clock
        self._jitter = jitter
        self._token = token
        self._handle_again = handle_again

    async def claim(
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
        """Return the claim, granted or refused, as of now; what it states is as in `claims.claim`.

        If the claim may have been granted and is not known to be on disk, nothing is sent under it:
        this is saved, and the error raised.
        """
        asked, token = self._clock(), self._token()
        call = claims.claim(
            refund_id,
            kind,
            token=token,
            lease=self._rules.lease,
            replay_window=self._rules.key_window - self._rules.request_timeout - attempts.SPARE,
            version=version,
            seq=seq,
            baseline=baseline,
            currency_checked=currency_checked,
            payment_shown=payment_shown,
            prior_read_at=prior_read_at,
            remembered=lambda: self._positions.latest,
        )
        try:
            claim = await self._store.run(call)
        except (NotDurable, StoreUnavailable):
            await self._recorder.let_go(refund_id, token, self._not_sent)
            raise
        if not claim.claimed:
            self._refused(refund_id, claim)
            return claim
        self._positions.confirmed(claim.position)
        # The lease began some time after the request was sent. Count from the request, so that
        # ours ends first.
        return claims.shorter(claim, timedelta(seconds=self._clock() - asked))

    def _refused(self, refund_id: str, claim: Claim) -> None:
        refund = claim.refund
        if claim.result == "blocked" and refund is not None and refund.next_check_at is not None:
            left = refund.next_check_at - claim.now
            self._gate.learn(left)
            if left <= SOON:
                self._handle_again(refund_id, refund.lane, left)
        if claim.result == "missing":
            log.warning("refund_unknown", refund_id=refund_id)
        if claim.result == "no_body":
            log.error("stored_request_missing", refund_id=refund_id, alarm=True)
        log.debug("claim_refused", refund_id=refund_id, reason=claim.result)

    def _not_sent(self, refund: Refund, now: datetime) -> Step:
        outcome = classify(NotSent(reason="its claim was not known to be on disk"), refund)
        return attempts.after_attempt(refund, outcome, self._rules, now, self._jitter())
