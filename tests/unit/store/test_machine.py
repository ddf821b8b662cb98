"""Refunds sent, lost, lapsed, swept, canceled, retried, decided by people and recovered, the ledger
as judge.

Money moves at most once, no status is a guess, and the records tell one story after every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.factories import HOUR, MINUTE, NOW, SECOND
from tests.support.store_world import LEASE, Dump
from tests.unit.store.provider import FATES, Fate
from tests.unit.store.workers import BATCHES, Workers
from worker.errors import NotCancelable
from worker.model.refund import Lane, Refund, Stage, Status
from worker.model.times import from_ms
from worker.rules import decisions
from worker.store import sweeps

Refunds = Mapping[str, Refund]
"""By id what the records hold."""


@dataclass
class Snapshot:
    """Everything as it stood at a time to which the server may fall back."""

    taken_at: datetime
    dump: Dump


class Journey(Workers):
    """The workers, people who decide, and a server that may fall back to an old state."""

    known: ClassVar[Bundle[str]] = Workers.known

    def __init__(self) -> None:
        super().__init__()
        self.snapshot: Snapshot | None = None

    # People

    @rule(
        refund_id=known,
        wish=st.sampled_from(
            ["retry", "retry", "cancel", "same again", "otherwise again", "give back"]
        ),
    )
    def ask(self, refund_id: str, wish: str) -> None:
        refund = self.world.get(refund_id)
        if wish == "give back":
            self.world.store.run(sweeps.give_back([refund_id]))
        elif wish.endswith("again"):
            self.accept(refund_id, refund.asked_amount if wish == "same again" else 501)
        elif wish == "cancel":
            try:
                self.decide(refund, decisions.cancel(refund))
            except NotCancelable:
                assert refund.stage not in {Stage.QUEUED, Stage.WAITING}
        elif (step := decisions.retry_failed(refund)) is not None:
            self.decide(refund, step)
            # A generation that the snapshot does not know is beyond any recovery's rules: a person
            # must find it.
            self.snapshot = None

    @precondition(lambda self: self.ids_in_review())
    @rule(
        which=st.integers(0, 99),
        wish=st.sampled_from(["succeeded", "failed", "resend", "resend"]),
        errs=st.booleans(),
        unverified=st.booleans(),
        named=st.integers(0, 9),
        meanwhile=st.lists(st.tuples(known, FATES), max_size=2),
        fate=FATES,
    )
    def resolve(
        self,
        which: int,
        wish: str,
        meanwhile: list[tuple[str, Fate]],
        fate: Fate,
        *,
        errs: bool,
        unverified: bool,
        named: int,
    ) -> None:
        """A person decides while workers go on.

        Mostly after reading the provider's pages, or after misreading them.
        """
        ids = self.ids_in_review()
        refund = self.world.get(ids[which % len(ids)])
        self.work(meanwhile)
        shown = self.provider.shown(refund)
        if wish == "succeeded":
            if errs:
                # A refund that does not exist, or another one of the same shop.
                step = decisions.resolve_succeeded(refund, f"re_{named}", self.world.now)
                assert self.world.save(refund, step).result in {"saved", "owned"}
            elif shown:
                self.decide(
                    refund, decisions.resolve_succeeded(refund, shown[0].id, self.world.now)
                )
        # Only the list can show a person that the refund they want sent again, or give up, was
        # made.
        elif not shown or (
            errs and self.terms.readback == "list" and (refund.doubt_since or refund.doubted)
        ):
            in_the_air = any(flight.refund.refund_id == refund.refund_id for flight in self.flights)
            if wish == "resend":
                self.decide(refund, decisions.resolve_resend(refund, unverified=unverified))
            elif shown or not in_the_air:
                self.decide(
                    refund, decisions.resolve_failed(refund, "never_done", unverified=unverified)
                )
        self.deliver(refund.refund_id, fate)

    def ids_in_review(self) -> list[str]:
        return list(self.world.store.ids_in(["review"]))

    @precondition(lambda self: self.cancels_batches)
    @rule(batch=st.sampled_from(sorted(set(BATCHES.values()))))
    def cancel_batch(self, batch: str) -> None:
        self.client.hset(f"refunds:batch:{batch}", "state", "canceled")

    # Disaster

    @precondition(lambda self: self.disasters)
    @rule()
    def take_snapshot(self) -> None:
        self.snapshot = Snapshot(taken_at=self.world.now, dump=self.world.dump())

    @precondition(lambda self: self.snapshot is not None)
    @rule(late_replies=st.booleans())
    def recover(self, *, late_replies: bool) -> None:
        """The server falls back to the snapshot.

        What may have been sent since is put in doubt, replies come late.
        """
        snapshot, self.snapshot = self.snapshot, None
        assert snapshot is not None
        self.disasters -= 1
        self.world.restore(snapshot.dump)
        # A verdict comes within its lease, which has ended; a proof is good whenever it comes.
        self.flights = [
            flight for flight in self.flights if late_replies and flight.effect is not None
        ]
        self.totals.clear()
        for refund in self.world.store.get_many(self.ids):
            assert refund is not None
            step = decisions.recovered(refund, snapshot.taken_at, self.world.now)
            if step is not None:
                self.decide(refund, step)

    @rule(
        flag=st.sampled_from(["paused", "credentials_refused_at"]),
        span=st.sampled_from([SECOND, LEASE]),
    )
    def hold_everything(self, flag: str, span: timedelta) -> None:
        """The stop button is pressed, nothing can be claimed, and it is let go again."""
        self.client.hset("refunds:meta", flag, "1")
        for refund_id in self.ids:
            assert not self.world.claim(refund_id, "send").claimed
        self.world.pass_time(span)
        self.client.hdel("refunds:meta", flag)

    # Time and sweepers

    @rule(fates=st.lists(FATES, min_size=1, max_size=6))
    def work_off(self, fates: list[Fate]) -> None:
        """Time passes until the next refund is due, and the next, and some worker sees to each."""
        for fate in fates:
            first: Any = self.client.zrange("refunds:due", 0, 0, withscores=True)
            if first:
                self.world.store.now = max(self.world.now, from_ms(int(first[0][1])))
            for refund_id in self.world.swept(1):
                self.deliver(refund_id, fate)

    @rule(span=st.sampled_from([SECOND, LEASE, 5 * MINUTE, 5 * MINUTE, HOUR, 80 * HOUR]))
    def wait(self, span: timedelta) -> None:
        self.world.pass_time(span)

    @rule(limit=st.integers(1, 5), dry=st.sampled_from([frozenset(), frozenset(Lane)]), fate=FATES)
    def sweep(self, limit: int, dry: frozenset[Lane], fate: Fate) -> None:
        taken = self.world.swept(limit, dry=dry)
        assert len(taken) == len(set(taken)) <= limit
        for refund_id in taken:
            self.deliver(refund_id, fate)

    # The promise

    @invariant()
    def the_promise_holds(self) -> None:
        """The records tell one story, and what they are is read once for all that must hold."""
        refunds = self.world.check()
        self.never_are_two_refunds_of_a_payment_sent_at_once(refunds)
        self.money_moved_at_most_once()
        self.no_status_is_a_guess(refunds)
        self.nothing_is_lost(refunds)

    def never_are_two_refunds_of_a_payment_sent_at_once(self, refunds: Refunds) -> None:
        payments = [
            self.payment_of(refund.refund_id)
            for refund in refunds.values()
            if refund.stage is Stage.SENDING
        ]
        assert len(payments) == len(set(payments))

    def money_moved_at_most_once(self) -> None:
        assert all(self.provider.moved(refund_id) <= 1 for refund_id in self.ids)

    def no_status_is_a_guess(self, refunds: Refunds) -> None:
        for refund in refunds.values():
            if refund.settled:
                done = bool(self.provider.shown(refund))
                assert done is (refund.status is Status.SUCCEEDED), (
                    f"{refund.refund_id} is {refund.status}"
                )

    def nothing_is_lost(self, refunds: Refunds) -> None:
        assert set(refunds) >= set(self.ids)
        for refund in refunds.values():
            if not refund.settled:
                due = self.world.score("due", refund.refund_id)
                assert due is not None
                assert due - max(self.world.now, NOW) <= timedelta(days=1)


@pytest.mark.parametrize("server", ["fake", "real"])
def test_money_moves_at_most_once_and_the_records_tell_one_story(
    server: str, request: pytest.FixtureRequest
) -> None:
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
            # The server is what counts, and runs a script six times as fast as the fake.
            max_examples=15 if real_url is None else 60,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )
