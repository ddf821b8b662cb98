"""Planted bugs: each a class of mistake that real projects have made, put into the real code for
the judge to find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx

from tests.simulation.bugs.planted_forgetting import OF_FORGETTING
from tests.simulation.bugs.planted_limits import OF_LIMITS
from tests.simulation.bugs.planted_money import OF_MONEY
from tests.simulation.bugs.planted_rechecks import OF_RECHECKS
from tests.simulation.bugs.planted_rim import AT_THE_RIM
from tests.simulation.bugs.planting import Bug, all_scripts, put, rescript, what_stands
from tests.simulation.world import World
from worker.engine import readback_runner
from worker.engine.attempt_runner import AttemptRunner
from worker.model.answers import Answer, NotSent, Outcome, Reply, TryVerdict
from worker.model.refund import Lane, Refund, Stage, Status
from worker.model.request import RefundRequest, idempotency_key
from worker.model.steps import Step
from worker.provider import gateway, transport
from worker.provider.gateway import Gateway
from worker.rules import attempts, decisions, outcomes, proofs, readback
from worker.store import creations

if TYPE_CHECKING:
    from tests.simulation.clock import Machine

_LONG_AGO: Final = timedelta(days=3650)
SERVER_ERROR: Final = 500


def new_key_on_retry(stack: ExitStack) -> None:
    """Every try but the first takes a fresh idempotency key."""
    real, tried = Gateway._try, Counter[str]()

    async def again(self: Gateway, refund: Refund, *rest: Any) -> Outcome:
        tried[refund.idempotency_key] += 1
        if tried[refund.idempotency_key] > 1:
            refund = replace(
                refund, idempotency_key=f"{refund.idempotency_key}-{tried[refund.idempotency_key]}"
            )
        return await real(self, refund, *rest)

    put(stack, Gateway, "_try", again)


def body_built_anew(stack: ExitStack) -> None:
    """Every try serializes the request again, not always to the same bytes."""
    real, tried = Gateway._try, Counter[str]()

    async def again(self: Gateway, refund: Refund, body: bytes, *rest: Any) -> Outcome:
        tried[refund.idempotency_key] += 1
        return await real(
            self, refund, body.replace(b":", b": ", (tried[refund.idempotency_key] - 1) % 2), *rest
        )

    put(stack, Gateway, "_try", again)


def record_deleted_on_error(stack: ExitStack) -> None:
    """An attempt that ends in an error removes the key, so that the next one may begin afresh."""
    last = "return {'saved', int(NOW), woken, unpack(rows)}"
    deleting = (
        "if to == 'waiting' or to == 'in_doubt' then redis.call('DEL', P .. 'refund:' .. id) end "
    )
    rescript(stack, ("SAVE",), last, deleting + last)


def check_then_insert(stack: ExitStack) -> None:
    """Two requests with the same id within two seconds both find nothing, and both insert."""
    racing = "if existing and NOW - tonumber(existing.created_at) > 2000 then"
    rescript(stack, ("CREATE",), "if existing then", racing)


def lapsed_lease_is_unsent(stack: ExitStack) -> None:
    """A worker that died is taken to have died before it sent."""

    def unsent(refund: Refund, *_: object) -> Step:
        return Step(
            to=Stage.WAITING,
            status=Status.PENDING,
            label="lease_lapsed",
            changes={"lapses": refund.lapses + 1},
            delay=timedelta(0),
        )

    put(stack, attempts, "after_lapse", unsent)


def connect_timeout_at_its_word(stack: ExitStack) -> None:
    """A ConnectTimeout, says httpx, so nothing was sent."""
    real = transport.answer_to

    def believing(error: BaseException) -> Any:
        return NotSent(reason="connect") if isinstance(error, httpx.ConnectTimeout) else real(error)

    put(stack, transport, "answer_to", believing)


def doubt_forgotten(stack: ExitStack) -> None:
    """A refusal after an attempt of unknown outcome settles the refund as failed."""
    real = attempts.after_attempt

    def forgetting(refund: Refund, outcome: Outcome, *rest: Any) -> Step:
        if outcome.verdict is TryVerdict.REFUSED:
            refund = replace(refund, doubt_since=None, doubted=False)
            outcome = replace(outcome, doubt=False)
        return real(refund, outcome, *rest)

    put(stack, attempts, "after_attempt", forgetting)


def timeout_is_failure(stack: ExitStack) -> None:
    """No reply in time: the refund has failed."""
    real = attempts.after_attempt

    def failing(refund: Refund, outcome: Outcome, *rest: Any) -> Step:
        if outcome.code == "no_reply":
            return attempts.budget_spent({})
        return real(refund, outcome, *rest)

    put(stack, attempts, "after_attempt", failing)


def server_error_is_not_done(stack: ExitStack) -> None:
    """A 5xx means that nothing happened, so it is tried again later."""
    real = outcomes.classify

    def hopeful(answer: Answer, refund: Refund) -> Outcome:
        outcome = real(answer, refund)
        if isinstance(answer, Reply) and answer.http_status >= SERVER_ERROR:
            return replace(outcome, verdict=TryVerdict.NOT_DONE, doubt=False)
        return outcome

    put(stack, gateway, "classify", hopeful)


def redelivery_without_claim(stack: ExitStack) -> None:
    """A message past its visibility timeout is delivered again and begins again what is under
    way.
    """
    guard = "if r.stage ~= 'queued' and r.stage ~= 'waiting' then return refuse('stage') end"
    loose = (
        "if r.stage ~= 'queued' and r.stage ~= 'waiting' and r.stage ~= 'sending' then return"
        " refuse('stage') end"
    )
    rescript(stack, ("CLAIM",), guard, loose)


def key_from_amount(stack: ExitStack) -> None:
    """The key is derived from payment and amount: two equal parts of one payment share it."""
    real = what_stands(creations, "new_row")

    def shared(request: RefundRequest) -> list[Any]:
        row = list(real(request))
        row[row.index(idempotency_key(request.refund_id, 1))] = (
            f"{request.payment_intent}-{request.amount}"
        )
        return row

    put(stack, creations, "new_row", shared)


def stale_write_accepted(stack: ExitStack) -> None:
    """A claimant whose lease has lapsed still writes what it believes."""
    rescript(
        stack,
        ("SAVE",),
        "elseif r.version ~= ARGV[5] or r.stage ~= ARGV[16] then",
        "elseif false then",
    )
    # Nor is there a table of moves in the projects that have this one.
    rescript(
        stack, ("SAVE",), "if not string.find(ARGV[14],", "if false and not string.find(ARGV[14],"
    )
    rescript(
        stack,
        ("SAVE",),
        "if r.stage ~= to then return {'illegal'",
        "if false then return {'illegal'",
    )


def totals_beside_another(stack: ExitStack) -> None:
    """A payment's total is compared although another refund of it moves."""
    real = what_stands(readback_runner, "judge_totals")

    def alone(*positional: Any, **named: Any) -> Any:
        return real(*positional, **{**named, "siblings": ()})

    put(stack, readback_runner, "judge_totals", alone)


