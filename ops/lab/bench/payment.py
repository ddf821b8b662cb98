"""What one more refund costs the server on a payment that has thousands, against one that has ten.

The scripts alone, one at a time and in the order in which a worker asks for them: accepted, claimed
(in vain, while another refund of the payment is under way), then claimed and saved as each save
wakes the next. Both kinds of payment take turns on one server, so that what else the machine does
meets both alike.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NamedTuple

from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import Rig, WrongCountError
from ops.lab.bench.table import Row, at_most, number, spread
from worker.client import Refunds
from worker.model.answers import ProviderRefund
from worker.model.refund import Lane
from worker.model.request import RefundRequest
from worker.rules import attempts, proofs
from worker.sandbox.redis_server import ThrowawayServer
from worker.settings import Settings
from worker.store import claims, creations, saves
from worker.store.claims import Claim
from worker.store.scripts import CREATED_AT_ONCE
from worker.store.store import Store

FEW: Final = 10
MOST_RATIO: Final = 1.5
CHUNK: Final = 100
"""Refunds after which the other kind has its turn."""
PHASES: Final = ("accept", "claim", "send")
SECONDS: Final = 30.0
SECONDS_A_REFUND: Final = 0.015
"""What a round may take: one that is cut short has shown enough."""


class Payment:
    """The refunds of one payment on their way; each phase goes on where it stopped."""

    def __init__(self, store: Store, payment_intent: str, count: int) -> None:
        self._store = store
        self._payment_intent = payment_intent
        self._coming = iter(
            [
                RefundRequest(
                    refund_id=f"{payment_intent}-{number}",
                    payment_intent=payment_intent,
                    amount=10,
                    reason="requested_by_customer",
                    metadata={"order": f"{payment_intent}-{number}", "channel": "web"},
                )
                for number in range(count)
            ]
        )
        self._accepted: deque[str] = deque()
        self._claim: Claim | None = None

    def accept(self, count: int) -> int:
        """Accept the next refunds; return how many that were."""
        some = list(islice(self._coming, count))
        for start in range(0, len(some), CREATED_AT_ONCE):
            self._store.run(
                creations.create_several(some[start : start + CREATED_AT_ONCE], Lane.BULK)
            )
        self._accepted.extend(request.refund_id for request in some)
        return len(some)

    def claim(self, count: int) -> int:
        """Claim the next that were accepted.

        The first of all is under way then, the others wait for it.
        """
        some = [self._accepted.popleft() for _ in range(min(count, len(self._accepted)))]
        for refund_id in some:
            claim = self._claimed(refund_id)
            if claim.claimed:
                self._claim = claim
            elif claim.result != "locked":
                raise WrongCountError(f"{refund_id} was neither claimed nor waits: {claim.result}")
        return len(some)

    def send(self, count: int) -> int:
        """Save the refund under way as done and claim the one that this wakes, so many times."""
        for sent in range(count):
            if self._claim is None or self._claim.refund is None:
                return sent
            refund = self._claim.refund
            found = ProviderRefund(
                id=f"re_{refund.refund_id}",
                status="succeeded",
                amount=refund.amount,
                currency="usd",
            )
            step = proofs.done(refund, found, "reply", self._claim.now)
            detail = {"attempt": refund.attempts, "seen": "done", "ms": 50, "http_status": 200}
            woken = self._store.run(saves.save(refund, step, detail)).woken
            self._claim = None if woken is None else self._claimed(woken)
        return count

    def _claimed(self, refund_id: str) -> Claim:
        lease = attempts.Rules().lease
        return self._store.run(claims.claim(refund_id, "send", token=refund_id, lease=lease))


class Side:
    """Refunds in payments of one size, and what they have cost the server so far."""

    def __init__(self, store: Store, name: str, refunds: int, each: int) -> None:
        self._redis: Any = store.redis
        self._each = each
        self._payments = [
            Payment(store, f"pi_{name}{start}", each) for start in range(0, refunds, each)
        ]
        self._cost = dict.fromkeys(PHASES, 0.0)
        self._done = dict.fromkeys(PHASES, 0)

    def turns(self, phase: str) -> Iterator[None]:
        """Take all refunds through a phase, so many at a turn, each turn measured."""
        began = self._used()
        for _ in self._chunks(phase):
            self._cost[phase] += self._used() - began
            yield
            began = self._used()

    def _chunks(self, phase: str) -> Iterator[None]:
        step, done = min(CHUNK, self._each), 0
        for payment in self._payments:
            for _ in range(0, self._each, step):
                done += getattr(payment, phase)(step)
                if done >= CHUNK:
                    self._done[phase] += done
                    done = 0
                    yield

    def _used(self) -> float:
        facts = self._redis.info("cpu")
        return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])

    @property
    def microseconds(self) -> float:
        """What one refund costs, all phases together."""
        return sum(self._cost[phase] / self._done[phase] for phase in PHASES) * 1e6


class Compared(NamedTuple):
    """Microseconds of the server's CPU a refund, with many of them on a payment and with few."""

    many: float
    few: float
    whole: bool
    """All refunds came to their end."""


def one_payment(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield what a refund of a payment with thousands costs the server, against one of a payment
    with ten.
    """
    rounds = [compared(plan.on_payment) for _ in range(plan.rounds)]
    ratios = [each.many / each.few for each in rounds]
    cut = "" if all(each.whole for each in rounds) else "; cut short"
    yield Row(
        figure="one payment: server's CPU a refund",
        setting=(
            f"{plan.on_payment:,} refunds of one payment: accepted, claimed, saved, the next one"
            f" woken{cut}"
        ),
        measured=spread([each.many for each in rounds], "µs"),
        floor=f"{spread([each.few for each in rounds], 'µs')} with {FEW}",
        ratio=spread(ratios),
        to_reach=f"at most {number(MOST_RATIO)}",
        reached=at_most(ratios, MOST_RATIO),
    )


def compared(refunds: int, *, seconds: float | None = None) -> Compared:
    """Take refunds of one payment, and as many of payments of `FEW`, through all phases, within so
    many `seconds`.
    """
    allowed = SECONDS + SECONDS_A_REFUND * refunds if seconds is None else seconds
    with (
        ThrowawayServer(Rig.allocator) as server,
        Refunds(settings=Settings.load(redis_url=server.url)) as door,
    ):
        sides = [Side(door.store, "many", refunds, refunds), Side(door.store, "few", refunds, FEW)]
        began, whole = time.monotonic(), True
        for place, phase in enumerate(PHASES, 1):
            for _ in zip(*(side.turns(phase) for side in sides), strict=True):
                if time.monotonic() - began > allowed * place / len(PHASES):
                    whole = False
                    break
        settled = door.store.counts()["succeeded"]
        if whole and settled != 2 * refunds:
            raise WrongCountError(f"{settled} of {2 * refunds} refunds were saved as done")
        many, few = (side.microseconds for side in sides)
        return Compared(many=many, few=few, whole=whole)
