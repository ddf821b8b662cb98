"""Rules for attempts: the next action of a refund, and its next stage after an attempt.

Pure and total functions.

Nothing here reads a clock, sleeps, sends or draws a random number. `now` and `jitter` are
parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from worker.errors import IllegalMove
from worker.model.answers import Outcome, TryVerdict
from worker.model.refund import Refund, Retriable, Stage, Status
from worker.model.request import scrubbed
from worker.model.steps import Action, Step
from worker.rules.codes import may_be_an_echo, proves_no_earlier, retriable
from worker.rules.outcomes import fold
from worker.rules.payloads import STATUSES
from worker.rules.proofs import (
    LATE_SUCCESS,
    NO_READBACKS,
    NO_WORD,
    done_alone,
    named_again,
    settled_drops,
    to_review,
    unknown_status,
)

MAX_SERVER_ERRORS: Final = 3
"""Consecutive 5xx answers to one key after which replays stop.

The provider may be replaying a stored 5xx.
"""
MAX_LAPSES: Final = 3
MAX_RESENDS: Final = 3
MAX_PROCESSING: Final = timedelta(days=30)
VERDICT_LIFE: Final = timedelta(seconds=30)
"""A proof of absence older than this permits no send."""
SPARE: Final = timedelta(seconds=3)
"""Time that must remain of a lease, beyond one call's time limit, when a try starts."""
PARKED: Final = timedelta(seconds=15)
"""Delay until a refund that was held back by a pause or a breaker is checked again."""
EARLY_READBACK: Final = timedelta(seconds=10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The settings that the rules depend on, as `Settings` reads them from the environment."""

    idempotency: Literal["verify", "trust"] = "verify"
    readback: Literal["list", "totals", "none"] = "totals"
    totals_proof: bool = False
    first_look: bool = False
    settle: timedelta = timedelta(seconds=300)
    key_window: timedelta = timedelta(hours=23)
    request_timeout: timedelta = timedelta(seconds=20)
    lease: timedelta = timedelta(seconds=45)
    max_attempts: int = 12
    max_age: timedelta = timedelta(hours=72)

    @property
    def reads_first(self) -> bool:
        """Return whether something is read of each payment before the first POST."""
        return self.wants_baseline or self.first_look

    @property
    def wants_baseline(self) -> bool:
        """Return whether the payment's totals must be read before the first POST."""
        return self.idempotency == "verify" and self.readback == "totals"


def backoff(attempt: int, *, base: timedelta, cap: timedelta, jitter: float) -> timedelta:
    """Return the delay before the next attempt.

    Exponential from `base` up to `cap`, between half and all of that.

    `attempt` counts from 1. `jitter`, in [0, 1), selects the delay within the upper half.
    """
    doublings: int = min(max(attempt, 1) - 1, 30)
    full = min(cap, base * (1 << doublings))
    return full / 2 + full / 2 * jitter


def _attempt_backoff(attempt: int, jitter: float) -> timedelta:
    return backoff(attempt, base=timedelta(seconds=10), cap=timedelta(hours=1), jitter=jitter)


def _least_wait(attempt: int, jitter: float) -> timedelta:
    """Return the minimum delay before the next attempt despite any `Retry-After`.

    1 to 2 s, later up to an hour.
    """
    return backoff(attempt, base=timedelta(seconds=2), cap=timedelta(hours=1), jitter=jitter)


def may_try_again(outcomes: Sequence[Outcome], refund: Refund, rules: Rules) -> bool:
    """Return whether the same bytes may be sent again in this attempt, if time and count permit."""
    last = outcomes[-1]
    if last.verdict is TryVerdict.NOT_SENT:
        return True
    if (
        last.verdict is not TryVerdict.MAYBE
        or last.found is not None
        # What it showed is read before anything more is sent.
        or last.odd is not None
        or rules.idempotency != "trust"
    ):
        return False
    return _server_errors(refund, fold(outcomes)) < MAX_SERVER_ERRORS


def next_action(
    refund: Refund,
    rules: Rules,
    now: datetime,
    own: datetime | None = None,
    *,
    recheck: bool = False,
) -> Action:
    """Return a refund's next action at `now` (the records' time).

    The worker's `own` clock can only veto a replay. `recheck` says that the refund is to be read
    again outside its own schedule. What a webhook named is read before anything is sent.
    """
    due = refund.next_check_at is None or refund.next_check_at <= now
    match refund.stage:
        case Stage.QUEUED:
            return Action.RECHECK if refund.candidates else Action.SEND
        case Stage.WAITING if due and refund.processing_since is not None:
            return Action.REVIEW
        case Stage.WAITING if due and refund.operator_says == "failed":
            return Action.RECHECK if refund.candidates else Action.GIVE_UP
        case Stage.WAITING if due:
            return Action.RECHECK if refund.candidates else Action.SEND
        case Stage.PROCESSING | Stage.REVIEW | Stage.SETTLED if recheck and not _is_named(refund):
            return Action.RECHECK
        case Stage.SENDING:
            return Action.LAPSE if due else Action.NOTHING
        case Stage.PROCESSING:
            return Action.POLL if due else Action.NOTHING
        case Stage.IN_DOUBT:
            return _doubt_action(refund, rules, max(now, own or now)) if due else Action.NOTHING
        case Stage.WAITING | Stage.REVIEW | Stage.SETTLED:
            return Action.NOTHING


def _is_named(refund: Refund) -> bool:
    """Return whether a person named the provider's refund, and it is still to be read."""
    return refund.stage is Stage.PROCESSING and refund.operator_says == "succeeded"


def _doubt_action(refund: Refund, rules: Rules, latest: datetime) -> Action:
    if refund.candidates:
        return Action.READ_BACK
    if may_replay(refund, rules, latest):
        return Action.REPLAY
    if rules.readback == "none" and refund.operator_says is None:
        return Action.REVIEW
    return Action.READ_BACK


def may_replay(refund: Refund, rules: Rules, now: datetime) -> bool:
    """Return whether the same key and bytes may be sent again to resolve a doubt.

    The provider must honour idempotency keys, and the key's window must still be open.
    """
    if (
        rules.idempotency != "trust"
        or refund.first_attempt_at is None
        or refund.operator_says is not None
    ):
        return False
    return (
        refund.server_errors < MAX_SERVER_ERRORS
        and refund.verdicts < rules.max_attempts
        and refund.first_attempt_at <= now
        and now + rules.request_timeout + SPARE < refund.first_attempt_at + rules.key_window
    )


def after_attempt(
    refund: Refund, outcome: Outcome, rules: Rules, now: datetime, jitter: float
) -> Step:
    """Return the step after an attempt, for a refund in `sending`.

    Only a proof ends an existing doubt.
    """
    if outcome.found is not None and outcome.verdict is TryVerdict.DONE:
        proof = done_alone(refund, outcome.found, "reply", now)
        if proof.status is not Status.SUCCEEDED or refund.next_check_at is None:
            return proof
        # A frozen worker may save it long afterwards, and what succeeded may have failed by then.
        said_at = min(refund.next_check_at, _first_doubt_of(refund) or refund.next_check_at)
        return replace(proof, settles_until=said_at + LATE_SUCCESS)
    seen: dict[str, Any] = {
        "error_code": outcome.code,
        "error_message": outcome.message,
        "lapses": 0,
        "server_errors": _server_errors(refund, outcome),
    }
    counted = outcome.verdict not in {TryVerdict.NOT_SENT, TryVerdict.NOT_DONE}
    if counted:
        seen["verdicts"] = refund.verdicts + 1
    doubtful = outcome.doubt or refund.doubt_since is not None
    if counted or doubtful:
        # A person's decision to send it counts until a send may have left.
        seen |= _without_word(refund)
    if outcome.doubt:
        # The gateway closes the socket before it returns, so nothing more can be sent after `now`.
        seen |= {
            "doubt_since": refund.doubt_since or now,
            "quiet_at": now,
            "retriable": Retriable.NO,
        }
        seen |= NO_READBACKS | _no_evidence(refund)
    if (step := _for_a_person(refund, outcome, seen, now)) is not None:
        return step
    if doubtful:
        if outcome.verdict is TryVerdict.REFUSED:
            # The same bytes would be refused again, so read back instead of replaying until the
            # budget is spent.
            seen["server_errors"] = MAX_SERVER_ERRORS
        return _into_doubt(replace(refund, **seen), outcome, seen, rules, now, jitter)
    if outcome.verdict is TryVerdict.REFUSED:
        return _refused(refund, outcome.code, seen, now)
    return _not_done(refund, outcome, seen, rules, now, jitter)


def _not_done(
    refund: Refund,
    outcome: Outcome,
    seen: Mapping[str, Any],
    rules: Rules,
    now: datetime,
    jitter: float,
) -> Step:
    """Return the step after an attempt that provably did nothing.

    A further attempt while the budget lasts.
    """
    started = refund.tried_since or now
    spent = (
        now - started >= rules.max_age
        or seen.get("verdicts", refund.verdicts) >= rules.max_attempts
    )
    # A refused API key concerns every refund, so no refund fails because of it, however long it
    # lasts.
    if spent and not outcome.credentials:
        if refund.is_only_said_absent:
            return to_review(
                {**seen, **_without_word(refund)},
                "budget_spent",
                "no attempt got through since a person requested another send",
            )
        return budget_spent(seen)
    delay = _attempt_backoff(refund.attempts, jitter)
    if outcome.retry_after is not None:
        # Come back no sooner than the provider's `Retry-After` and not much later; repeated ones
        # wait longer each time.
        delay = max(outcome.retry_after * (1 + jitter / 4), _least_wait(refund.attempts, jitter))
    # A person's decision may have outweighed what could not be read, for one send.
    again = named_again(refund) if refund.absent_by_word else {}
    return Step(
        to=Stage.WAITING,
        status=Status.PENDING,
        label=outcome.code,
        changes={**seen, **again},
        delay=delay,
    )


def _for_a_person(
    refund: Refund, outcome: Outcome, changes: Mapping[str, Any], now: datetime
) -> Step | None:
    """Return the step to review after an answer that no later answer can explain, else None."""
    if outcome.found is not None and outcome.found.status not in STATUSES:
        return replace(
            unknown_status(outcome.found, outcome.message or outcome.code, changes), source="reply"
        )
    if outcome.verdict is TryVerdict.MISMATCH:
        # Something was sent under this key, and its result is not known.
        doubt = {"doubt_since": refund.doubt_since or now, "quiet_at": now}
        alarm = (
            "the idempotency key was used with other contents: never send this refund under"
            " another key"
        )
        return to_review({**changes, **doubt}, outcome.code, alarm)
    return None


def _refused(refund: Refund, code: str, changes: Mapping[str, Any], now: datetime) -> Step:
    """Return the step after a refusal, for a refund that is not in doubt (any more)."""
    if not refund.doubted or proves_no_earlier(code, proven_absent=not refund.is_only_said_absent):
        return _settled_failed({**changes, "evidence": "reply"}, code, source="reply")
    why = (
        "the refusal may be its echo"
        if may_be_an_echo(code)
        else "that one may not have been refused"
    )
    alarm = f"refused with {code} after an attempt that may have happened: {why}"
    again = {"doubt_since": now, "quiet_at": now, "retriable": Retriable.NO, **_no_evidence(refund)}
    return to_review({**changes, **again}, code, alarm)


def _no_evidence(refund: Refund) -> dict[str, Any]:
    """Return the change that removes evidence of an earlier absence.

    That evidence does not cover what was sent since.
    """
    return {} if refund.evidence is None else {"evidence": None}


def _first_doubt_of(refund: Refund) -> datetime | None:
    """Return when an earlier send may have been executed at the earliest, None if none may.

    The provider may have kept its reply to that one, and repeats it for the same key.
    """
    is_first = refund.doubt_since is None and not refund.absent_by_word
    return None if is_first else refund.first_attempt_at


def _without_word(refund: Refund) -> dict[str, Any]:
    """Return the change that removes a person's decision, if there is one."""
    return {} if refund.operator_says is None else NO_WORD


def _server_errors(refund: Refund, outcome: Outcome) -> int:
    return outcome.server_errors + (refund.server_errors if outcome.only_server_errors else 0)


def _settled_failed(changes: Mapping[str, Any], code: str, source: str | None = None) -> Step:
    return Step(
        to=Stage.SETTLED,
        status=Status.FAILED,
        label=code,
        changes={**changes, "retriable": retriable(code), **settled_drops()},
        source=source,
    )


def budget_spent(changes: Mapping[str, Any]) -> Step:
    """Return the step that fails a refund provably never done within its attempts and age."""
    message = (
        "given up: no attempt got through within the allowed attempts and age; it was provably"
        " never done"
    )
    return _settled_failed(
        {**changes, "error_code": "budget_spent", "error_message": message}, "budget_spent"
    )


def refused_unsent(refund: Refund, code: str, message: str) -> Step:
    """Return the step that fails a refund that a guard refused because of its payment.

    The guard refused before anything was sent. A refund whose earlier attempt may have happened
    goes to review. Raises `IllegalMove` if it is in doubt.
    """
    if refund.doubt_since is not None:
        raise IllegalMove(refund.refund_id, refund.stage, Stage.SETTLED)
    changes = {"error_code": code, "error_message": scrubbed(message)}
    if refund.doubted:
        return to_review(changes, code, f"an earlier attempt may have happened, and now {message}")
    return _settled_failed({**changes, "evidence": "lookup"}, code, source="lookup")


def _into_doubt(
    refund: Refund,
    outcome: Outcome,
    changes: Mapping[str, Any],
    rules: Rules,
    now: datetime,
    jitter: float,
) -> Step:
    """Return the step into (or within) doubt; `refund` already carries `changes`."""
    delay = _attempt_backoff(refund.attempts, jitter)
    if outcome.retry_after is not None:
        delay = max(delay, outcome.retry_after)
    if may_replay(refund, rules, now + delay):
        return Step(
            to=Stage.IN_DOUBT,
            status=Status.PENDING,
            label=outcome.code,
            changes=changes,
            delay=delay,
        )
    if rules.readback == "none" and refund.operator_says is None:
        return to_review(
            changes, outcome.code, "it may have happened, and nothing may be read back"
        )
    delay = min(EARLY_READBACK, rules.settle)
    if outcome.retry_after is not None:
        delay = max(delay, outcome.retry_after)
    return Step(
        to=Stage.IN_DOUBT, status=Status.PENDING, label=outcome.code, changes=changes, delay=delay
    )


def was_pending(refund: Refund, now: datetime) -> Step:
    """Return the step to review for a pending refund that is to be sent again.

    An older version let a person send it without a read-back.
    """
    alarm = "the provider had reported it as pending before it was to be sent again"
    doubt = {"doubt_since": refund.doubt_since or now}
    return to_review({**doubt, **NO_WORD, **NO_READBACKS}, "was_pending", alarm)


def not_canceled() -> Step:
    """Return the step for a refund of a canceled batch that only a person calls absent."""
    alarm = (
        "its batch was canceled before it was sent again, and only a person says that an earlier"
        " attempt did not happen"
    )
    return to_review({**NO_WORD, **NO_READBACKS}, "batch_canceled", alarm)


def after_lapse(refund: Refund, rules: Rules, now: datetime, jitter: float) -> Step:
    """Return the step after a lapsed lease.

    The worker may have sent and died, so the refund may have happened.
    """
    changes: dict[str, Any] = {
        "lapses": refund.lapses + 1,
        "doubt_since": refund.doubt_since or now,
        "quiet_at": refund.next_check_at or now,
        "error_code": "lease_lapsed",
        "error_message": "the worker that claimed it stopped without recording an answer",
        "retriable": Retriable.NO,
    }
    changes |= NO_READBACKS | _no_evidence(refund) | _without_word(refund)
    if changes["lapses"] >= MAX_LAPSES:
        return to_review(
            changes,
            "lease_lapsed",
            "its lease lapsed three times in a row: this refund may crash workers",
        )
    outcome = Outcome(verdict=TryVerdict.MAYBE, code="lease_lapsed", doubt=True)
    step = _into_doubt(replace(refund, **changes), outcome, changes, rules, now, jitter)
    # A replay needs no delay, because the lease was one. A read-back may follow at once too: only a
    # proof of absence needs a settle time.
    return step if step.to is not Stage.IN_DOUBT else replace(step, delay=timedelta(0))
