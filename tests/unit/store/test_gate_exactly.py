"""The schedule of the provider's rate, moment by moment, for cases that can be reckoned by hand."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
import redis

from tests.factories import HOUR, SECOND
from tests.support.store_world import World
from worker.errors import NotStorable
from worker.model.refund import Lane
from worker.model.times import to_ms
from worker.store import gate
from worker.store.gate import Permits

AHEAD = timedelta(milliseconds=100)
MS = timedelta(milliseconds=1)
ONE, BULK = Lane.SINGLE, Lane.BULK


@pytest.fixture
def world(sync_redis: redis.Redis) -> World:
    """The records on the real server."""
    return World(sync_redis)


def told(
    world: World, *, single: int = 0, bulk: int = 0, rate: float = 100, share: float = 0.7
) -> Permits:
    wanted = {ONE: single, BULK: bulk}
    return world.store.run(gate.permits(wanted, rate=rate, ahead=AHEAD, bulk_share=share))


def away(permits: Permits) -> list[float]:
    """How many milliseconds from now each moment is."""
    return [moment / MS for _, moment in permits.moments]


def clocks(world: World) -> list[float]:
    """What the schedule keeps, as milliseconds from now: the next moment, and each lane's clock."""
    gate, now = world.hash("gate"), to_ms(world.now)
    return [round(float(gate[name]) - now, 3) for name in ("next_at", "single_at", "bulk_at")]


@pytest.mark.parametrize(
    ("rate", "share"), [(1e15, 0.7), (1e15 - 1, 0.7), (math.nan, 0.7), (100, 1.1), (100, math.nan)]
)
def test_rate_or_share_that_no_schedule_can_have_reserves_nothing(
    world: World, rate: float, share: float
) -> None:
    with pytest.raises(NotStorable, match="the rate or the share is not a number"):
        told(world, single=1, rate=rate, share=share)
    assert world.hash("gate") == {}


def test_moments_are_a_step_apart_and_a_lane_pays_for_its_own_by_its_share(world: World) -> None:
    permits = told(world, single=3)
    assert (permits.moments, permits.wait) == (
        [(ONE, number * 10 * MS) for number in range(3)],
        timedelta(0),
    )
    assert clocks(world) == [30, 100, 0]
    assert (told(world, bulk=1).moments, clocks(world)) == ([(BULK, 30 * MS)], [40, 100, 14.286])


def test_lane_whose_clock_is_behind_has_its_turn_and_single_refunds_where_none_is(
    world: World,
) -> None:
    assert [lane for lane, _ in told(world, single=2, bulk=3).moments] == [
        ONE,
        BULK,
        BULK,
        BULK,
        ONE,
    ]


def test_moments_are_told_in_whole_microseconds_never_early(world: World) -> None:
    assert away(told(world, single=4, rate=3000)) == [0, 0.333, 0.666, 0.999]


def test_lane_ahead_of_the_schedule_leaves_half_of_the_time_free(world: World) -> None:
    permits = told(world, single=100)
    assert away(permits) == [0, 10, 20, 30, 40, 50]
    # Worth asking again once a quarter of the time ahead has come free.
    assert permits.wait == 35 * MS
    assert away(told(world, single=1)) == []


def test_lane_that_has_the_whole_rate_takes_all_of_the_time_ahead(world: World) -> None:
    permits = told(world, bulk=100, share=1.0)
    assert away(permits) == [number * 10 for number in range(11)]
    assert permits.wait == 85 * MS
    assert clocks(world) == [110, 0, 110]


def test_slow_rate_is_asked_again_for_the_very_next_moment(world: World) -> None:
    permits = told(world, bulk=100, rate=20)
    assert (away(permits), permits.wait) == ([0, 50], 50 * MS)


def test_who_asks_again_when_told_gets_a_moment_and_none_a_millisecond_before(
    world: World,
) -> None:
    permits = told(world, bulk=100, rate=30)
    assert (away(permits), permits.wait) == ([0, 33.333], 17 * MS)
    world.pass_time(permits.wait - MS)
    assert told(world, bulk=100, rate=30) == Permits(moments=[], wait=MS)
    world.pass_time(MS)
    assert len(told(world, bulk=100, rate=30).moments) == 1


