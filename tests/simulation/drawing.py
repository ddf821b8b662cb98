"""The plan of a seed, drawn before its world begins."""

from __future__ import annotations

import random
from collections.abc import Collection
from datetime import timedelta
from typing import Any, Literal

from tests.simulation.odd import FAMILIES as ODD_FAMILIES
from tests.simulation.odd import ON, odd_for
from tests.simulation.plan import (
    FAMILIES,
    FILES_RATE,
    HEARD_RATE,
    MAIN,
    Asked,
    File,
    Plan,
    Seconds,
)
from tests.simulation.secrets import EMAIL
from tests.simulation.special_plans import (
    each_alone,
    forgetful,
    in_currencies,
    looking_first,
    only_by_webhooks,
    side_by_side,
    unheard,
    watched,
    with_a_short_window,
    with_much_to_decide,
)
from worker.model.request import RefundRequest
from worker.rules.attempts import Rules
from worker.sandbox.bank import CAPTURED, Outcome
from worker.sandbox.config import SandboxConfig


def plan_for(seed: int, *, wide: bool = False, families: Collection[str] = ON) -> Plan:
    """Return the plan of a seed; a `wide` one also draws what is known to be open.

    See `OPEN`, and every family.

    `families` are those of `odd` that may be drawn.
    """
    dice = random.Random(f"plan:{seed}")  # noqa: S311 - repeatable, not secret
    rules = _rules(dice)
    drawn = dice.sample(MAIN, dice.randint(0, 2)) + dice.sample(
        sorted(set(FAMILIES) - set(MAIN)), dice.randint(0, 2)
    )
    lag = dice.random() < 0.15 and rules.readback == "list" and "late" not in drawn
    payments, asked = _refunds(dice, rules, wide=wide)
    faults_end = dice.choice((1200.0, 3600.0, 6 * 3600.0))
    outages = tuple(
        (
            dice.choice(("refuses", "hangs", "http_503", "http_401")),
            start,
            start + dice.choice((30.0, 600.0, 5400.0)),
        )
        for start in (dice.uniform(0, faults_end) for _ in range(dice.choice((0, 0, 0, 1, 2))))
    )
    calm = dice.random() < 0.3
    odd = odd_for(
        seed, rules, payments, late="late" in drawn, families=ODD_FAMILIES if wide else families
    )
    plan = Plan(
        seed=seed,
        rules=rules,
        sandbox=_sandbox(dice, rules),
        machines=dice.randint(1, 3),
        slots=dice.choice((1, 2, 8)),
        rate=dice.choice((0.0, 0.0, 0.0, 5.0)),
        payments=payments,
        asked=asked,
        files=_files(seed, payments, asked),
        faults_end=faults_end,
        post_faults=tuple(name for family in drawn for name in FAMILIES[family]),
        post_rate=dice.choice((0.3, 0.6, 0.9)),
        read_rate=dice.choice((0.0, 0.0, 0.1, 0.4)),
        redis_rate=dice.choice((0.0, 0.0, 0.03, 0.1)),
        message_rate=dice.choice((0.0, 0.3, 0.6)),
        befalls_rate=0.0 if calm else dice.choice((0.3, 0.8, 1.0)),
        skewed=dice.random() < 0.5,
        list_lag=dice.uniform(0.5, 1.9) * rules.settle.total_seconds() if lag else 0.0,
        outages=outages,
        pauses=((at := dice.uniform(0, 900), at + 300),) if dice.random() < 0.1 else (),
        people_every=dice.choice((0.0, 1800.0, 7200.0)),
        script_flushes=(dice.uniform(0, 600),) if dice.random() < 0.1 else (),
        foreign=_foreign(dice, rules, payments),
        slow_redis=dice.random() < 0.15,
        heard=dice.random() < HEARD_RATE,
        odd=odd,
    )
    if "currency" in odd.families:
        plan = in_currencies(plan)
    if "people" in odd.families:
        plan = with_much_to_decide(plan)
    if "lag" in odd.families:
        plan = side_by_side(plan)
    if odd.alone and plan.rules.totals_proof:
        plan = unheard(plan)
    if "clock" in odd.families:
        plan = with_a_short_window(plan)
    if "reversals" in odd.families:
        plan = watched(plan)
    if odd.families == {"webhooks"}:
        plan = only_by_webhooks(plan)
    if odd.families and plan.rules.readback == "list":
        plan = looking_first(plan)
    if odd.takeover is not None:
        return forgetful(plan, odd.takeover)
    return each_alone(plan) if odd.alone else plan


def _rules(dice: random.Random) -> Rules:
    readback: Literal["list", "totals", "none"] = dice.choice(
        ("list", "list", "totals", "totals", "none")
    )
    settle = timedelta(seconds=dice.choice((60, 300)))
    lease, timeout = dice.choice(((45, 20), (45, 20), (120, 20), (30, 5)))
    return Rules(
        idempotency=dice.choice(("verify", "verify", "trust")),
        readback=readback,
        totals_proof=readback == "totals" and dice.random() < 0.7,
        settle=settle,
        key_window=dice.choice((timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=23))),
        request_timeout=timedelta(seconds=timeout),
        lease=timedelta(seconds=lease),
        max_attempts=dice.choice((4, 12)),
        max_age=dice.choice((timedelta(hours=2), timedelta(hours=72))),
    )


