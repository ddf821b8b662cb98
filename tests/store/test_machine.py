"""Refunds delivered, redelivered, lost, lapsed, swept, canceled and retried in any order, a provider's ledger as judge.

Money moves at most once, no status is a guess, and the records tell one story after every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, ClassVar, Literal

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.factories import (
    BAD_KEY,
    HOUR,
    MAYBE,
    MINUTE,
    NOT_DONE,
    NOT_SENT,
    NOW,
    REFUSED,
    SECOND,
    SERVER_ERROR,
    a_request,
    found,
)
from tests.store.world import LEASE, World
from worker import calls, policy
from worker.calls import Claim
from worker.errors import NotCancelable
from worker.model import (
    Action,
    Lane,
    Look,
    Outcome,
    ProviderRefund,
    Refund,
    Seen,
    Sight,
    Stage,
    Status,
    Step,
    from_ms,
)
from worker.policy import Rules

REFUNDS = {f"r{number}": f"pi_{number % 2}" for number in range(5)}
REFUND_IDS = st.sampled_from(sorted(REFUNDS))
UNDONE = st.sampled_from(
    [MAYBE, NOT_SENT, NOT_DONE, BAD_KEY, SERVER_ERROR, REFUSED, replace(REFUSED, code="lock_timeout")]
)
Reading = Literal["clear", "blurred", "unreadable"]
READINGS: st.SearchStrategy[Reading] = st.sampled_from(["clear", "clear", "blurred", "unreadable"])


@dataclass
class Provider:
    """Moves money once for each request it executes, or once for each key where it honours keys."""

    honours_keys: bool
    ledger: dict[str, list[ProviderRefund]] = field(default_factory=dict)

    def execute(self, refund: Refund) -> ProviderRefund:
        made = self.ledger.setdefault(refund.idempotency_key, [])
        if not (made and self.honours_keys):
            number = sum(len(entries) for entries in self.ledger.values())
            made.append(
                found(
                    id=f"re_{number}",
                    status="pending" if number % 2 else "succeeded",
                    amount=refund.asked_amount or 77,
                    payment_intent=refund.payment_intent,
                    refund_id=refund.refund_id,
                    generation=str(refund.generation),
                )
            )
        return made[0]

    def shown(self, refund: Refund) -> list[ProviderRefund]:
        return self.ledger.get(refund.idempotency_key, [])


@dataclass
class Flight:
    """One attempt on the wire: the record as it was claimed, and what the provider did of it."""

    refund: Refund
    effect: ProviderRefund | None


class Journey(RuleBasedStateMachine):
    """Any number of workers, none of them reliable, over one set of records."""

    connect: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.client: redis.Redis = self.connect()
        self.world = World(self.client)
        self.provider = Provider(honours_keys=False)
        self.flights: list[Flight] = []
        self.terms = Rules()

    @initialize(
        trust=st.booleans(),
        readback=st.sampled_from(["list", "list", "none"]),
        amounts=st.lists(st.sampled_from([500, None]), min_size=len(REFUNDS), max_size=len(REFUNDS)),
    )
    def begin(self, *, trust: bool, readback: Any, amounts: list[int | None]) -> None:
        self.terms = Rules(idempotency="trust" if trust else "verify", readback=readback, max_attempts=4)
        self.provider = Provider(honours_keys=trust)
        for refund_id, amount in zip(REFUNDS, amounts, strict=True):
            self.accept(refund_id, amount)

    def teardown(self) -> None:
        self.client.close()

    @rule(refund_id=REFUND_IDS, amount=st.sampled_from([500, None]))
    def accept(self, refund_id: str, amount: int | None) -> None:
        request = a_request(refund_id, payment_intent=REFUNDS[refund_id], amount=amount)
        known = self.world.store.get(refund_id)
        lane, batch = (Lane.BULK, "b1") if refund_id in {"r0", "r1"} else (Lane.SINGLE, None)
        created = self.world.accept(request, lane=lane, batch=batch)
        if known is None:
            assert created.result == "created"
        elif known.fingerprint == request.fingerprint:
            assert (created.result, created.refund) == ("exists", known)
        else:
            assert created.result == "conflict"

    # Workers

    @rule(
        refund_id=REFUND_IDS,
        executes=st.booleans(),
        reading=st.sampled_from(["clear", "clear", "blurred", "unreadable"]),
    )
    def deliver(self, refund_id: str, reading: Reading, *, executes: bool) -> None:
        """A nudge reaches some worker, for the first time or the fifth."""
        refund = self.world.get(refund_id)
        match policy.next_action(refund, self.terms, self.world.now):
            case Action.SEND:
                self.take_off(self.world.claim(refund_id, "send"), executes=executes)
            case Action.REPLAY:
                window = self.terms.key_window - self.terms.request_timeout
                self.take_off(self.world.claim(refund_id, "replay", replay_window=window), executes=executes)
            case Action.LAPSE:
                self.decide(refund, policy.after_lapse(refund, self.terms, self.world.now, 0))
            case Action.REVIEW:
                self.decide(refund, policy.to_review({}, "no_readback", "x"))
            case Action.POLL:
                self.poll(refund)
            case Action.LOOK:
                self.look(refund, reading, executes=executes)
            case Action.NOTHING:
                pass

    def look(self, refund: Refund, reading: Reading, *, executes: bool) -> None:
        shown = self.provider.shown(refund)
        look = Look(sight=Sight.ABSENT, reason="x")
        if reading != "clear":
            look = Look(sight=Sight.INCONCLUSIVE if reading == "blurred" else Sight.UNREADABLE, reason="x")
        elif shown:
            look = Look(sight=Sight.FOUND, reason="x", found=shown[0])
        step = policy.after_look(refund, look, self.terms, self.world.now, 0)
        self.decide(refund, step)
        if step.changes.get("proven_absent_at") is not None:
            claim = self.world.claim(refund.refund_id, "resend", version=refund.version + 1)
            self.take_off(claim, executes=executes)

    def poll(self, refund: Refund) -> None:
        listed = {entry.id: entry for entries in self.provider.ledger.values() for entry in entries}
        assert refund.provider_refund_id is not None
        now_final = replace(listed[refund.provider_refund_id], status="succeeded")
        self.decide(refund, policy.done(refund, now_final, "reply", self.world.now))

    def take_off(self, claim: Claim, *, executes: bool) -> None:
        if not claim.claimed:
            return
        assert claim.refund is not None
        known = self.provider.shown(claim.refund)
        effect = self.provider.execute(claim.refund) if executes else (known[0] if known else None)
        self.flights.append(Flight(refund=claim.refund, effect=effect))

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99), undone=UNDONE, cut=st.booleans(), twice=st.booleans())
    def land(self, which: int, undone: Outcome, *, cut: bool, twice: bool) -> None:
        """An attempt ends, in time or late; what it saw is saved, now and then twice."""
        flight = self.flights.pop(which % len(self.flights))
        if flight.effect is None:
            outcome = undone
        elif not cut:
            outcome = Outcome(seen=Seen.DONE, code="done", http_status=200, found=flight.effect)
        else:
            # The reply is lost, or it is a replay and the provider says whatever it likes of a payment given back.
            outcome = MAYBE if flight.refund.doubt_since is None else undone
        step = policy.after_attempt(flight.refund, outcome, self.terms, self.world.now, 0)
        for _ in range(1 + twice):
            saved = self.world.save(flight.refund, step)
            if step.proof:
                # A reply from before the provider was done may arrive after a poll that saw it done.
                settled = self.world.get(flight.refund.refund_id).settled
                late = settled and step.to is Stage.PROCESSING
                assert saved.result in ({"already", "contradicts"} if late else {"saved", "already"})
            else:
                assert saved.result in {"saved", "stale"}

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99), killed=st.booleans())
    def lose(self, which: int, *, killed: bool) -> None:
        """A worker is killed with an attempt in the air; or only its claim's reply was lost, and it asks again."""
        flight = self.flights[which % len(self.flights)]
        if killed:
            self.flights.remove(flight)
            return
        refund_id = flight.refund.refund_id
        before = self.world.get(refund_id)
        token = self.world.hash(f"refund:{refund_id}").get("claim")
        if token is not None and before.next_check_at is not None:
            again = self.world.claim(refund_id, "send", token=token)
            assert again.claimed is (before.next_check_at > self.world.now)
            assert self.world.get(refund_id) == before

    # People

    @rule(refund_id=REFUND_IDS, wish=st.sampled_from(["retry", "retry", "resolve", "cancel"]))
    def ask(self, refund_id: str, wish: str) -> None:
        refund = self.world.get(refund_id)
        if wish == "cancel":
            try:
                self.decide(refund, policy.cancel(refund))
            except NotCancelable:
                assert refund.stage not in {Stage.QUEUED, Stage.WAITING}
        elif wish == "retry":
            if (step := policy.retry_failed(refund)) is not None:
                self.decide(refund, step)
        elif refund.stage is Stage.REVIEW and not any(flight.refund.refund_id == refund_id for flight in self.flights):
            # A person who has read the provider's own pages, and is right.
            if shown := self.provider.shown(refund):
                self.decide(refund, policy.resolve_succeeded(refund, shown[0].id, self.world.now))
            else:
                self.decide(refund, policy.resolve_failed(refund, "never_done"))

    @rule(flag=st.sampled_from(["paused", "credentials_refused_at"]), span=st.sampled_from([SECOND, LEASE]))
    def hold_everything(self, flag: str, span: timedelta) -> None:
        """The stop button is pressed, nothing can be claimed, and it is let go again."""
        self.client.hset("refunds:meta", flag, "1")
        for refund_id in REFUNDS:
            assert not self.world.claim(refund_id, "send").claimed
        self.world.pass_time(span)
        self.client.hdel("refunds:meta", flag)

    # Time and sweepers

    @rule()
    def wait_for_what_is_due(self) -> None:
        first: Any = self.client.zrange("refunds:due", 0, 0, withscores=True)
        if first:
            self.world.store.now = max(self.world.now, from_ms(int(first[0][1])))

    @rule(span=st.sampled_from([SECOND, LEASE, 5 * MINUTE, 5 * MINUTE, HOUR, 80 * HOUR]))
    def wait(self, span: timedelta) -> None:
        self.world.pass_time(span)

    @rule(limit=st.integers(1, 5), dry=st.sampled_from([frozenset(), frozenset(Lane)]), executes=st.booleans())
    def sweep(self, limit: int, dry: frozenset[Lane], *, executes: bool) -> None:
        taken = self.world.swept(limit, dry=dry)
        assert len(taken) == len(set(taken)) <= limit
        for refund_id in taken:
            self.deliver(refund_id, "clear", executes=executes)

    @rule(refund_ids=st.lists(REFUND_IDS, max_size=3))
    def give_back(self, refund_ids: list[str]) -> None:
        self.world.store.run(calls.give_back(refund_ids))

    def decide(self, refund: Refund, step: Step) -> None:
        assert self.world.save(refund, step).result == "saved"

    # The promise

    @invariant()
    def records_tell_one_story(self) -> None:
        self.world.check()

    @invariant()
    def money_moved_at_most_once(self) -> None:
        assert all(len(entries) == 1 for entries in self.provider.ledger.values())

    @invariant()
    def no_status_is_a_guess(self) -> None:
        for refund in self.world.store.get_many(sorted(REFUNDS)):
            if refund is not None and refund.settled:
                done = bool(self.provider.shown(refund))
                assert done is (refund.status is Status.SUCCEEDED), f"{refund.refund_id} is {refund.status}"

    @invariant()
    def nothing_is_lost(self) -> None:
        for refund in self.world.store.get_many(sorted(REFUNDS)):
            if refund is not None and not refund.settled:
                due = self.world.score("due", refund.refund_id)
                assert due is not None
                assert due - max(self.world.now, NOW) <= timedelta(days=1)


@pytest.mark.parametrize("server", ["fake", "real"])
def test_money_moves_at_most_once_and_the_records_tell_one_story(server: str, request: pytest.FixtureRequest) -> None:
    real_url = request.getfixturevalue("redis_url") if server == "real" else None

    def connect() -> redis.Redis:
        if real_url is None:
            return fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True)
        client = redis.Redis.from_url(real_url, decode_responses=True)
        client.flushall()
        return client

    run_state_machine_as_test(
        type("Journey", (Journey,), {"connect": staticmethod(connect)}),
        settings=settings(
            deadline=None,
            max_examples=30 if real_url is None else 10,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
