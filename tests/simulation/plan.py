"""What a seed stands for: settings, refunds, faults and their rates, all drawn before the world
begins.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal

from tests.simulation.odd import CURRENCIES, NOTHING, ON, Odd, odd_for
from tests.simulation.odd import FAMILIES as ODD_FAMILIES
from tests.simulation.provider_seam import BROKEN, MADE_UP, REFUSED, UNSENT, WRONG
from tests.simulation.reversals import UNWATCHED, Watch
from tests.simulation.secrets import EMAIL
from worker.model.request import RefundRequest
from worker.rules.attempts import Rules
from worker.sandbox.bank import CAPTURED, Outcome
from worker.sandbox.config import SandboxConfig
from worker.settings import WATCH_RATE

# Family → the faults that a request may meet when its family is drawn for a seed.
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "unsent": tuple(UNSENT),
    "broken": (*BROKEN, "reply_cut"),
    "late": ("late_effect",),
    "status": tuple(name for name in MADE_UP if name not in {"http_401", "http_403"}),
    "refused": (*REFUSED, "http_403"),
    "rate": ("http_429",),
    "credentials": ("http_401",),
    "wrong": WRONG,
}
LOST: Final = tuple(name for name in FAMILIES["broken"] if name.startswith("request_lost"))
UNHEARD: Final = tuple(name for name in FAMILIES["broken"] if name.startswith("reply_lost"))
MAIN: Final = ("broken", "late", "status")
REDIS_FAULTS: Final = ("redis_lost", "redis_reply_lost", "redis_late", "redis_refuses")
MESSAGE_FAULTS: Final = ("message_lost", "message_doubled", "message_delayed")
SILENT: Final = frozenset({"people", "power", "clock", "stubborn", "webhooks", "reversals"})
"""Families of what is odd that change nothing of what a list shows."""
BEFALLS: Final = ("killed", "stopped", "terminated")
"""SIGKILL, SIGSTOP and SIGTERM."""

FILES_RATE: Final = 0.35
HEARD_RATE: Final = 0.15
FIRST_LOOKS: Final = 0.25
ERASING: Final = 7
"""One world in so many erases the metadata of settled refunds."""

FAILING: Final = (Outcome.FAILED, Outcome.PENDING_THEN_FAILED)
RUNGS: Final = (
    (),
    tuple(timedelta(hours=hours) for hours in (1, 6, 24)),
    tuple(timedelta(hours=hours) for hours in (2, 12)),
    tuple(timedelta(days=days) for days in (1, 7, 30, 60)),
)
"""The rungs of the watch, one of these."""

OPEN: Final = (
    (
        "found in totals that count pending refunds: recorded as succeeded while the provider still"
        " says pending"
    ),
)
"""What the product is known to get wrong, and only `--wide` worlds show."""
Seconds = float


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One refund that a caller asks for, and what callers do with it later."""

    request: RefundRequest
    at: Seconds
    again_at: tuple[Seconds, ...] = ()
    cancel_at: Seconds | None = None
    retry_at: Seconds | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file that is handed in as a batch, and what people do with the batch later."""

    batch_id: str
    rows: tuple[RefundRequest, ...]
    at: Seconds
    delay: Seconds = 0.0
    """For so long nothing of it is to be sent."""
    cancel_at: Seconds | None = None
    pause_at: Seconds | None = None
    resume_at: Seconds | None = None
    retry_at: Seconds | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything about one world that is fixed before it begins.

    What is drawn on the way comes from `seed` too.
    """

    seed: int
    rules: Rules
    sandbox: SandboxConfig
    machines: int
    slots: int
    """Calls in flight of one worker."""
    rate: float
    payments: dict[str, dict[str, Any]]
    asked: tuple[Asked, ...]
    files: tuple[File, ...]
    faults_end: Seconds
    post_faults: tuple[str, ...]
    post_rate: float
    read_rate: float
    redis_rate: float
    message_rate: float
    befalls_rate: float
    skewed: bool
    list_lag: float
    outages: tuple[tuple[str, Seconds, Seconds], ...]
    pauses: tuple[tuple[Seconds, Seconds], ...]
    people_every: Seconds
    script_flushes: tuple[Seconds, ...]
    foreign: tuple[tuple[str, int, Seconds], ...]
    """Refunds made elsewhere: payment, amount, when."""
    slow_redis: bool
    heard: bool
    """Whether what is logged and put into the queue is read."""
    odd: Odd = NOTHING
    watch: Watch = UNWATCHED

    @property
    def erases(self) -> bool:
        """Whether the metadata of settled refunds are erased soon. Nothing is drawn for it."""
        return self.seed % ERASING == 0

    @property
    def reads_well(self) -> bool:
        """Whether whatever is read back shows, to its end and truly, what the provider has made."""
        return (
            self.rules.readback == "list"
            and not self.read_rate
            and not self.list_lag
            and not self.outages
            and not self.odd.families - SILENT
        )

    @property
    def identifies(self) -> bool:
        """Whether webhooks are all that can identify a refund, and what they name can be read."""
        return (
            self.rules.readback == "none"
            and self.sandbox.idempotency == "ignore"
            and "webhooks" in self.odd
            and not self.read_rate
            and not self.outages
            and not self.odd.families - SILENT
        )

    def summary(self) -> str:
        """Return the plan in one line."""
        rules = self.rules
        return (
            f"{rules.idempotency}/{rules.readback}/{'proof' if rules.totals_proof else 'hint'}"
            f"{'/first' if rules.first_look else ''}"
            f" keys={self.sandbox.idempotency} settle={rules.settle.total_seconds():g}s"
            f" lease={rules.lease.total_seconds():g}s window={rules.key_window.total_seconds():g}s"
            f" machines={self.machines} refunds={len(self.asked)}"
            f" rows={sum(len(file.rows) for file in self.files)}"
            f" faults={','.join(self.post_faults)}@{self.post_rate}"
            f" odd={','.join(sorted(self.odd.families)) or '-'}@{self.odd.rate}"
        )


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
        plan = _in_currencies(plan)
    if "people" in odd.families:
        plan = _with_much_to_decide(plan)
    if "lag" in odd.families:
        plan = _side_by_side(plan)
    if odd.alone and plan.rules.totals_proof:
        plan = _unheard(plan)
    if "clock" in odd.families:
        plan = _with_a_short_window(plan)
    if "reversals" in odd.families:
        plan = _watched(plan)
    if odd.families == {"webhooks"}:
        plan = _only_by_webhooks(plan)
    if odd.families and plan.rules.readback == "list":
        plan = _looking_first(plan)
    return _each_alone(plan) if odd.alone else plan


