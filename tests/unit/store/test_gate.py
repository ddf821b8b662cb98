"""The rate that all workers share, the pin of the provider, and the client that runs the
scripts.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.factories import MINUTE, NOW, SECOND, a_request
from tests.support.store_world import ID, World
from worker.model.refund import Lane
from worker.store import creations, gate, meta, reads
from worker.store.gate import Permits
from worker.store.records import SCHEMA_VERSION

RATE = 100
AHEAD = timedelta(milliseconds=100)
SHARE = 0.7
EVERY = timedelta(milliseconds=50)


def asked(
    world: World, *, single: int = 0, bulk: int = 0, rate: float = RATE, ahead: timedelta = AHEAD
) -> list[tuple[Lane, datetime]]:
    """Take moments, and return when they are."""
    permits = told(world, single=single, bulk=bulk, rate=rate, ahead=ahead)
    return [(lane, world.now + away) for lane, away in permits.moments]


def told(
    world: World, *, single: int = 0, bulk: int = 0, rate: float = RATE, ahead: timedelta = AHEAD
) -> Permits:
    wanted = {Lane.SINGLE: single, Lane.BULK: bulk}
    return world.store.run(gate.permits(wanted, rate=rate, ahead=ahead, bulk_share=SHARE))


def over(
    world: World, span: timedelta, *, single: int = 0, bulk: int = 0
) -> list[tuple[Lane, datetime]]:
    """What somebody gets who asks for so much now and then."""
    moments = []
    for _ in range(span // EVERY):
        moments += asked(world, single=single, bulk=bulk)
        world.pass_time(EVERY)
    return moments


def busiest_second(moments: list[tuple[Lane, datetime]]) -> int:
    times = sorted(moment for _, moment in moments)
    return max(sum(begin <= moment < begin + SECOND for moment in times) for begin in times)


def test_without_a_rate_every_permit_is_granted_at_once(world: World) -> None:
    assert (
        asked(world, single=1000, bulk=10, rate=0)
        == [(Lane.SINGLE, world.now)] * 1000 + [(Lane.BULK, world.now)] * 10
    )


def test_calls_leave_one_by_one_and_never_in_a_burst(world: World) -> None:
    moments = [moment for _, moment in asked(world, single=100)]
    assert moments == [
        world.now + number * timedelta(milliseconds=10) for number in range(len(moments))
    ]
    assert moments[-1] - world.now <= AHEAD


@pytest.mark.parametrize(
    "wanted", [{"single": 6}, {"bulk": 50}, {"single": 20, "bulk": 20}], ids=str
)
def test_whole_rate_is_used_by_whoever_wants_it_and_no_second_sees_more(
    world: World, wanted: dict[str, int]
) -> None:
    moments = over(world, 2 * SECOND, **wanted)
    assert 2 * RATE <= len(moments) <= 2 * RATE + RATE * AHEAD / SECOND + 1
    assert len(set(moments)) == len(moments)
    assert busiest_second(moments) <= RATE


def test_idle_time_is_not_made_up_for(world: World) -> None:
    asked(world, single=1)
    world.pass_time(MINUTE)
    assert busiest_second(over(world, 2 * SECOND, single=10)) <= RATE


def test_lanes_that_both_want_all_get_their_shares(world: World) -> None:
    moments = over(world, 3 * SECOND, single=50, bulk=50)
    share = sum(lane is Lane.BULK for lane, _ in moments) / len(moments)
    assert share == pytest.approx(SHARE, abs=0.03)


def test_single_refund_finds_a_near_moment_while_a_file_takes_all_there_is(world: World) -> None:
    over(world, SECOND, bulk=50)
    asked(world, bulk=50)
    ((lane, moment),) = asked(world, single=1)
    assert (lane, moment <= world.now + AHEAD) == (Lane.SINGLE, True)


def test_file_is_back_at_its_share_soon_after_it_had_all(world: World) -> None:
    over(world, 5 * SECOND, bulk=50)
    moments = over(world, 5 * SECOND, single=50, bulk=50)
    assert sum(lane is Lane.BULK for lane, _ in moments) > 0.6 * len(moments)


def test_slow_rate_gives_one_moment_and_says_when_to_ask_for_the_next(world: World) -> None:
    assert told(world, single=5, rate=0.5).moments == [(Lane.SINGLE, timedelta(0))]
    closed = told(world, single=5, rate=0.5)
    assert not closed.moments
    assert timedelta(milliseconds=1900) <= closed.wait <= timedelta(seconds=2)
    world.pass_time(closed.wait)
    assert len(told(world, single=5, rate=0.5).moments) == 1


@pytest.mark.parametrize("rate", [0, 10])
def test_closed_gate_lets_nobody_through_until_it_opens(world: World, rate: float) -> None:
    assert world.store.run(gate.block_gate(MINUTE)) == MINUTE
    assert told(world, single=1, rate=rate) == Permits(moments=[], wait=MINUTE)
    world.pass_time(MINUTE)
    assert len(asked(world, single=1, rate=rate)) == 1


def test_shorter_block_does_not_open_a_closed_gate_sooner(world: World) -> None:
    world.store.run(gate.block_gate(MINUTE))
    world.pass_time(SECOND)
    assert world.store.run(gate.block_gate(SECOND)) == MINUTE - SECOND


def test_gate_that_was_closed_opens_slower_and_comes_back_to_the_rate_by_itself(
    world: World,
) -> None:
    for _ in range(5):
        # Refused together, they count once.
        world.store.run(gate.block_gate(SECOND))
    world.pass_time(SECOND)
    first = len(over(world, SECOND, single=50))
    assert 0.85 * RATE <= first <= 0.98 * RATE
    world.pass_time(20 * SECOND)
    assert RATE <= len(over(world, SECOND, single=50)) <= RATE + RATE * AHEAD / SECOND


def test_schedule_of_which_nothing_was_taken_stays_as_it_is(world: World) -> None:
    asked(world, single=3, bulk=3)
    world.pass_time(10 * SECOND)
    before = world.dump()
    assert asked(world) == []
    assert world.dump() == before


def test_with_no_rate_set_a_closed_gate_opens_at_full_speed(world: World) -> None:
    world.store.run(gate.block_gate(SECOND))
    world.pass_time(SECOND)
    assert asked(world, bulk=1000, rate=0) == [(Lane.BULK, world.now)] * 1000


def test_gate_gets_slower_with_every_refusal_but_never_stops(world: World) -> None:
    for _ in range(100):
        world.store.run(gate.block_gate(SECOND))
        world.pass_time(2 * SECOND)
    assert 0.05 * RATE <= len(over(world, SECOND, single=50)) <= 0.3 * RATE


def test_provider_is_pinned_by_whoever_comes_first(world: World) -> None:
    assert world.store.run(meta.pin("one.test", "test")) == ("one.test", "test", SCHEMA_VERSION)
    assert world.store.run(meta.pin("two.test", "live")) == ("one.test", "test", SCHEMA_VERSION)


def test_scripts_that_the_server_forgot_are_loaded_again(world: World) -> None:
    world.accept()
    world.redis.script_flush()
    assert world.claim().claimed
    world.redis.script_flush()
    mixed = world.store.run_many([reads.load(ID), reads.load("nobody")])
    assert [bool(loaded.refund) for loaded in mixed] == [True, False]


def test_pipeline_gives_results_in_the_order_of_its_calls(world: World) -> None:
    requests = [a_request(f"r{number}", payment_intent=f"pi_{number}") for number in (2, 0, 1)]
    batch = [creations.create(request, Lane.SINGLE) for request in requests for _ in range(2)]
    assert [created.result for created in world.store.run_many(batch)] == ["created", "exists"] * 3
    assert [refund and refund.refund_id for refund in world.store.get_many(["r0", "r1", "r2"])] == [
        "r0",
        "r1",
        "r2",
    ]
    assert world.store.run_many([]) == []


def test_servers_own_clock_is_asked_where_no_other_is_given(world: World) -> None:
    world.store.now = None
    seconds, _ = world.redis.time()
    created = world.accept()
    assert abs(created.now.timestamp() - seconds) < 60
    assert created.now > NOW
