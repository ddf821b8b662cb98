"""Planted bugs about money that others move too.

Sums, lists and refusals that are taken for a proof.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from tests.simulation.bugs.planting import Bug, all_scripts, put, rescript
from worker.model.refund import Refund
from worker.model.steps import Action, Step
from worker.rules import (
    attempts,
    codes,
    contradictions,
    decisions,
    evidence,
    payloads,
    polls,
    preflight,
    proofs,
    readback,
)
from worker.rules.attempts import Rules
from worker.store import rechecks, saves

_FOR_EVER: Final = 10**6


def others_never_fall_back(stack: ExitStack) -> None:
    """What others have refunded stays refunded, so an unchanged total means that nothing has
    happened.
    """
    real = evidence._unknown_in

    def trusting(baseline: Any, refund: Refund, siblings: Any, reread: Any) -> str | None:
        reason = real(baseline, refund, siblings, reread)
        return None if reason is not None and reason.startswith("the total before") else reason

    put(stack, evidence, "_unknown_in", trusting)


def rise_believed_whenever(stack: ExitStack) -> None:
    """The total has risen by our amount, so it was ours, however long ago we have asked for it."""
    put(stack, readback, "FOUND_WITHIN", _FOR_EVER)


def all_that_was_left_is_ours(stack: ExitStack) -> None:
    """A refund of all that was left has taken what was left when that was read."""
    real = readback._found_in_totals

    def filling(refund: Refund, rules: Rules, now: datetime) -> Step:
        step = real(refund, rules, now)
        if refund.all_remaining and refund.baseline is not None and step.label == "found_in_totals":
            return replace(step, changes={**step.changes, "amount": refund.baseline.remaining})
        return step

    put(stack, readback, "_found_in_totals", filling)


def older_entries_are_not_ours(stack: ExitStack) -> None:
    """An entry of the list that is dated before our request cannot be what came of it."""
    real = evidence._unexplained

    def by_date(entry: Any, refund: Refund, siblings: Any) -> bool:
        started = refund.first_attempt_at
        if (
            entry.created is not None
            and started is not None
            and entry.created < started - timedelta(minutes=1)
        ):
            return False
        return real(entry, refund, siblings)

    put(stack, evidence, "_unexplained", by_date)


def owner_is_kept_per_payment(stack: ExitStack) -> None:
    """Whose a provider's refund is, is looked up among the refunds of the same payment."""
    rescript(
        stack,
        ("SAVE",),
        "local owner = owner_of(set.provider_refund_id)",
        "local owner = redis.call('HGET', P .. 'payment:' .. r.payment_intent, 'owner:' .."
        " set.provider_refund_id)",
    )


def echo_settles(stack: ExitStack) -> None:
    """Once absence is proven a refusal is a refusal, whatever its code."""
    put(stack, attempts, "proves_no_earlier", lambda _, **__: True)


def settled_keeps_its_lock(stack: ExitStack) -> None:
    """A refund that has settled out of its doubt forgets to free the payment."""
    rescript(
        stack,
        all_scripts(),
        "elseif holds_lock(was.stage) and not",
        "elseif holds_lock(was.stage) and not (was.stage == 'in_doubt' and r.stage == 'settled')"
        " and not",
    )


def sums_counted_once_only(stack: ExitStack) -> None:
    """What a refund adds to a sum when it settles is not taken off when it is begun again."""
    rescript(
        stack,
        all_scripts(),
        "count('settled:' .. was.status, -1)",
        "",
    )


def request_forgotten(stack: ExitStack) -> None:
    """With the metadata goes what tells a repeat of the request from another one."""
    real = decisions.erased

    def forgetful(refund: Refund, now: datetime) -> Step:
        step = real(refund, now)
        return replace(step, changes={**step.changes, "fingerprint": None})

    put(stack, decisions, "erased", forgetful)


def script_fails_half_way(stack: ExitStack) -> None:
    """A script trips over an argument that it has not looked at before it writes."""
    rescript(
        stack,
        ("SAVE",),
        "if ARGV[15] ~= '' then",
        "if to == 'settled' then redis.call('HSET', P .. 'refund:' .. id, 'stage', 'settled');"
        " error('odd') end\nif ARGV[15] ~= '' then",
    )


