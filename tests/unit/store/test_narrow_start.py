"""A batch starts with few refunds in flight, and widens as the provider takes them."""

from __future__ import annotations

from datetime import timedelta

import redis

from tests.factories import MAYBE, NOT_DONE, REFUSED, SECOND, done_as
from tests.support.store_calls import asked
from tests.support.store_world import World
from worker.model.answers import Outcome
from worker.model.refund import Lane, Stage
from worker.rules import decisions
from worker.store.claims import Claim

NARROW = 8
BATCH = "b1"
WAITERS = f"refunds:batch-waiters:{BATCH}"


def rows(world: World, count: int) -> list[str]:
    ids = [f"row-{number:03}" for number in range(count)]
    for refund_id in ids:
        world.accept(refund_id, lane=Lane.BULK, batch=BATCH, payment_intent=f"pi_{refund_id}")
    world.redis.hset(f"refunds:batch:{BATCH}", "state", "running")
    return ids


def claimed(world: World, ids: list[str]) -> list[Claim]:
    claims = [world.claim(refund_id) for refund_id in ids]
    assert {claim.result for claim in claims} <= {"claimed", "narrow"}
    return [claim for claim in claims if claim.claimed]


def ended(world: World, claim: Claim, outcome: Outcome) -> tuple[str, ...]:
    saved = world.end(claim, outcome)
    assert saved.result == "saved"
    return saved.rows


def succeeded(claim: Claim) -> Outcome:
    assert claim.refund is not None
    return done_as("succeeded", id=f"re_{claim.refund.refund_id}")


def test_only_the_first_few_rows_are_sent_at_a_time(world: World) -> None:
    ids = rows(world, 20)
    assert len(claimed(world, ids)) == NARROW
    held = world.get(ids[NARROW])
    assert (held.stage, held.version, held.attempts) == (Stage.QUEUED, 1, 0)
    assert held.next_check_at == world.now + timedelta(seconds=30)
    assert world.redis.zrange(WAITERS, 0, -1) == ids[NARROW:]
    # Held back on purpose: a dry queue does not mean that their nudges were lost.
    world.pass_time(20 * SECOND)
    assert world.swept(dry=frozenset(Lane)) == []
    world.check()


def test_each_row_that_the_provider_takes_is_followed_by_two(world: World) -> None:
    ids = rows(world, 40)
    first = claimed(world, ids)
    woken = [row for claim in first for row in ended(world, claim, succeeded(claim))]
    assert woken == ids[NARROW : 3 * NARROW]
    assert [world.get(row).next_check_at for row in woken] == [world.now] * len(woken)
    assert len(claimed(world, woken)) == 2 * NARROW
    world.check()


def test_pending_at_the_provider_counts_as_taken(world: World) -> None:
    ids = rows(world, 20)
    first = claimed(world, ids)
    assert len(ended(world, first[0], done_as("pending", id="re_0"))) == 2
    world.check()


def test_row_that_was_not_taken_makes_room_for_one(world: World) -> None:
    ids = rows(world, 20)
    first = claimed(world, ids)
    for claim, outcome, following in zip(
        first, (REFUSED, NOT_DONE, MAYBE), ids[NARROW:], strict=False
    ):
        assert ended(world, claim, outcome) == (following,)
        assert world.claim(following).claimed


def test_rows_that_all_fail_alike_cost_less_than_thirty_before_the_batch_pauses_itself(
    world: World,
) -> None:
    ids = rows(world, 100)
    flying = claimed(world, ids)
    failed = 0
    while flying:
        woken = ended(world, flying.pop(0), REFUSED)
        failed += 1
        flying += [claim for row in woken if (claim := world.claim(row)).claimed]
    assert world.hash(f"batch:{BATCH}")["state"] == "paused"
    assert failed == 20 + NARROW - 1
    world.check()


def test_other_batches_and_single_refunds_do_not_wait_for_a_narrow_one(world: World) -> None:
    claimed(world, rows(world, 9))
    world.accept("single", payment_intent="pi_single")
    world.accept("other", lane=Lane.BULK, batch="b2", payment_intent="pi_other")
    assert world.claim("single").claimed
    assert world.claim("other").claimed


def test_row_that_was_canceled_while_it_waited_is_passed_over(world: World) -> None:
    ids = rows(world, 11)
    first = claimed(world, ids)
    world.redis.zadd(WAITERS, {"ghost": 0})
    canceled = world.get(ids[8])
    world.save(canceled, decisions.cancel(canceled))
    assert ended(world, first[0], succeeded(first[0])) == (ids[9], ids[10])
    assert not world.keys("batch-waiters:*")


def test_row_that_waits_for_a_worker_that_died_is_swept_in_the_end(world: World) -> None:
    ids = rows(world, 9)
    claimed(world, ids)
    world.pass_time(30 * SECOND)
    assert world.swept() == [ids[8]]


def test_second_attempt_is_let_through_once_there_is_room(world: World) -> None:
    ids = rows(world, 9)
    first = claimed(world, ids)
    ended(world, first[0], NOT_DONE)
    assert world.claim(ids[8]).claimed
    world.pass_time(timedelta(minutes=1))
    assert world.claim(ids[0]).result == "narrow"
    assert world.get(ids[0]).stage is Stage.WAITING
    assert ended(world, first[1], succeeded(first[1])) == (ids[0],)
    assert world.claim(ids[0]).claimed


def test_nothing_is_left_of_the_waiting_rows_when_the_batch_has_ended(world: World) -> None:
    ids = rows(world, 8)
    claims = claimed(world, ids)
    # One that has moved on by itself, and was never asked for.
    world.redis.zadd(WAITERS, {"ghost-1": 0, "ghost-2": 0})
    for claim in claims:
        ended(world, claim, REFUSED)
    assert not world.keys("batch-waiters:*")


def test_nothing_is_left_of_rows_that_were_canceled_while_they_waited(world: World) -> None:
    ids = rows(world, 30)
    for claim in claimed(world, ids):
        ended(world, claim, REFUSED)
    assert world.redis.exists(WAITERS)
    for refund in map(world.get, ids[NARROW:]):
        assert world.save(refund, decisions.cancel(refund)).result == "saved"
    assert not world.keys("batch-waiters:*")


def test_row_that_was_sent_meanwhile_is_not_sent_before_its_next_try_is_due(world: World) -> None:
    """A row may be claimed when its own time has come, before one that makes room wakes it."""
    ids = rows(world, 20)
    first = claimed(world, ids)
    ended(world, first[0], succeeded(first[0]))
    late = claimed(world, ids[-1:])
    ended(world, late[0], NOT_DONE)
    due = world.get(ids[-1]).next_check_at
    assert due is not None
    assert due > world.now
    woken = [row for claim in first[1:] for row in ended(world, claim, succeeded(claim))]
    assert ids[-1] not in woken
    assert world.get(ids[-1]).next_check_at == due
    world.check()


def test_row_is_sent_and_settled_with_no_more_removals_than_a_refund_without_a_batch(
    sync_redis: redis.Redis,
) -> None:
    world = World(sync_redis)
    world.accept("single", payment_intent="pi_single")
    world.accept("row", batch=BATCH, payment_intent="pi_row")
    removals = []
    for refund_id in ("single", "row"):
        sync_redis.config_resetstat()
        world.attempt(done_as("succeeded", id=f"re_{refund_id}"), refund_id)
        removals.append(asked(sync_redis)["zrem"])
    assert removals[0] == removals[1]
