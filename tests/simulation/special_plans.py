"""Plans in which one rare thing is made likely."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Final

from tests.simulation.odd import CURRENCIES, Takeover
from tests.simulation.plan import (
    FAILING,
    FAMILIES,
    FIRST_LOOKS,
    LOST,
    RUNGS,
    UNHEARD,
    Asked,
    Plan,
)
from tests.simulation.reversals import Watch
from worker.model.request import RefundRequest
from worker.sandbox.bank import CAPTURED, Outcome
from worker.settings import WATCH_RATE

FORGETTING_ENDS: Final = 1200.0
"""When the faults end in a world with a server that forgot."""


def looking_first(plan: Plan) -> Plan:
    """Return the plan, now and then with workers that look at the provider before a first send."""
    # Dice of its own: seeds without that play as they did.
    dice = random.Random(f"first:{plan.seed}")  # noqa: S311 - repeatable, not secret
    return replace(plan, rules=replace(plan.rules, first_look=dice.random() < FIRST_LOOKS))


def watched(plan: Plan) -> Plan:
    """Return the plan with a watch of settled refunds, mostly, and with retries of failed ones."""
    dice = random.Random(f"watched:{plan.seed}")  # noqa: S311 - repeatable, not secret
    watch = Watch(
        rungs=dice.choice(RUNGS),
        rate=dice.choice((WATCH_RATE, WATCH_RATE, 0.2)),
        lockstep=dice.random() < 0.3,
    )
    plan = replace(plan, watch=watch)
    if watch.lockstep:
        plan = _in_lockstep(plan)
    if dice.random() < 0.5:
        return plan
    fails = (Outcome.FAILED,) if plan.rules.totals_proof else FAILING
    payments = {
        name: {**facts, "outcome": dice.choice(fails)} for name, facts in plan.payments.items()
    }
    asked = (
        replace(one, retry_at=one.at + dice.uniform(60, 3600), cancel_at=None) for one in plan.asked
    )
    return _asking(replace(plan, payments=payments), asked)


def _in_lockstep(plan: Plan) -> Plan:
    """Return the plan with refunds that run side by side, each step in the same moment."""
    plan = each_alone(plan)
    return _asking(
        replace(plan, slots=8, rate=0.0, redis_rate=0.0, message_rate=0.0, slow_redis=False),
        (replace(one, at=0.0, again_at=()) for one in plan.asked),
    )


def only_by_webhooks(plan: Plan) -> Plan:
    """Return some plans with lost replies, of which only webhooks can tell what became."""
    dice = random.Random(f"only-webhooks:{plan.seed}")  # noqa: S311 - repeatable, not secret
    if dice.random() < 0.6:
        return plan
    return replace(
        plan,
        rules=replace(plan.rules, readback="none", totals_proof=False, idempotency="verify"),
        sandbox=replace(plan.sandbox, idempotency="ignore"),
        post_faults=UNHEARD,
        read_rate=0.0,
        list_lag=0.0,
        outages=(),
        foreign=(),
    )


def with_a_short_window(plan: Plan) -> Plan:
    """Return the plan with keys that are forgotten early, and doubts that last longer than that."""
    window = timedelta(minutes=5)
    return replace(
        plan,
        rules=replace(
            plan.rules, idempotency="trust", totals_proof=False, key_window=window, max_attempts=12
        ),
        sandbox=replace(
            plan.sandbox, idempotency="honour", key_window_seconds=window.total_seconds()
        ),
        post_faults=FAMILIES["broken"],
        post_rate=0.9,
        faults_end=max(plan.faults_end, 3600.0),
    )


def _asking(plan: Plan, asked: Iterable[Asked]) -> Plan:
    """Return the plan with these refunds asked for, also where a file hands one of them in once
    more.
    """
    asked = tuple(asked)
    now = {one.request.refund_id: one.request for one in asked}
    files = tuple(
        replace(file, rows=tuple(now.get(row.refund_id, row) for row in file.rows))
        for file in plan.files
    )
    return replace(plan, asked=asked, files=files)


def side_by_side(plan: Plan) -> Plan:
    """Return most plans with equal refunds of one payment, each pending and in no total until it
    succeeds.

    Some requests are lost, so that one is looked for in the total in which another has just come to
    be counted.
    """
    dice = random.Random(f"beside:{plan.seed}")  # noqa: S311 - repeatable, not secret
    if dice.random() < 0.3 or plan.odd.alone:
        return plan
    payment = plan.asked[0].request.payment_intent
    shown = {"outcome": Outcome.PENDING_THEN_SUCCEEDED, "amount": CAPTURED}
    asked = (
        replace(
            one,
            request=replace(one.request, payment_intent=payment, amount=500),
            at=dice.uniform(0, 20),
            again_at=(),
        )
        for one in plan.asked
    )
    plan = replace(
        plan,
        rules=replace(plan.rules, idempotency="verify", readback="totals", totals_proof=False),
        sandbox=replace(plan.sandbox, pending_in_totals=False, settle_ms=30_000),
        payments={**plan.payments, payment: {**plan.payments[payment], **shown}},
        post_faults=LOST,
        post_rate=0.6,
        list_lag=0.0,
        read_rate=0.0,
        odd=replace(plan.odd, missing=1800.0),
    )
    return _asking(plan, asked)


def unheard(plan: Plan) -> Plan:
    """Return every other plan with replies that are lost while what others have refunded before
    falls back.
    """
    dice = random.Random(f"unheard:{plan.seed}")  # noqa: S311 - repeatable, not secret
    if dice.random() < 0.5:
        return plan
    rules = replace(plan.rules, idempotency="verify")
    return replace(
        plan,
        rules=rules,
        post_faults=UNHEARD,
        post_rate=0.6,
        odd=replace(plan.odd, falls_back=True),
    )


def with_much_to_decide(plan: Plan) -> Plan:
    """Return the plan with people who look often, and with little that could be read back instead
    of asking them.
    """
    dice = random.Random(f"people:{plan.seed}")  # noqa: S311 - repeatable, not secret
    rules = plan.rules
    if dice.random() < 0.6:
        rules = replace(
            rules,
            readback="none",
            totals_proof=False,
            idempotency="verify",
            settle=timedelta(seconds=60),
        )
    asked = (
        replace(one, request=replace(one.request, amount=dice.choice((None, one.request.amount))))
        for one in plan.asked
    )
    return _asking(replace(plan, rules=rules, people_every=600.0), asked)


def in_currencies(plan: Plan) -> Plan:
    """Return the plan with payments in several currencies, and refunds that state one."""
    dice = random.Random(f"currency:{plan.seed}")  # noqa: S311 - repeatable, not secret
    payments = {
        name: {**facts, "currency": dice.choice(CURRENCIES)}
        for name, facts in plan.payments.items()
    }
    asked = (
        replace(one, request=replace(one.request, currency=dice.choice((None, *CURRENCIES))))
        for one in plan.asked
    )
    return _asking(replace(plan, payments=payments), asked)


def forgetful(plan: Plan, takeover: Takeover) -> Plan:
    """Return the plan with refunds before, at and after a takeover by a server that forgot.

    Each has a payment of its own: a refund whose record is lost is somebody else's in the totals.
    The provider honours no key, so that whatever is sent twice moves money twice.
    """
    dice = random.Random(f"forgetful:{plan.seed}")  # noqa: S311 - repeatable, not secret
    facts = [*plan.payments.values()]
    times = [
        dice.uniform(0, 10),
        # Acceptances and claims that are lost.
        *(takeover.at - dice.choice((0.1, 1.0, 5.0, 20.0)) * dice.random() for _ in range(3)),
        *(takeover.at + dice.uniform(0, 60) for _ in range(dice.randint(0, 3))),
        *(takeover.at + takeover.frozen + dice.uniform(0, 90) for _ in range(dice.randint(1, 3))),
    ]
    payments = {f"pi_{number}": dice.choice(facts) for number in range(len(times))}
    asked = tuple(
        Asked(
            request=RefundRequest(refund_id=f"r{number}", payment_intent=name, amount=500),
            at=at,
            again_at=(at + dice.uniform(0, 90),) if dice.random() < 0.3 else (),
        )
        for number, (name, at) in enumerate(zip(payments, times, strict=True))
    )
    refused = {"http_401", "http_403"}
    return replace(
        plan,
        rules=replace(plan.rules, idempotency="verify"),
        sandbox=replace(plan.sandbox, idempotency="ignore"),
        machines=dice.randint(1, 3),
        payments=payments,
        asked=asked,
        files=(),
        faults_end=FORGETTING_ENDS,
        post_faults=tuple(name for name in plan.post_faults if name not in refused),
        list_lag=0.0,
        outages=(),
        pauses=(),
        foreign=(),
    )


def each_alone(plan: Plan) -> Plan:
    """Return the plan with a payment for each refund."""
    payments, shows, asked = dict(plan.payments), dict(plan.odd.shown), []
    for number, one in enumerate(plan.asked):
        name = f"pi_alone_{number}"
        payments[name] = plan.payments[one.request.payment_intent]
        if (shown := plan.odd.shown.get(one.request.payment_intent)) is not None:
            shows[name] = shown
        asked.append(replace(one, request=replace(one.request, payment_intent=name)))
    return _asking(replace(plan, payments=payments, odd=replace(plan.odd, shown=shows)), asked)