def unconfirmed_currency_will_do(stack: ExitStack) -> None:
    """A payment that shows no currency, or is not shown at all, contradicts none."""
    real = preflight.after_view

    def lenient(refund: Refund, view: Any, now: datetime, jitter: float) -> Step | None:
        step = real(refund, view, now, jitter)
        return step if step is None or step.label == "currency_mismatch" else None

    put(stack, preflight, "after_view", lenient)
    put(stack, preflight, "after_no_view", lambda *_: None)
    rescript(stack, ("CLAIM",), "if r.asked_currency and not r.currency_checked", "if false")


def not_found_is_gone(stack: ExitStack) -> None:
    """What the provider has just reported and does not find is gone."""
    put(stack, readback, "MISSING_FOR", timedelta(0))
    put(stack, polls, "MISSING_FOR", timedelta(0))


def word_not_on_disk(stack: ExitStack) -> None:
    """A person is told that it is done as soon as the server has heard of it."""
    real = saves.save

    def hasty(refund: Refund, step: Step, detail: Any = None, **named: Any) -> Any:
        call = real(refund, step, detail, **named)
        return replace(call, durable=False) if "by" in (detail or {}) else call

    put(stack, saves, "save", hasty)


def time_goes_back(stack: ExitStack) -> None:
    """Time is what the server's clock says, whichever server that is."""
    real = attempts.next_action

    def by_the_server(
        refund: Refund, rules: Rules, now: datetime, *_: datetime, recheck: bool = False
    ) -> Action:
        return real(refund, rules, now, now, recheck=recheck)

    put(stack, attempts, "next_action", by_the_server)
    clock, own = "local SECOND, MINUTE", "do return server_now end\n  local SECOND, MINUTE"
    rescript(stack, all_scripts(), clock, own)
    rescript(stack, all_scripts(of=rechecks), clock, own, of=rechecks)


def proof_against_settled_dropped(stack: ExitStack) -> None:
    """What is settled is settled: a proof that comes later is logged, and kept nowhere."""
    put(stack, contradictions, "contradicted", lambda *_: None)


def amount_of_any_size(stack: ExitStack) -> None:
    """Whatever JSON takes for a whole number is an amount."""
    real = payloads.read_amount

    def generous(value: Any) -> int | None:
        return value if type(value) is int and value >= 0 else real(value)

    put(stack, payloads, "read_amount", generous)


def texts_kept_whole(stack: ExitStack) -> None:
    """What the provider says is kept as it says it."""
    put(stack, payloads, "_clean", lambda text, _: text)


def counted_as_they_come(stack: ExitStack) -> None:
    """What a provider says is counted under the name that it has there."""
    put(stack, codes, "counted", lambda code: code or codes.OTHER)


def plain_words_only(stack: ExitStack) -> None:
    """A status is one of four words, to the letter."""
    put(stack, payloads, "_status", lambda value, _: value if isinstance(value, str) else "")


def word_not_told(stack: ExitStack) -> None:
    """A person is asked about a status that is not known, and not told which."""
    real = proofs.unknown_status

    def silent(found: Any, _: str, changes: Any) -> Step:
        step = real(replace(found, status=None), "its status is not known", changes)
        return replace(step, changes={**step.changes, "provider_status": None})

    put(stack, attempts, "unknown_status", silent)
    put(stack, readback, "unknown_status", silent)


OF_MONEY: Final[tuple[Bug, ...]] = (
    others_never_fall_back,
    rise_believed_whenever,
    all_that_was_left_is_ours,
    older_entries_are_not_ours,
    owner_is_kept_per_payment,
    echo_settles,
    settled_keeps_its_lock,
    sums_counted_once_only,
    request_forgotten,
    script_fails_half_way,
    unconfirmed_currency_will_do,
    not_found_is_gone,
    word_not_on_disk,
    time_goes_back,
    proof_against_settled_dropped,
    amount_of_any_size,
    texts_kept_whole,
    counted_as_they_come,
    plain_words_only,
    word_not_told,
)
