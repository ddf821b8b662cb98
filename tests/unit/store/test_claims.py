"""Taking a refund for one attempt: who may, when, and what is put down before a byte leaves."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import pytest

from tests.factories import (
    HOUR,
    MAYBE,
    MINUTE,
    NOT_DONE,
    NOW,
    PAYMENT,
    SECOND,
    TRUST,
    VERIFY,
    a_request,
    done_as,
    found,
)
from tests.support.store_world import ID, LEASE, World, at_stage, only_time_moved
from worker.model.answers import PaymentView, Readback, ReadbackVerdict
from worker.model.refund import Baseline, Refund, Stage, Status
from worker.model.request import request_body
from worker.model.times import to_ms
from worker.rules import attempts, decisions, readback
from worker.rules.attempts import VERDICT_LIFE
from worker.rules.evidence import judge_totals
from worker.store import gate, reads

ABSENT = Readback(verdict=ReadbackVerdict.ABSENT, reason="so")


def proven_absent(world: World) -> Refund:
    """A refund in doubt, by two looks a settle time apart proven absent just now."""
    at_stage(world, Stage.IN_DOUBT)
    for _ in range(2):
        world.pass_time(VERIFY.settle)
        refund = world.get()
        world.save(refund, readback.after_readback(refund, ABSENT, VERIFY, world.now, 0))
    refund = world.get()
    assert refund.proven_absent_at == world.now
    return refund


def test_claim_moves_the_refund_and_hands_over_body_lease_and_record(world: World) -> None:
    world.accept()
    world.pass_time(MINUTE)
    claim = world.claim()
    assert (claim.result, claim.claimed, claim.now, claim.lease_left) == (
        "claimed",
        True,
        NOW + MINUTE,
        LEASE,
    )
    assert claim.body == request_body(a_request(), 1)
    assert claim.refund == world.get()
    refund = world.get()
    assert (refund.stage, refund.status, refund.version) == (Stage.SENDING, Status.PENDING, 2)
    assert (refund.attempts, refund.first_attempt_at) == (1, NOW + MINUTE)
    assert refund.next_check_at == NOW + MINUTE + LEASE
    assert world.hash(f"payment:{PAYMENT}")["lock"] == ID
    world.check()


def test_claim_is_written_into_the_history_with_its_attempt(world: World) -> None:
    world.accept()
    world.claim()
    entry = world.store.history(ID)[-1]
    assert entry == {
        "version": 2,
        "at": to_ms(NOW),
        "from": "queued",
        "to": "sending",
        "status": "pending",
        "label": "send",
        "attempt": 1,
    }


def test_second_attempt_is_counted_and_keeps_the_time_of_the_first(world: World) -> None:
    at_stage(world, Stage.WAITING)
    world.pass_time(MINUTE)
    claim = world.claim()
    assert claim.refund is not None
    assert (claim.refund.attempts, claim.refund.first_attempt_at) == (2, NOW)
    assert claim.body == request_body(a_request(), 1)


def test_claim_asked_again_with_its_token_gives_the_same_claim_and_changes_nothing(
    world: World,
) -> None:
    world.accept()
    first = world.claim(token="mine")
    before = world.dump()
    world.pass_time(5 * SECOND)
    again = world.claim(token="mine")
    assert (again.result, again.body, again.refund) == ("claimed", first.body, first.refund)
    assert again.lease_left == LEASE - 5 * SECOND
    assert world.dump() == before


def test_lapsed_lease_is_not_given_back_to_its_token(world: World) -> None:
    world.accept()
    world.claim(token="mine")
    world.pass_time(LEASE)
    before = world.dump()
    assert world.claim(token="mine").result == "stage"
    assert world.dump() == before


def test_token_of_an_ended_attempt_gives_nothing_back(world: World) -> None:
    world.accept()
    world.attempt(MAYBE, token="mine")
    for kind in ("send", "replay", "resend"):
        assert not world.claim(kind=kind, token="mine").claimed


def test_claimed_refund_is_not_claimed_by_another_token_even_after_its_lease(world: World) -> None:
    world.accept()
    world.claim()
    for _ in range(2):
        before = world.dump()
        assert [world.claim(kind=kind).result for kind in ("send", "replay", "resend")] == [
            "stage"
        ] * 3
        assert world.dump() == before
        world.pass_time(HOUR)


@pytest.mark.parametrize("stage", [Stage.IN_DOUBT, Stage.PROCESSING, Stage.REVIEW, Stage.SETTLED])
def test_refund_that_may_have_happened_is_never_claimed_for_a_first_send(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage)
    world.pass_time(10 * HOUR)
    before = world.dump()
    claim = world.claim(kind="send")
    assert (claim.result, claim.refund, claim.body) == ("stage", world.get(), b"")
    assert world.dump() == before


def test_waiting_refund_is_not_claimed_before_its_time(world: World) -> None:
    refund = at_stage(world, Stage.WAITING)
    assert refund.next_check_at is not None
    world.store.now = refund.next_check_at - timedelta(milliseconds=1)
    before = world.dump()
    assert world.claim().result == "early"
    assert world.dump() == before
    world.pass_time(timedelta(milliseconds=1))
    assert world.claim().claimed


def test_claim_that_rests_on_an_older_version_is_stale(world: World) -> None:
    world.accept()
    world.attempt(NOT_DONE)
    world.pass_time(HOUR)
    before = world.dump()
    assert world.claim(version=2).result == "stale"
    assert world.dump() == before
    assert world.claim(version=3).claimed


def test_claim_without_its_stored_body_is_refused(world: World) -> None:
    world.accept()
    world.redis.delete(f"refunds:body:{ID}")
    before = world.dump()
    assert world.claim().result == "no_body"
    assert world.dump() == before


# The baseline


def test_baseline_is_stored_by_the_claim(world: World) -> None:
    world.accept()
    seen = world.store.run(reads.load(ID))
    baseline = Baseline(refunded=0, currency="usd", remaining=None)
    claim = world.claim(seq=seen.seq, baseline=baseline)
    assert claim.claimed
    assert world.get().baseline == baseline


def test_baseline_read_before_another_refund_of_the_payment_was_sent_is_refused(
    world: World,
) -> None:
    world.accept("one")
    world.accept("two")
    seen = world.store.run(reads.load("one"))
    world.attempt(NOT_DONE, "two")
    before = world.dump()
    assert (
        world.claim(
            "one", seq=seen.seq, baseline=Baseline(refunded=0, currency=None, remaining=1)
        ).result
        == "moved"
    )
    assert world.dump() == before
    seen = world.store.run(reads.load("one"))
    assert world.claim("one", seq=seen.seq).claimed


def test_sibling_that_settled_after_the_total_was_read_is_not_taken_for_our_own_refund(
    world: World,
) -> None:
    world.accept("sibling")
    world.attempt(done_as("pending", id="re_s"), "sibling")
    world.accept("mine")
    seen = world.store.run(reads.load("mine"))
    sibling = world.get("sibling")
    world.save(sibling, attempts.done(sibling, found(id="re_s"), "reply", world.now))
    world.pass_time(SECOND)
    too_early = Baseline(refunded=0, currency="usd", remaining=1000)
    assert world.claim("mine", seq=seen.seq, baseline=too_early).result == "moved"

    seen = world.store.run(reads.load("mine"))
    claim = world.claim(
        "mine", seq=seen.seq, baseline=Baseline(refunded=500, currency="usd", remaining=500)
    )
    world.end(claim, MAYBE)
    look = judge_totals(
        world.get("mine"),
        PaymentView(refunded=500, captured=1000, currency="usd"),
        siblings=[world.get("sibling")],
        reread={"re_s": found(id="re_s")},
        totals_proof=True,
    )
    assert look.verdict is ReadbackVerdict.ABSENT


def test_refund_with_a_stated_currency_is_not_sent_before_the_payment_was_read(
    world: World,
) -> None:
    world.accept(currency="usd")
    before = world.dump()
    assert world.claim(currency_checked=False).result == "unchecked"
    assert world.dump() == before
    assert world.claim().claimed
    assert world.get().currency_checked


@pytest.mark.parametrize("obstacle", ["paused", "locked"])
def test_payment_need_not_be_read_for_a_refund_that_is_held_back_anyway(
    world: World, obstacle: str
) -> None:
    if obstacle == "paused":
        world.redis.hset("refunds:meta", "paused", "1")
    else:
        world.accept("other")
        world.claim("other")
    world.accept(currency="usd")
    assert world.claim(currency_checked=False).result == obstacle


def test_stated_currency_is_checked_once_for_all_attempts(world: World) -> None:
    world.accept(currency="usd")
    world.redis.hset(f"refunds:refund:{ID}", "unconfirmed_since", "1")
    world.attempt(NOT_DONE)
    assert world.get().unconfirmed_since is None
    world.pass_time(HOUR)
    assert world.claim(currency_checked=False).claimed


@pytest.mark.parametrize("kind", ["replay", "resend"])
def test_refund_that_a_lost_record_may_have_sent_is_not_sent_before_its_currency_is_checked(
    world: World, kind: Literal["replay", "resend"]
) -> None:
    world.accept(currency="usd")
    refund = world.get()
    step = decisions.recovered(refund, NOW, NOW)
    assert step is not None
    world.save(refund, step)
    world.redis.hset(f"refunds:refund:{ID}", "proven_absent_at", str(to_ms(world.now)))
    before = world.dump()
    assert world.claim(kind=kind, currency_checked=False).result == "unchecked"
    assert world.dump() == before
    assert world.claim(kind=kind).claimed


# Replays


def test_replay_sends_the_same_bytes_and_the_doubt_stays(world: World) -> None:
    refund = at_stage(world, Stage.IN_DOUBT)
    world.pass_time(MINUTE)
    claim = world.claim(kind="replay")
    assert claim.claimed
    assert claim.body == request_body(a_request(), 1)
    assert claim.refund is not None
    assert (claim.refund.doubt_since, claim.refund.attempts, claim.refund.resends) == (
        refund.doubt_since,
        2,
        0,
    )
    assert claim.refund.idempotency_key == refund.idempotency_key


def test_replay_waits_for_its_time(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    assert world.claim(kind="replay").result == "early"


def test_replay_window_is_judged_by_the_servers_clock_from_the_first_attempt(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    window = timedelta(hours=22)
    world.store.now = NOW + window
    before = world.dump()
    assert (
        world.claim(kind="replay", replay_window=window - timedelta(milliseconds=1)).result
        == "window"
    )
    assert world.dump() == before
    assert world.claim(kind="replay", replay_window=window).claimed


def test_replays_do_not_move_the_window(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    for _ in range(3):
        world.pass_time(HOUR)
        world.attempt(MAYBE, kind="replay", rules=TRUST)
    assert world.get().first_attempt_at == NOW
    world.pass_time(HOUR)
    assert world.claim(kind="replay", replay_window=4 * HOUR - SECOND).result == "window"


# Resends after proven absence


def test_resend_after_proven_absence_clears_the_doubt_and_counts(world: World) -> None:
    refund = proven_absent(world)
    claim = world.claim(kind="resend", version=refund.version)
    assert claim.claimed
    after = world.get()
    assert (after.stage, after.resends, after.attempts) == (Stage.SENDING, 1, 2)
    assert (after.doubt_since, after.absent_at, after.proven_absent_at, after.quiet_at) == (
        None,
    ) * 4
    assert (after.idempotency_key, after.generation) == (refund.idempotency_key, 1)
    assert claim.body == request_body(a_request(), 1)
    world.check()


def test_verdict_of_absence_ages_by_the_servers_clock(world: World) -> None:
    refund = proven_absent(world)
    world.pass_time(VERDICT_LIFE)
    before = world.dump()
    assert world.claim(kind="resend", version=refund.version).claimed
    world.restore(before)
    world.pass_time(timedelta(milliseconds=1))
    assert world.claim(kind="resend", version=refund.version).result == "verdict"
    assert world.dump() == before


def test_resend_without_a_verdict_is_refused(world: World) -> None:
    refund = at_stage(world, Stage.IN_DOUBT)
    assert world.claim(kind="resend", version=refund.version).result == "verdict"


def test_resend_rests_on_the_version_at_which_absence_was_proven(world: World) -> None:
    refund = proven_absent(world)
    assert world.claim(kind="resend", version=refund.version - 1).result == "stale"


def test_look_that_can_no_longer_tell_takes_the_verdict_back(world: World) -> None:
    refund = proven_absent(world)
    look = Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so")
    assert (
        world.save(refund, readback.after_readback(refund, look, VERIFY, world.now, 0)).result
        == "saved"
    )
    assert world.claim(kind="resend", version=refund.version).result == "verdict"


def test_resend_is_not_claimed_twice_on_one_verdict(world: World) -> None:
    refund = proven_absent(world)
    world.attempt(MAYBE, kind="resend", version=refund.version)
    world.pass_time(SECOND)
    assert world.claim(kind="resend", version=refund.version).result == "stale"
    assert world.claim(kind="resend").result == "verdict"


# What holds every claim back


@pytest.mark.parametrize(
    ("flag", "result"), [("paused", "paused"), ("credentials_refused_at", "parked")]
)
@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING, Stage.IN_DOUBT])
def test_flag_for_all_holds_a_claim_back_without_version_history_or_attempt(
    world: World, flag: str, result: str, stage: Stage
) -> None:
    at_stage(world, stage)
    world.pass_time(10 * MINUTE)
    world.redis.hset("refunds:meta", flag, "1")
    before, refund = world.dump(), world.get()
    kind = "replay" if stage is Stage.IN_DOUBT else "send"
    assert world.claim(kind=kind).result == result  # type: ignore[arg-type]
    assert only_time_moved(before, world.dump())
    due = world.get().next_check_at
    assert due is not None
    assert world.now < due <= world.now + MINUTE
    assert (world.get().version, world.get().attempts) == (refund.version, refund.attempts)
    world.redis.hdel("refunds:meta", flag)
    world.store.now = due
    assert world.claim(kind=kind).claimed  # type: ignore[arg-type]
    world.check()


def test_closed_gate_holds_a_claim_back_until_it_opens(world: World) -> None:
    world.accept()
    world.store.run(gate.block_gate(MINUTE))
    before = world.dump()
    assert world.claim().result == "blocked"
    assert only_time_moved(before, world.dump())
    assert world.get().next_check_at == world.now + MINUTE
    world.pass_time(MINUTE)
    assert world.claim().claimed
    world.check()


def test_paused_batch_holds_back_its_own_refunds_alone(world: World) -> None:
    world.accept("mine", batch="b1")
    world.accept("other", batch="b2", payment_intent="pi_2")
    world.redis.hset("refunds:batch:b1", "state", "paused")
    before = world.dump()
    assert world.claim("mine").result == "batch"
    assert only_time_moved(before, world.dump())
    assert world.claim("other").claimed
    world.redis.hset("refunds:batch:b1", "state", "running")
    assert world.claim("mine").claimed


def test_delayed_batch_is_not_sent_before_its_time(world: World) -> None:
    world.accept(batch="b1")
    start = NOW + 70 * MINUTE
    world.redis.hset("refunds:batch:b1", "not_before", str(to_ms(start)))
    before = world.dump()
    assert world.claim().result == "batch"
    assert only_time_moved(before, world.dump())
    assert world.get().next_check_at == start
    world.store.now = start
    assert world.claim().claimed


def test_canceled_batch_settles_what_was_never_sent_when_it_is_claimed(world: World) -> None:
    world.accept("mine", batch="b1")
    world.accept("other", payment_intent="pi_2")
    world.redis.hset("refunds:batch:b1", "state", "canceled")
    claim = world.claim("mine")
    assert (claim.result, claim.body) == ("canceled", b"")
    assert claim.refund == world.get("mine")
    refund = world.get("mine")
    assert (refund.stage, refund.status, refund.attempts) == (Stage.SETTLED, Status.CANCELED, 0)
    assert world.store.history("mine")[-1]["label"] == "batch_canceled"
    assert world.claim("other").claimed
    world.check()


def test_canceled_batch_settles_what_was_provably_not_done_when_it_is_claimed_again(
    world: World,
) -> None:
    at_stage(world, Stage.WAITING, batch="b1")
    world.redis.hset("refunds:batch:b1", "state", "canceled")
    world.pass_time(HOUR)
    assert world.claim().result == "canceled"
    refund = world.get()
    assert (refund.stage, refund.status, refund.attempts, refund.baseline) == (
        Stage.SETTLED,
        Status.CANCELED,
        1,
        None,
    )
    world.check()


def test_canceled_batch_does_not_touch_what_may_have_happened(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT, batch="b1")
    world.redis.hset("refunds:batch:b1", "state", "canceled")
    world.pass_time(MINUTE)
    world.claim(kind="replay")
    assert world.get().status is Status.PENDING
    assert world.get().doubt_since is not None
