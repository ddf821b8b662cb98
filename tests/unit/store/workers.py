"""Any number of unreliable workers over one set of records, played move by move."""

from __future__ import annotations

from typing import Any, ClassVar

import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    multiple,
    precondition,
    rule,
)

from tests.factories import MAYBE, a_request
from tests.support.store_world import World
from tests.unit.store.provider import FATES, UNDONE, Fate, Flight, Provider, Reading
from worker.model.answers import NoReply, Outcome, Readback, ReadbackVerdict, TryVerdict
from worker.model.refund import Baseline, Lane, Refund
from worker.model.steps import Action, Step
from worker.rules import attempts, contradictions, polls, proofs, readback
from worker.rules.attempts import Rules
from worker.rules.evidence import judge_list, judge_totals
from worker.store import reads
from worker.store.claims import Claim

REFUNDS = [f"r{number}" for number in range(5)]
BATCHES = {"r0": "b1", "r1": "b1", "r2": "b2"}


class Workers(RuleBasedStateMachine):
    """Any number of workers, none of them reliable, over one set of records."""

    connect: ClassVar[Any]
    known: ClassVar[Bundle[str]] = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.client: redis.Redis = self.connect()
        self.world = World(self.client)
        self.provider = Provider(honours_keys=False, counts_pending=False)
        self.flights: list[Flight] = []
        self.terms = Rules()
        self.totals: dict[str, tuple[str, Baseline | None]] = {}
        """By payment: its counter and its total as some worker read them, perhaps a while ago."""
        self.cancels_batches = False
        self.disasters = 0
        self.payments = 1
        self.ids: list[str] = []

    @initialize(
        target=known,
        trust=st.booleans(),
        one_payment=st.sampled_from([True, True, False]),
        totals_proof=st.booleans(),
        readback=st.sampled_from(["list", "totals", "none"]),
        amounts=st.lists(st.sampled_from([500, 500, None]), min_size=3, max_size=len(REFUNDS)),
        cancels_batches=st.sampled_from([False, False, True]),
        disasters=st.sampled_from([0, 0, 1, 2]),
    )
    def begin(
        self,
        *,
        trust: bool,
        one_payment: bool,
        totals_proof: bool,
        readback: Any,
        amounts: list[int | None],
        cancels_batches: bool,
        disasters: int,
    ) -> MultipleResults[str]:
        self.terms = Rules(
            idempotency="trust" if trust else "verify",
            readback=readback,
            totals_proof=totals_proof,
            max_attempts=4,
        )
        self.provider = Provider(honours_keys=trust, counts_pending=totals_proof)
        self.payments = 1 if one_payment else 2
        self.cancels_batches = cancels_batches
        self.disasters = disasters
        self.ids = REFUNDS[: len(amounts)]
        for refund_id, amount in zip(self.ids, amounts, strict=True):
            self.accept(refund_id, amount)
        return multiple(*self.ids)

    def payment_of(self, refund_id: str) -> str:
        return f"pi_{REFUNDS.index(refund_id) % self.payments}"

    def teardown(self) -> None:
        self.client.close()

    def accept(self, refund_id: str, amount: int | None) -> None:
        request = a_request(refund_id, payment_intent=self.payment_of(refund_id), amount=amount)
        known = self.world.store.get(refund_id)
        lane, batch = (
            (Lane.BULK, BATCHES[refund_id]) if refund_id in BATCHES else (Lane.SINGLE, None)
        )
        created = self.world.accept(request, lane=lane, batch=batch)
        if known is None:
            assert created.result == "created"
        elif known.fingerprint == request.fingerprint:
            assert (created.result, created.refund) == ("exists", known)
        else:
            assert created.result == "conflict"

    # Workers

    @rule(nudges=st.lists(st.tuples(known, FATES), min_size=1, max_size=4))
    def work(self, nudges: list[tuple[str, Fate]]) -> None:
        for refund_id, fate in nudges:
            self.deliver(refund_id, fate)

    def deliver(self, refund_id: str, fate: Fate) -> None:
        """A nudge reaches some worker, for the first time or the fifth."""
        refund = self.world.get(refund_id)
        match attempts.next_action(refund, self.terms, self.world.now):
            case Action.SEND:
                self.take_off(self.first_send(refund), fate)
            case Action.REPLAY:
                window = self.terms.key_window - self.terms.request_timeout
                self.take_off(self.world.claim(refund_id, "replay", replay_window=window), fate)
            case Action.LAPSE:
                self.decide(refund, attempts.after_lapse(refund, self.terms, self.world.now, 0))
            case Action.REVIEW:
                self.decide(refund, proofs.to_review({}, "no_readback", "x"))
            case Action.POLL:
                self.poll(refund, fate.reading)
            case Action.READ_BACK:
                self.look(refund, fate)
            case Action.NOTHING:
                pass

    def first_send(self, refund: Refund) -> Claim:
        if not self.terms.wants_baseline:
            return self.world.claim(refund.refund_id, "send")
        if refund.payment_intent not in self.totals:
            self.read_totals(refund.refund_id)
        seq, baseline = self.totals[refund.payment_intent]
        claim = self.world.claim(refund.refund_id, "send", seq=seq, baseline=baseline)
        if claim.result == "moved":
            del self.totals[refund.payment_intent]
        return claim

    @rule(refund_id=known)
    def read_totals(self, refund_id: str) -> None:
        """Some worker reads the payment; what it read may be old when the claim that rests on it
        comes.
        """
        payment = self.payment_of(refund_id)
        seq = self.world.store.run(reads.load(refund_id)).seq
        self.totals[payment] = seq, self.provider.view(payment).baseline

    def look(self, refund: Refund, fate: Fate) -> None:
        reading = fate.reading
        if refund.operator_says is not None and self.provider.shown(refund):
            # Where a person errs, the look they are held to must be able to show it: else it is as
            # they say.
            reading = "clear"
        step = readback.after_readback(
            refund, self.verdict(refund, reading), self.terms, self.world.now, 0
        )
        self.decide(refund, step)
        if step.changes.get("proven_absent_at") is not None:
            claim = self.world.claim(refund.refund_id, "resend", version=refund.version + 1)
            self.take_off(claim, fate)

    def verdict(self, refund: Refund, reading: Reading) -> Readback:
        payment, readback = refund.payment_intent, self.terms.readback
        if reading == "unreadable":
            return Readback(verdict=ReadbackVerdict.UNREADABLE, reason="x")
        if readback == "none":
            return Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="x")
        siblings = self.world.store.run(reads.siblings(payment, refund.refund_id))
        if readback == "list":
            complete = reading == "clear"
            return judge_list(
                refund, self.provider.listed(payment), complete=complete, siblings=siblings
            )
        reread = {
            entry.id: entry if reading == "clear" else None
            for entry in self.provider.listed(payment)
        }
        return judge_totals(
            refund,
            self.provider.view(payment),
            siblings=siblings,
            reread=reread,
            totals_proof=self.terms.totals_proof,
        )

    def poll(self, refund: Refund, reading: Reading) -> None:
        assert refund.provider_refund_id is not None
        if reading == "clear":
            self.provider.finish(refund.provider_refund_id)
        answer = self.provider.answer(refund.provider_refund_id)
        if reading == "unreadable":
            answer = NoReply(reason="reset")
        self.decide(refund, polls.after_poll(refund, answer, self.world.now, 0))

    def take_off(self, claim: Claim, fate: Fate) -> None:
        if claim.result == "canceled":
            assert claim.refund is not None
            assert claim.refund.batch_id is not None
            assert self.world.hash(f"batch:{claim.refund.batch_id}")["state"] == "canceled"
        if not claim.claimed:
            return
        assert claim.refund is not None
        known = self.provider.shown(claim.refund)
        effect = (
            self.provider.execute(claim.refund, self.world.now)
            if fate.executes
            else (known[0] if known else None)
        )
        flight = Flight(refund=claim.refund, effect=effect)
        if fate.prompt:
            self.end(flight, fate.undone, cut=False, twice=False)
        else:
            self.flights.append(flight)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99), undone=UNDONE, cut=st.booleans(), twice=st.booleans())
    def land(self, which: int, undone: Outcome, *, cut: bool, twice: bool) -> None:
        """An attempt ends, in time or late; what it saw is saved, now and then twice."""
        self.end(self.flights.pop(which % len(self.flights)), undone, cut=cut, twice=twice)

    def end(self, flight: Flight, undone: Outcome, *, cut: bool, twice: bool) -> None:
        if flight.effect is None:
            outcome = undone
        elif not cut:
            outcome = Outcome(
                verdict=TryVerdict.DONE, code="done", http_status=200, found=flight.effect
            )
        else:
            # The reply is lost, or it is a replay and the provider says whatever it likes of a
            # payment given back.
            outcome = MAYBE if flight.refund.doubt_since is None else undone
        step = attempts.after_attempt(flight.refund, outcome, self.terms, self.world.now, 0)
        for _ in range(1 + twice):
            saved = self.world.save(flight.refund, step)
            if saved.result == "late":
                assert outcome.found is not None
                step = proofs.succeeded_long_ago(flight.refund, outcome.found, "reply", saved.now)
                saved = self.world.save(flight.refund, step)
            if saved.result == "contradicts":
                self.contradict(flight.refund.refund_id, step)
            elif step.proof:
                # A reply from before the provider was done may arrive after a look or a poll that
                # saw it done.
                assert saved.result in {"saved", "already"}
            else:
                assert saved.result in {"saved", "stale"}

    def contradict(self, refund_id: str, proof: Step) -> None:
        """Store a proof that the record does not allow, such as an old one beside a resend."""
        current = self.world.get(refund_id)
        step = contradictions.contradicted(current, proof, self.world.now)
        if step is not None:
            assert self.world.save(current, step).result == "saved"

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 99), killed=st.booleans())
    def lose(self, which: int, *, killed: bool) -> None:
        """A worker is killed with an attempt in the air.

        Or only its claim's reply was lost, and it asks again.
        """
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

    def decide(self, refund: Refund, step: Step) -> None:
        assert self.world.save(refund, step).result == "saved"
