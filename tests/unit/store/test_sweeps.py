"""Taking what is due: the most urgent first, each once, and lost nudges only when they are lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import chain

import pytest

from tests.factories import HOUR, MAYBE, MINUTE, NOT_DONE, NOW, REFUSED, SECOND, TRUST, VERIFY
from tests.support.store_world import ID, LEASE, World, at_stage, only_time_moved
from tests.unit.store.hinting import hint
from worker.errors import NotStorable
from worker.model.refund import Lane, Stage
from worker.model.steps import Action
from worker.model.times import to_ms
from worker.rules import attempts, decisions
from worker.store import gate, sweeps
from worker.store.sweeps import LOST_NUDGE, NUDGE_GRACE, SWEEP_HOLD

BOTH = frozenset(Lane)
MILLISECOND = timedelta(milliseconds=1)


def all_stages(world: World) -> None:
    """One refund of each unsettled stage, named after it, each on a payment of its own.

    All due an hour later.
    """
    for stage in Stage:
        at_stage(world, stage, stage.value, payment_intent=f"pi_{stage}")
    world.accept("bulk", lane=Lane.BULK, payment_intent="pi_bulk")
    world.pass_time(25 * HOUR)


def test_sweep_takes_lapsed_leases_and_doubts_first_and_queued_ones_last(world: World) -> None:
    all_stages(world)
    assert world.swept() == [
        "sending",
        "in_doubt",
        "waiting",
        "processing",
        "review",
        "queued",
        "bulk",
    ]


def test_sweep_takes_a_bounded_number_the_most_urgent_first(world: World) -> None:
    all_stages(world)
    assert [world.swept(3), world.swept(3), world.swept(3)] == [
        ["sending", "in_doubt", "waiting"],
        ["processing", "review", "queued"],
        ["bulk"],
    ]
    assert world.swept(0) == []


def test_sweep_says_lane_and_stage_of_what_it_took(world: World) -> None:
    world.accept("row", lane=Lane.BULK)
    world.claim("row")
    world.pass_time(LEASE)
    (due,) = world.sweep()
    assert (due.refund_id, due.lane, due.stage) == ("row", Lane.BULK, Stage.SENDING)


def test_within_a_stage_the_longest_overdue_comes_first(world: World) -> None:
    for number in (3, 1, 2):
        world.accept(f"r{number}", payment_intent=f"pi_{number}")
        world.attempt(NOT_DONE, f"r{number}")
        world.pass_time(SECOND)
    world.pass_time(HOUR)
    assert world.swept() == ["r3", "r1", "r2"]


def test_nothing_is_taken_before_it_is_due(world: World) -> None:
    at_stage(world, Stage.SENDING)
    world.pass_time(LEASE - MILLISECOND)
    before = world.dump()
    assert world.swept() == []
    assert world.dump() == before
    world.pass_time(MILLISECOND)
    assert world.swept() == [ID]


def test_settled_refund_is_never_taken(world: World) -> None:
    at_stage(world, Stage.SETTLED)
    world.pass_time(1000 * HOUR)
    assert world.swept(dry=BOTH) == []


def test_taken_refund_is_left_alone_for_a_while_and_then_taken_again(world: World) -> None:
    at_stage(world, Stage.SENDING)
    world.pass_time(HOUR)
    assert world.swept() == [ID]
    world.pass_time(SWEEP_HOLD - MILLISECOND)
    assert world.swept() == []
    world.pass_time(MILLISECOND)
    assert world.swept() == [ID]
    world.check()


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.WAITING, Stage.IN_DOUBT, Stage.PROCESSING])
def test_sweep_changes_nothing_but_times_and_its_nudge_is_not_too_early(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage)
    world.pass_time(HOUR)
    before = world.dump()
    assert world.swept() == [ID]
    assert only_time_moved(before, world.dump())
    assert attempts.next_action(world.get(), TRUST, world.now) is not Action.NOTHING
    world.check()


def test_two_sweepers_share_what_is_due_without_taking_anything_twice(world: World) -> None:
    for number in range(20):
        world.accept(f"r{number}", payment_intent=f"pi_{number}")
        world.claim(f"r{number}")
    world.pass_time(HOUR)
    taken = [world.swept(7), world.swept(7), world.swept(7)]
    assert sorted(chain.from_iterable(taken)) == sorted(f"r{number}" for number in range(20))


# Lost nudges


@pytest.mark.parametrize("lane", Lane)
def test_queued_refund_is_nudged_again_after_its_grace_whatever_the_queue_holds(
    world: World, lane: Lane
) -> None:
    world.accept(lane=lane)
    world.pass_time(NUDGE_GRACE - MILLISECOND)
    assert world.swept() == []
    world.pass_time(MILLISECOND)
    assert world.swept() == [ID]


@pytest.mark.parametrize("lane", Lane)
def test_nudge_counts_as_lost_soon_where_the_lanes_own_queue_is_dry(
    world: World, lane: Lane
) -> None:
    world.accept(lane=lane)
    other = Lane.BULK if lane is Lane.SINGLE else Lane.SINGLE
    world.pass_time(LOST_NUDGE - MILLISECOND)
    assert world.swept(dry=BOTH) == []
    world.pass_time(MILLISECOND)
    assert world.swept(dry=frozenset({other})) == []
    assert world.swept(dry=frozenset({lane})) == [ID]


def test_nudged_again_means_a_whole_grace_again(world: World) -> None:
    world.accept()
    world.pass_time(NUDGE_GRACE)
    assert world.swept() == [ID]
    assert world.get().next_check_at == world.now + NUDGE_GRACE
    world.pass_time(NUDGE_GRACE - MILLISECOND)
    assert world.swept() == []
    world.check()


def test_retried_refund_whose_nudge_was_lost_is_found(world: World) -> None:
    world.accept()
    world.attempt(replace(REFUSED, code="lock_timeout"))
    step = decisions.retry_failed(world.get())
    assert step is not None
    world.save(world.get(), step)
    world.pass_time(LOST_NUDGE)
    assert world.swept(dry=BOTH) == [ID]


def test_refund_that_waits_for_its_payment_is_not_taken_for_lost_on_a_dry_lane(
    world: World,
) -> None:
    world.accept("a")
    world.accept("b")
    world.claim("a")
    assert world.claim("b").result == "locked"
    world.pass_time(SECOND)
    assert world.swept(dry=BOTH) == []
    world.store.now = NOW + LEASE
    assert world.swept(dry=BOTH) == ["a", "b"]
    world.check()


@pytest.mark.parametrize("lane", Lane)
def test_row_of_a_delayed_file_is_not_taken_for_lost_on_a_dry_lane(
    world: World, lane: Lane
) -> None:
    start = NOW + 9 * MINUTE
    world.accept(lane=lane, batch="b1")
    world.redis.hset("refunds:batch:b1", "not_before", str(to_ms(start)))
    assert world.claim().result == "batch"
    for moment in (NOW + SECOND, start - MILLISECOND):
        world.store.now = moment
        assert world.swept(dry=BOTH) == []
    world.store.now = start
    assert world.swept(dry=BOTH) == [ID]


def test_lost_nudge_is_found_behind_any_number_of_refunds_held_back(world: World) -> None:
    for number in range(3):
        world.accept(f"row-{number}", lane=Lane.BULK, batch="b1", payment_intent=f"pi_{number}")
    world.redis.hset("refunds:batch:b1", "not_before", str(to_ms(NOW + 8 * MINUTE)))
    for number in range(3):
        assert world.claim(f"row-{number}").result == "batch"
    world.accept("lost", lane=Lane.BULK)
    world.pass_time(MINUTE)
    assert world.swept(3, dry=BOTH) == ["lost"]


def test_refund_that_was_held_back_once_is_found_when_its_next_nudge_is_lost(world: World) -> None:
    world.accept()
    world.redis.hset("refunds:meta", "paused", "1")
    world.claim()
    world.redis.hdel("refunds:meta", "paused")
    world.pass_time(MINUTE)
    assert world.swept(dry=BOTH) == [ID]
    assert "held" not in world.hash(f"refund:{ID}")
    world.pass_time(LOST_NUDGE - MILLISECOND)
    assert world.swept(dry=BOTH) == []
    world.pass_time(MILLISECOND)
    assert world.swept(dry=BOTH) == [ID]


def test_refund_in_review_is_shown_again_a_day_later(world: World) -> None:
    at_stage(world, Stage.REVIEW)
    world.pass_time(timedelta(days=1))
    assert world.swept() == [ID]
    world.pass_time(timedelta(days=1) - MILLISECOND)
    assert world.swept() == []
    world.pass_time(MILLISECOND)
    assert world.swept() == [ID]


def test_id_without_a_record_is_cleared_away(world: World) -> None:
    at_stage(world, Stage.SENDING)
    world.redis.delete(f"refunds:refund:{ID}")
    world.pass_time(HOUR)
    assert world.swept() == []
    assert world.indexes_of(ID) == []


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_sweep_goes_past_ids_without_a_record_to_what_is_due(world: World, gone: int) -> None:
    world.accept()
    world.attempt(MAYBE)
    world.redis.zadd("refunds:index:in_doubt", {f"gone-{number}": 1 for number in range(gone)})
    world.pass_time(VERIFY.settle)
    assert world.swept(1) == [ID]


def test_refund_that_is_due_and_is_to_be_read_again_is_taken_once(world: World) -> None:
    at_stage(world, Stage.WAITING)
    hint(world)
    world.redis.zadd("refunds:rechecks", {ID: to_ms(world.now)})
    assert world.swept() == [ID]


@pytest.mark.parametrize(
    "index",
    [
        *("index:sending", "index:in_doubt", "index:waiting", "index:processing", "index:review"),
        *("index:queued", "index:queued.bulk", "due", "rechecks"),
    ],
)
def test_sweep_takes_nothing_while_an_index_is_of_another_type(world: World, index: str) -> None:
    all_stages(world)
    world.redis.zadd("refunds:index:sending", {"gone": 1})
    world.redis.delete(f"refunds:{index}")
    world.redis.set(f"refunds:{index}", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        world.sweep()
    assert world.dump() == before


def test_key_of_another_type_is_passed_over_and_stays_in_its_index(world: World) -> None:
    world.accept()
    world.redis.set("refunds:refund:odd", "x")
    world.redis.zadd("refunds:index:queued", {"odd": 1})
    world.pass_time(HOUR)
    assert world.swept(1) == [ID]
    assert world.indexes_of("odd") == ["index:queued"]


def test_what_was_taken_does_not_count_as_passed_over(world: World) -> None:
    for name in ("held", "a", "b"):
        world.accept(name, payment_intent=f"pi_{name}")
        world.pass_time(SECOND)
    world.redis.hset("refunds:meta", "paused", "1")
    world.claim("held")
    world.redis.hset("refunds:refund:held", "next_check_at", str(to_ms(NOW + 30 * HOUR)))
    world.redis.zadd("refunds:index:queued", {"held": 1})
    world.pass_time(HOUR)
    assert world.swept(2) == ["a", "b"]


def test_refund_that_is_brought_forward_stays_due_until_a_worker_has_it(world: World) -> None:
    at_stage(world, Stage.WAITING)
    hint(world)
    world.redis.zadd("refunds:rechecks", {ID: to_ms(world.now)})
    world.redis.zadd("refunds:due", {ID: to_ms(world.now + HOUR)})
    world.redis.zadd("refunds:index:waiting", {ID: to_ms(world.now + HOUR)})
    world.redis.hset(f"refunds:refund:{ID}", "next_check_at", str(to_ms(world.now + HOUR)))
    assert world.swept() == [ID]
    assert world.get().next_check_at == world.now
    assert world.redis.zscore("refunds:index:waiting", ID) == to_ms(world.now)
    assert world.redis.zscore("refunds:due", ID) == to_ms(world.now)


@pytest.mark.parametrize("stage", [Stage.SETTLED, Stage.REVIEW, Stage.PROCESSING])
def test_refund_that_is_not_to_be_sent_is_taken_to_be_read_again(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage)
    world.redis.zadd("refunds:rechecks", {ID: to_ms(world.now)})
    for most, taken in ((0, []), (1, [(ID, None)]), (1, [])):
        due = world.store.run(sweeps.sweep(most, dry=frozenset()))
        assert [(one.refund_id, one.stage) for one in due] == taken


# Giving back


def test_given_back_refunds_are_due_at_once(world: World) -> None:
    for refund_id in ("a", "b", "c"):
        world.accept(refund_id, payment_intent=f"pi_{refund_id}")
    world.claim("c")
    world.pass_time(SECOND)
    assert world.swept(dry=BOTH) == []
    before = world.dump()
    assert world.store.run(sweeps.give_back(["a", "b", "c", "nobody"])) == 2
    assert only_time_moved(before, world.dump())
    assert sorted(world.swept()) == ["a", "b"]
    assert world.get("c").next_check_at == NOW + LEASE
    world.check()


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.WAITING, Stage.IN_DOUBT, Stage.PROCESSING])
def test_refund_that_a_sweep_had_taken_and_nobody_began_is_given_back_too(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage)
    world.pass_time(HOUR)
    assert world.swept() == [ID]
    assert world.swept() == []
    assert world.store.run(sweeps.give_back([ID])) == 1
    assert world.swept() == [ID]
    world.check()


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.WAITING, Stage.IN_DOUBT, Stage.PROCESSING])
def test_refund_given_back_before_its_time_keeps_its_time(world: World, stage: Stage) -> None:
    at_stage(world, stage)
    before = world.dump()
    assert world.store.run(sweeps.give_back([ID])) == 0
    assert world.dump() == before


def test_refund_held_back_on_purpose_is_not_given_back_before_its_time(world: World) -> None:
    world.accept()
    world.store.run(gate.block_gate(MINUTE))
    assert world.claim().result == "blocked"
    before = world.dump()
    assert world.store.run(sweeps.give_back([ID])) == 0
    assert world.dump() == before


def test_killed_workers_refund_is_found_when_its_lease_ends(world: World) -> None:
    world.accept()
    world.claim()
    world.pass_time(LEASE)
    assert world.swept() == [ID]
    assert attempts.next_action(world.get(), TRUST, world.now) is Action.LAPSE
    assert world.lapse().stage is Stage.IN_DOUBT


def test_doubt_is_swept_when_its_look_is_due(world: World) -> None:
    world.accept()
    refund = world.attempt(MAYBE)
    assert refund.next_check_at is not None
    world.store.now = refund.next_check_at - MILLISECOND
    assert world.swept() == []
    world.pass_time(MILLISECOND)
    assert world.swept() == [ID]


def test_sweep_of_waiting_ones_does_not_depend_on_the_queues(world: World) -> None:
    at_stage(world, Stage.WAITING)
    world.pass_time(MINUTE)
    assert world.swept(dry=frozenset()) == [ID]
