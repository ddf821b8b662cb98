"""The rate that all workers share, the pin of the provider, and the client that runs the scripts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.factories import MINUTE, NOW, SECOND, a_request
from tests.store.world import ID, World
from worker import calls
from worker.calls import Permits
from worker.model import Lane
from worker.records import SCHEMA_VERSION


def asked(world: World, wanted: int, *, rate: float = 10, burst: float = 5, lane: Lane = Lane.SINGLE) -> Permits:
    return world.store.run(calls.permits(wanted, rate=rate, burst=burst, lane=lane, bulk_share=0.6))


def test_without_a_rate_every_permit_is_granted(world: World) -> None:
    assert asked(world, 1000, rate=0) == Permits(granted=1000, wait=timedelta(0))


def test_burst_is_granted_at_once_and_the_rest_at_the_rate(world: World) -> None:
    assert asked(world, 100).granted == 5
    closed = asked(world, 1)
    assert (closed.granted, closed.wait) == (0, timedelta(milliseconds=100))
    world.pass_time(closed.wait)
    assert asked(world, 100).granted == 1


def test_no_second_ever_sees_more_than_rate_and_burst(world: World) -> None:
    granted = 0
    for _ in range(100):
        granted += asked(world, 3).granted
        world.pass_time(timedelta(milliseconds=10))
    assert 10 <= granted <= 15


def test_bulk_lane_leaves_room_that_a_single_refund_finds(world: World) -> None:
    assert asked(world, 100, lane=Lane.BULK).granted == 3
    assert asked(world, 100, lane=Lane.BULK).granted == 0
    assert asked(world, 100, lane=Lane.SINGLE).granted == 2


@pytest.mark.parametrize("rate", [0, 10])
def test_closed_gate_lets_nobody_through_until_it_opens(world: World, rate: float) -> None:
    assert world.store.run(calls.block_gate(MINUTE)) == MINUTE
    assert asked(world, 1, rate=rate) == Permits(granted=0, wait=MINUTE)
    world.pass_time(MINUTE)
    assert asked(world, 1, rate=rate).granted == 1


def test_shorter_block_does_not_open_a_closed_gate_sooner(world: World) -> None:
    world.store.run(calls.block_gate(MINUTE))
    world.pass_time(SECOND)
    assert world.store.run(calls.block_gate(SECOND)) == MINUTE - SECOND


def test_provider_is_pinned_by_whoever_comes_first(world: World) -> None:
    assert world.store.run(calls.pin("one.test", "test")) == ("one.test", "test", SCHEMA_VERSION)
    assert world.store.run(calls.pin("two.test", "live")) == ("one.test", "test", SCHEMA_VERSION)


def test_scripts_that_the_server_forgot_are_loaded_again(world: World) -> None:
    world.accept()
    world.redis.script_flush()
    assert world.claim().claimed
    world.redis.script_flush()
    mixed = world.store.run_many([calls.load(ID), calls.load("nobody")])
    assert [bool(loaded.refund) for loaded in mixed] == [True, False]


def test_pipeline_gives_results_in_the_order_of_its_calls(world: World) -> None:
    requests = [a_request(f"r{number}", payment_intent=f"pi_{number}") for number in (2, 0, 1)]
    batch = [calls.create(request, Lane.SINGLE) for request in requests for _ in range(2)]
    assert [created.result for created in world.store.run_many(batch)] == ["created", "exists"] * 3
    assert [refund and refund.refund_id for refund in world.store.get_many(["r0", "r1", "r2"])] == ["r0", "r1", "r2"]
    assert world.store.run_many([]) == []


def test_servers_own_clock_is_asked_where_no_other_is_given(world: World) -> None:
    world.store.now = None
    seconds, _ = world.redis.time()
    created = world.accept()
    assert abs(created.now.timestamp() - seconds) < 60
    assert created.now > NOW
