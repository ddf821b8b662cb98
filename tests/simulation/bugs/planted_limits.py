"""Planted bugs about everybody's trouble.

The stop button, a refused key, a rate, and refunds failed for it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from tests.simulation.bugs.planting import Bug, put, rescript
from worker.engine.rate_gate import RateGate
from worker.model.answers import Answer, NotSent, Outcome, Reply, TryVerdict
from worker.model.refund import Lane, Refund
from worker.model.steps import Step
from worker.provider import gateway
from worker.rules import attempts, outcomes

KEY_REFUSED: Final = 401
TOO_MANY: Final = 429


def pause_ignored(stack: ExitStack) -> None:
    """The stop button is heeded by whoever hands refunds out, and not by who sends them."""
    rescript(stack, ("CLAIM",), "if meta[1] then return 'paused' end", "")


def refused_key_ignored(stack: ExitStack) -> None:
    """Each worker finds out for itself, refund by refund, that the key is refused."""
    rescript(stack, ("CLAIM",), "if meta[2] then return 'parked' end", "")


def retry_after_ignored(stack: ExitStack) -> None:
    """A 429 is heeded by the refund that has met it, and by no other."""
    rescript(stack, ("CLAIM",), "if blocked_until > NOW then", "if false then")


def rate_ignored(stack: ExitStack) -> None:
    """Each worker sends as fast as it can."""

    async def at_once(self: RateGate, lane: Lane) -> None:
        del self, lane

    async def always(self: RateGate, lane: Lane) -> bool:
        del self, lane
        return True

    put(stack, RateGate, "acquire", at_once)
    put(stack, RateGate, "try_now", always)


def rate_not_shared(stack: ExitStack) -> None:
    """Every worker takes the whole rate for itself: who asks finds the schedule where it was."""
    rescript(stack, ("GATE",), "if given > 0 then", "if false then")


def _refused_at(status: int, stack: ExitStack) -> None:
    real = outcomes.classify

    def believing(answer: Answer, refund: Refund) -> Outcome:
        outcome = real(answer, refund)
        if isinstance(answer, Reply) and answer.http_status == status:
            return replace(outcome, verdict=TryVerdict.REFUSED, credentials=False)
        return outcome

    put(stack, gateway, "classify", believing)


def refused_key_fails_refunds(stack: ExitStack) -> None:
    """A refused key fails whatever it was used for."""
    _refused_at(KEY_REFUSED, stack)


def rate_limit_fails_refunds(stack: ExitStack) -> None:
    """A 429 is an error like any other of its hundred."""
    _refused_at(TOO_MANY, stack)


def unsent_fails_refunds(stack: ExitStack) -> None:
    """Where no connection could be made, the refund has failed."""
    real = outcomes.classify

    def hopeless(answer: Answer, refund: Refund) -> Outcome:
        outcome = real(answer, refund)
        return (
            replace(outcome, verdict=TryVerdict.REFUSED) if isinstance(answer, NotSent) else outcome
        )

    put(stack, gateway, "classify", hopeless)


def given_up_early(stack: ExitStack) -> None:
    """Every attempt counts towards the budget, whoever's trouble it met."""
    real = attempts.after_attempt

    def impatient(refund: Refund, outcome: Outcome, *rest: object) -> Step:
        if (
            refund.attempts > 1
            and outcome.verdict in {TryVerdict.NOT_SENT, TryVerdict.NOT_DONE}
            and refund.doubt_since is None
        ):
            return attempts.budget_spent({})
        step: Step = real(refund, outcome, *rest)  # type: ignore[arg-type]  # handed on as they came
        return step

    put(stack, attempts, "after_attempt", impatient)


def attempts_miscounted(stack: ExitStack) -> None:
    """The record counts what the history does not tell."""
    rescript(stack, ("CLAIM",), "number(r.attempts) + 1", "number(r.attempts) + 2")


OF_LIMITS: Final[tuple[Bug, ...]] = (
    pause_ignored,
    refused_key_ignored,
    retry_after_ignored,
    rate_ignored,
    rate_not_shared,
    refused_key_fails_refunds,
    rate_limit_fails_refunds,
    unsent_fails_refunds,
    given_up_early,
    attempts_miscounted,
)
