"""What holds claims back: flags for all, the closed gate, and batches."""

from __future__ import annotations

import pytest

from tests.factories import (
    HOUR,
    MINUTE,
    NOW,
)
from tests.support.store_world import World, at_stage, only_time_moved
from worker.model.refund import Stage, Status
from worker.model.times import to_ms
from worker.store import gate


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
    world.check()
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