def _sandbox(dice: random.Random, rules: Rules) -> SandboxConfig:
    trust = rules.idempotency == "trust"
    window = rules.key_window.total_seconds()
    return SandboxConfig(
        idempotency="honour" if trust or dice.random() < 0.3 else "ignore",
        # The provider forgets a key exactly when the worker has been told that it does.
        key_window_seconds=window if trust else dice.choice((60.0, 86_400.0)),
        store_5xx=dice.random() < 0.5,
        list_refunds=rules.readback == "list" or dice.random() < 0.5,
        pending_in_totals=rules.totals_proof,
        envelope=dice.choice(("nested", "flat")),
        created_in_ms=dice.random() < 0.3,
        charges_expanded=dice.random() < 0.7,
        settle_ms=dice.choice((1_000, 30_000, 900_000)),
        log_requests=0,
    )


def _refunds(
    dice: random.Random, rules: Rules, *, wide: bool
) -> tuple[dict[str, dict[str, Any]], tuple[Asked, ...]]:
    outcomes = [Outcome.SUCCEEDED] * 5 + [
        Outcome.PENDING_THEN_SUCCEEDED,
        Outcome.PENDING_THEN_FAILED,
        Outcome.FAILED,
    ]
    if rules.readback == "totals" and rules.totals_proof and not wide:
        outcomes = [
            Outcome.SUCCEEDED if outcome.value.startswith("pending") else outcome
            for outcome in outcomes
        ]
    payments = {
        f"pi_{number}": {"outcome": dice.choice(outcomes), "amount": dice.choice((1000, CAPTURED))}
        for number in range(dice.randint(1, 2))
    }
    asked = []
    for number in range(dice.randint(2, 5)):
        payment = dice.choice(sorted(payments))
        # Equal parts of one payment are the common case that a careless rule confuses.
        amount = dice.choice((500, 500, 300, None))
        at = dice.choice((0.0, 0.0, dice.uniform(0, 120), dice.uniform(0, 1200)))
        asked.append(
            Asked(
                request=RefundRequest(
                    refund_id=f"r{number}",
                    payment_intent=payment,
                    amount=amount,
                    metadata={"email": EMAIL},
                ),
                at=at,
                again_at=tuple(at + dice.uniform(0, 3) for _ in range(dice.choice((0, 0, 1, 2)))),
                cancel_at=at + dice.uniform(0, 60) if dice.random() < 0.15 else None,
                retry_at=at + dice.uniform(60, 3600) if dice.random() < 0.3 else None,
            )
        )
    return payments, tuple(asked)


def _files(
    seed: int, payments: dict[str, dict[str, Any]], asked: tuple[Asked, ...]
) -> tuple[File, ...]:
    # Dice of their own: what is drawn for files changes nothing else of a seed.
    dice = random.Random(f"files:{seed}")  # noqa: S311 - repeatable, not secret
    if dice.random() >= FILES_RATE:
        return ()
    rows = [_row(dice, number, payments) for number in range(dice.randint(2, 7))]
    if dice.random() < 0.2:
        # An order system may have handed in one of the rows already.
        rows.insert(dice.randrange(len(rows)), asked[0].request)
    at = dice.choice((0.0, dice.uniform(0, 300)))
    pause_at = at + dice.uniform(0, 30) if dice.random() < 0.25 else None
    return (
        File(
            batch_id="b-1",
            rows=tuple(rows),
            at=at,
            delay=dice.uniform(30, 900) if dice.random() < 0.2 else 0.0,
            cancel_at=(
                at + dice.choice((dice.uniform(0, 3), dice.uniform(0, 900)))
                if dice.random() < 0.35
                else None
            ),
            pause_at=pause_at,
            resume_at=None if pause_at is None else pause_at + dice.uniform(10, 1200),
            retry_at=at + dice.uniform(300, 7200) if dice.random() < 0.3 else None,
        ),
    )


def _row(dice: random.Random, number: int, payments: dict[str, dict[str, Any]]) -> RefundRequest:
    own = dice.random() < 0.5
    return RefundRequest(
        refund_id=f"f{number}",
        payment_intent=f"pi_f{number}" if own else dice.choice(sorted(payments)),
        amount=dice.choice((500, 200)),
        metadata={"email": EMAIL},
    )


def _foreign(
    dice: random.Random, rules: Rules, payments: dict[str, dict[str, Any]]
) -> tuple[tuple[str, int, Seconds], ...]:
    # Under totals, equal refunds made elsewhere in the seconds of a doubt are outside the promise.
    if rules.readback != "list" or dice.random() < 0.8:
        return ()
    return ((dice.choice(sorted(payments)), dice.choice((500, 7)), dice.uniform(0, 1200)),)