def _looking_first(plan: Plan) -> Plan:
    """Return the plan, now and then with workers that look at the provider before a first send."""
    # Dice of its own: seeds without that play as they did.
    dice = random.Random(f"first:{plan.seed}")  # noqa: S311 - repeatable, not secret
    return replace(plan, rules=replace(plan.rules, first_look=dice.random() < FIRST_LOOKS))


def _watched(plan: Plan) -> Plan:
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
    plan = _each_alone(plan)
    return _asking(
        replace(plan, slots=8, rate=0.0, redis_rate=0.0, message_rate=0.0, slow_redis=False),
        (replace(one, at=0.0, again_at=()) for one in plan.asked),
    )


def _only_by_webhooks(plan: Plan) -> Plan:
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


def _with_a_short_window(plan: Plan) -> Plan:
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


def _side_by_side(plan: Plan) -> Plan:
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


def _unheard(plan: Plan) -> Plan:
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


def _with_much_to_decide(plan: Plan) -> Plan:
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


def _in_currencies(plan: Plan) -> Plan:
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


def _each_alone(plan: Plan) -> Plan:
    """Return the plan with a payment for each refund."""
    payments, shows, asked = dict(plan.payments), dict(plan.odd.shown), []
    for number, one in enumerate(plan.asked):
        name = f"pi_alone_{number}"
        payments[name] = plan.payments[one.request.payment_intent]
        if (shown := plan.odd.shown.get(one.request.payment_intent)) is not None:
            shows[name] = shown
        asked.append(replace(one, request=replace(one.request, payment_intent=name)))
    return _asking(replace(plan, payments=payments, odd=replace(plan.odd, shown=shows)), asked)


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