def absence_from_one_look(stack: ExitStack) -> None:
    """What is not there at the first look is never going to be."""
    real = readback._absent

    def at_once(refund: Refund, rules: attempts.Rules, now: datetime) -> Step:
        return real(replace(refund, absent_at=now - _LONG_AGO), rules, now)

    put(stack, readback, "_absent", at_once)


def absence_against_the_total(stack: ExitStack) -> None:
    """A list is believed though the payment's total shows more than it lists."""
    put(stack, readback_runner, "judge_absence", lambda *_, **__: None)


def absence_unsettled(stack: ExitStack) -> None:
    """Two looks in a row, without waiting for what may still be on its way."""
    real = readback._absent

    def hasty(refund: Refund, rules: attempts.Rules, now: datetime) -> Step:
        quick = replace(rules, settle=timedelta(0))
        return real(refund, quick, now)

    put(stack, readback, "_absent", hasty)


def lock_not_held_in_doubt(stack: ExitStack) -> None:
    """The payment is free as soon as the attempt is over, whatever became of it."""
    rescript(
        stack,
        all_scripts(),
        "return stage == 'sending' or stage == 'in_doubt'",
        "return stage == 'sending'",
    )


def worker_clock_trusted(stack: ExitStack) -> None:
    """Leases and due times are decided by each worker's own clock."""

    def own(self: World, machine: Machine | None) -> int:
        return self.loop.wall_ms + (round(machine.skew * 1000) if machine is not None else 0)

    put(stack, World, "clock_for", own)


