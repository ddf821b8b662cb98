"""Taking a refund for one attempt: who may, when, and what is put down before a byte leaves."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import pytest

from tests.factories import (
    HOUR,
    MAYBE,
    MINUTE,
    NOT_DONE,
    NOW,
    PAYMENT,
    SECOND,
    a_request,
    done_as,
    found,
)
from tests.support.store_world import ID, LEASE, World, at_stage
from worker.model.answers import PaymentView, ReadbackVerdict
from worker.model.refund import Baseline, Stage, Status
from worker.model.request import request_body
from worker.model.times import to_ms
from worker.rules import decisions, proofs
from worker.rules.evidence import judge_totals
from worker.store import reads


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
    claim = world.claim()
    assert (claim.result, claim.position) == ("no_body", "")
    assert world.dump() == before


@pytest.mark.parametrize("unverified", [True, False])
@pytest.mark.parametrize("prior", [True, False])
def test_persons_word_ends_with_the_send_unless_it_counts_for_an_earlier_refund_too(
    world: World, *, unverified: bool, prior: bool
) -> None:
    at_stage(world, Stage.WAITING)
    fields: dict[Any, Any] = {"operator_says": "absent", "operator_by": "ann"}
    if unverified:
        fields["operator_unverified"] = "1"
    if prior:
        fields["prior_refund_ids"] = "re_0"
    world.redis.hset(f"refunds:refund:{ID}", mapping=fields)
    world.pass_time(HOUR)
    assert world.claim().claimed
    refund = world.get()
    stays = unverified and prior
    assert refund.operator_says == ("absent" if stays else None)
    assert refund.operator_unverified is stays


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
    world.save(sibling, proofs.done(sibling, found(id="re_s"), "reply", world.now))
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