def test_the_only_one_that_is_left_over_is_told_when_to_ask_again(world: World) -> None:
    permits = told(world, bulk=3, rate=20)
    assert (away(permits), permits.wait) == ([0, 50], 50 * MS)


def test_one_trip_brings_five_hundred_moments_at_most(world: World) -> None:
    permits = told(world, bulk=600, rate=100_000)
    assert (len(permits.moments), permits.wait) == (500, MS)
    assert len(told(world, single=500, bulk=10, rate=0).moments) == 510


@pytest.mark.parametrize("lane", ["single", "bulk"])
def test_more_than_a_hundred_thousand_permits_are_not_asked_for_at_once(
    world: World, lane: str
) -> None:
    told(world, **{lane: 100_000})
    with pytest.raises(NotStorable, match="what is wanted"):
        told(world, **{lane: 100_001})


def test_lane_without_a_share_is_served_all_the_same_and_its_debt_is_bounded(world: World) -> None:
    assert away(told(world, single=2, share=1.0)) == [0, 10]
    assert clocks(world) == [20, 20_000, 0]
    told(world, single=1, share=1.0)
    assert clocks(world) == [30, 11_000, 0]


def test_schedule_is_forgotten_an_hour_after_it_was_used(world: World) -> None:
    told(world, single=1)
    left = world.redis.pttl("refunds:gate")
    assert isinstance(left, int)
    assert 3_590_000 < left <= 3_600_000


# After a 429


def block(world: World, wait: timedelta) -> timedelta:
    return world.store.run(gate.block_gate(wait))


def test_pace_after_a_refusal_comes_back_by_a_fiftieth_a_second(world: World) -> None:
    block(world, timedelta(0))
    assert away(told(world, bulk=9, share=1.0))[8] == pytest.approx(94.1176, abs=0.0015)
    world.pass_time(SECOND)
    assert away(told(world, bulk=9, share=1.0))[8] == pytest.approx(91.954, abs=0.0015)
    world.pass_time(100 * SECOND)
    assert away(told(world, bulk=9, share=1.0))[8] == 80


def test_refusals_of_one_second_count_once(world: World) -> None:
    block(world, timedelta(0))
    assert world.hash("gate")["pace"] == "0.8500"
    world.pass_time(SECOND - MS)
    block(world, timedelta(0))
    assert world.hash("gate")["pace"] == "0.8500"
    world.pass_time(MS)
    block(world, timedelta(0))
    assert world.hash("gate")["pace"] == "0.7395"
    assert world.hash("gate")["paced_at"] == str(to_ms(world.now))


@pytest.mark.parametrize(("stored", "closed"), [(24 * HOUR, 24 * HOUR), (24 * HOUR + MS, SECOND)])
def test_gate_that_is_closed_for_more_than_a_day_is_not_believed(
    world: World, stored: timedelta, closed: timedelta
) -> None:
    world.redis.hset("refunds:gate", "blocked_until", to_ms(world.now + stored))
    assert block(world, SECOND) == closed


def test_pace_never_falls_below_a_twentieth(world: World) -> None:
    world.redis.hset("refunds:gate", "pace", "0.01")
    world.redis.hset("refunds:gate", "paced_at", to_ms(world.now - SECOND))
    block(world, timedelta(0))
    assert world.hash("gate")["pace"] == "0.0500"


@pytest.mark.parametrize(
    ("wait", "kept"), [(SECOND, HOUR), (HOUR - SECOND, HOUR), (2 * HOUR, 2 * HOUR)]
)
def test_closed_gate_is_kept_for_an_hour_or_until_it_opens(
    world: World, wait: timedelta, kept: timedelta
) -> None:
    assert block(world, wait) == wait
    left = world.redis.pttl("refunds:gate")
    assert isinstance(left, int)
    assert kept - 10 * SECOND < left * MS <= kept
    assert told(world, single=1) == Permits(moments=[], wait=wait)