def key_window_ignored(stack: ExitStack) -> None:
    """The same key is replayed for ever."""
    real = attempts.may_replay

    def always(refund: Refund, rules: attempts.Rules, now: datetime) -> bool:
        return real(refund, replace(rules, key_window=_LONG_AGO), now)

    put(stack, attempts, "may_replay", always)
    rescript(stack, ("CLAIM",), "not is_within(r.first_attempt_at, late)", "false")


def any_success_believed(stack: ExitStack) -> None:
    """A 200 is a success, whatever it tells of."""
    put(stack, outcomes, "contradiction", lambda *_: None)


def lapsed_leases_not_swept(stack: ExitStack) -> None:
    """Nobody looks for what a dead worker had claimed."""
    rescript(stack, ("SWEEP",), "{'sending', 'in_doubt', ", "{'in_doubt', ")


def cancel_in_flight(stack: ExitStack) -> None:
    """A refund may be canceled while its request is under way."""

    def at_any_time(refund: Refund) -> Step | None:
        if refund.settled or refund.stage is Stage.REVIEW:
            return None
        return Step(
            to=Stage.SETTLED,
            status=Status.CANCELED,
            label="canceled",
            changes=proofs.settled_drops(),
        )

    put(stack, decisions, "cancel", at_any_time)


async def may_try_again_unasked(
    self: AttemptRunner, refund_id: str, token: str, lane: Lane
) -> bool:
    """Ask for everything but whether the claim still stands."""
    del refund_id, token
    return not self._holds_back() and await self._gate.try_now(lane)


def further_try_unasked(stack: ExitStack) -> None:
    """A claim once taken is good for all its tries, whatever has become of the refund meanwhile."""
    put(stack, AttemptRunner, "_may_try_again", may_try_again_unasked)


def person_believed_unread(stack: ExitStack) -> None:
    """A person says that it never happened, and it is failed with nothing read."""
    real = decisions.resolve_failed

    def at_once(refund: Refund, code: str, **how: Any) -> Step:
        return real(replace(refund, doubt_since=None, doubted=False), code, **how)

    put(stack, decisions, "resolve_failed", at_once)


def person_believed_unproven(stack: ExitStack) -> None:
    """A person's word is taken where nothing that was read bears it out, though they did not
    insist.
    """
    real = readback._take_word

    def taken(refund: Refund, *rest: Any) -> Step:
        return real(replace(refund, operator_unverified=True), *rest)

    put(stack, readback, "_take_word", taken)


BUGS: Final[dict[str, Bug]] = {
    bug.__name__: bug
    for bug in (
        new_key_on_retry,
        body_built_anew,
        record_deleted_on_error,
        check_then_insert,
        lapsed_lease_is_unsent,
        connect_timeout_at_its_word,
        doubt_forgotten,
        timeout_is_failure,
        server_error_is_not_done,
        redelivery_without_claim,
        key_from_amount,
        stale_write_accepted,
        totals_beside_another,
        absence_from_one_look,
        absence_against_the_total,
        absence_unsettled,
        lock_not_held_in_doubt,
        worker_clock_trusted,
        key_window_ignored,
        any_success_believed,
        lapsed_leases_not_swept,
        cancel_in_flight,
        further_try_unasked,
        person_believed_unread,
        person_believed_unproven,
        *AT_THE_RIM,
        *OF_FORGETTING,
        *OF_LIMITS,
        *OF_MONEY,
        *OF_RECHECKS,
    )
}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Run with a bug in the code; with None, with the code as it is."""
    with ExitStack() as stack:
        if name is not None:
            BUGS[name](stack)
        yield
