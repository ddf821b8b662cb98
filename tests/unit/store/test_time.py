"""The time that every script sees.

It never goes back, and it goes on, whatever the server's clock does.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import redis

from tests.factories import HOUR, MAYBE, MINUTE, NOW, SECOND, TRUST
from tests.support.store_world import ID, P, World, at_stage
from worker.model.refund import Stage
from worker.model.times import to_ms
from worker.sandbox.redis_server import running_server
from worker.store import reads, sweeps
from worker.store.record_time import DRIFT, LeastTime
from worker.store.records import CLOCK, records_ms
from worker.store.store import Store

MS = timedelta(milliseconds=1)


def seen(world: World) -> Any:
    """The time that a script sees now, as told from the beginning of these tests."""
    return world.store.run(reads.load(ID)).now - NOW


def kept(world: World) -> tuple[timedelta, timedelta]:
    stored = world.hash("clock")
    return int(stored["at"]) * MS - to_ms(NOW) * MS, int(stored["ahead"]) * MS


def test_time_goes_on_from_the_largest_seen_where_the_servers_clock_goes_back(world: World) -> None:
    assert seen(world) == timedelta(0)
    world.pass_time(-3 * HOUR)
    assert seen(world) == timedelta(0)
    world.pass_time(10 * MINUTE)
    assert seen(world) == 10 * MINUTE
    world.pass_time(-5 * HOUR)
    assert seen(world) == 10 * MINUTE
    world.pass_time(4 * HOUR)
    assert seen(world) == 4 * HOUR + 10 * MINUTE


def test_time_stands_still_where_the_servers_clock_goes_back_by_less_than_a_second(
    world: World,
) -> None:
    assert seen(world) == timedelta(0)
    world.pass_time(-SECOND)
    assert seen(world) == timedelta(0)
    assert kept(world) == (timedelta(0), timedelta(0))
    world.pass_time(1500 * MS)
    assert seen(world) == 500 * MS
    world.pass_time(-500 * MS)
    assert seen(world) == timedelta(0)


def test_time_is_kept_at_most_once_a_second(world: World) -> None:
    seen(world)
    world.pass_time(999 * MS)
    assert seen(world) == 999 * MS
    assert kept(world) == (timedelta(0), timedelta(0))
    world.pass_time(MS)
    assert seen(world) == SECOND
    assert kept(world) == (SECOND, timedelta(0))


def test_time_that_went_back_is_kept_at_once(world: World) -> None:
    seen(world)
    world.pass_time(-HOUR)
    seen(world)
    assert kept(world) == (timedelta(0), HOUR)
    world.pass_time(500 * MS)
    assert seen(world) == 500 * MS
    assert kept(world) == (timedelta(0), HOUR)


def test_server_whose_clock_is_set_right_again_is_believed_again(world: World) -> None:
    seen(world)
    world.pass_time(-3 * HOUR)
    seen(world)
    world.pass_time(MINUTE)
    assert seen(world) == MINUTE
    world.pass_time(3 * HOUR + SECOND)
    assert seen(world) == MINUTE + SECOND
    assert kept(world) == (MINUTE + SECOND, timedelta(0))
    world.pass_time(MINUTE)
    assert seen(world) == 2 * MINUTE + SECOND


@pytest.mark.parametrize("behind", [MS, 999 * MS, SECOND, 1001 * MS, MINUTE - MS])
def test_server_that_is_set_right_to_a_little_before_what_was_seen_makes_time_jump_nowhere(
    world: World, behind: timedelta
) -> None:
    seen(world)
    world.pass_time(-3 * HOUR)
    seen(world)
    world.pass_time(MINUTE)
    assert seen(world) == MINUTE
    world.pass_time(3 * HOUR - behind)
    assert seen(world) == MINUTE
    world.pass_time(behind + 2 * SECOND)
    assert MINUTE + 2 * SECOND <= seen(world) <= MINUTE + 2 * SECOND + behind
    assert kept(world)[1] <= behind


@pytest.mark.parametrize(
    ("span", "time"),
    [
        # The server is still behind what was seen, however long nobody asked: what passed is
        # counted.
        (3 * HOUR - MINUTE, 3 * HOUR - MINUTE),
        (3 * HOUR - MINUTE + MS, timedelta(0)),
        (3 * HOUR, timedelta(0)),
        (3 * HOUR + MINUTE, MINUTE),
    ],
)
def test_server_that_is_still_behind_is_not_believed(
    world: World, span: timedelta, time: timedelta
) -> None:
    seen(world)
    world.pass_time(-3 * HOUR)
    seen(world)
    world.pass_time(span)
    assert seen(world) == time


def test_small_step_forward_is_time_that_passed(world: World) -> None:
    seen(world)
    world.pass_time(-30 * SECOND)
    seen(world)
    world.pass_time(MINUTE)
    assert seen(world) == MINUTE
    world.pass_time(MINUTE + SECOND)
    assert seen(world) == MINUTE + 31 * SECOND


def test_programs_beside_the_scripts_see_the_same_time(world: World) -> None:
    back = 3 * HOUR - SECOND
    for span in (timedelta(0), -3 * HOUR, 500 * MS, 2 * MINUTE, -SECOND, back, MINUTE):
        world.pass_time(span)
        told = to_ms(world.now)
        stored: Any = world.redis.hmget(f"{P}clock", *CLOCK)
        expected = records_ms((told // 1000, told % 1000 * 1000 + 999), stored)
        assert timedelta(milliseconds=expected - to_ms(NOW)) == seen(world)


def test_store_tells_the_time_of_the_records(sync_redis: redis.Redis) -> None:
    store = Store(sync_redis, durable=False)
    before = store.run(reads.load(ID)).now
    sync_redis.hset(f"{P}clock", mapping={"at": to_ms(before + HOUR), "ahead": HOUR // MS})
    assert before + HOUR <= store.time() <= store.run(reads.load(ID)).now


def test_server_that_refuses_to_write_still_tells_the_time() -> None:
    with (
        running_server(min_replicas_to_write="1") as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        world = World(client)
        assert seen(world) == timedelta(0)
        assert client.exists(f"{P}clock") == 0


# What a worker knows of it


def test_time_goes_on_while_the_server_is_down_if_a_worker_saw_it_before(world: World) -> None:
    own = [100.0]
    least = LeastTime(lambda: own[0])
    assert least() is None
    least.saw(to_ms(NOW))
    world.store.least_time = least
    assert seen(world) == timedelta(0)
    # Forty seconds without a server, then one whose clock is three hours behind.
    own[0] += 40
    world.pass_time(-3 * HOUR)
    assert seen(world) == 40 * SECOND * (1 - DRIFT)
    # It is kept for those who saw nothing.
    world.store.least_time = lambda: None
    world.pass_time(SECOND)
    assert seen(world) == 41 * SECOND - 40 * SECOND * DRIFT


def test_a_worker_whose_clock_runs_ahead_by_a_second_changes_nothing(world: World) -> None:
    world.store.least_time = lambda: to_ms(NOW) + 1_000
    assert (seen(world), kept(world)) == (timedelta(0), (timedelta(0), timedelta(0)))
    world.store.least_time = lambda: to_ms(NOW) + 1_001
    assert (seen(world), kept(world)) == (1001 * MS, (1001 * MS, 1001 * MS))


def test_the_least_time_falls_back_by_no_more_than_a_second() -> None:
    own = [0.0]
    least = LeastTime(lambda: own[0])
    least.saw(1_000_000)
    own[0] = 10.0
    expected = int(1_000_000 + 10_000 * (1 - DRIFT))
    least.saw(expected - 1001)
    assert least() == expected
    least.saw(expected - 1000)
    assert least() == expected - 1000
    least.saw(expected + 1)
    assert least() == expected + 1


@pytest.mark.parametrize("rate", [1.0005, 1.083])
def test_worker_whose_clock_runs_faster_does_not_drive_the_time(world: World, rate: float) -> None:
    own = [0.0]
    world.store.least_time = least = LeastTime(lambda: own[0])
    for beat in range(100):
        assert seen(world) == beat * 5 * SECOND
        least.saw(to_ms(world.now))
        own[0] += 5 * rate
        world.pass_time(5 * SECOND)
    assert kept(world)[1] == timedelta(0)


@pytest.mark.parametrize("text", [">x", ">-1", "x>1", ">1>2"])
def test_a_time_that_is_not_a_number_is_refused(world: World, text: str) -> None:
    script = reads.load(ID).script
    with pytest.raises(redis.ResponseError, match=r"time .* is not a whole number"):
        world.redis.eval(script.text, 0, P, text, 1000, ID)


# What rests on it


def test_replay_window_ends_while_the_server_is_down(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    least = LeastTime(lambda: own[0])
    own = [0.0]
    least.saw(to_ms(world.now))
    own[0] = 24 * 3600.0
    world.store.least_time = least
    world.pass_time(-3 * HOUR)
    assert world.claim(kind="replay", replay_window=TRUST.key_window).result == "window"


def test_replay_window_that_was_over_is_not_opened_again_by_a_clock_that_is_behind(
    world: World,
) -> None:
    at_stage(world, Stage.IN_DOUBT)
    world.pass_time(22 * HOUR)
    seen(world)
    # A server is promoted whose clock is three hours behind, and workers sweep there.
    world.pass_time(-3 * HOUR)
    for _ in range(6):
        seen(world)
        world.pass_time(30 * MINUTE)
    assert world.claim(kind="replay", replay_window=TRUST.key_window).result == "window"


@pytest.mark.parametrize(("kind", "result"), [("replay", "window"), ("resend", "verdict")])
def test_moment_that_seems_to_lie_ahead_permits_nothing(
    world: World, kind: Any, result: str
) -> None:
    at_stage(world, Stage.IN_DOUBT)
    ahead = str(to_ms(world.now + HOUR))
    fields: dict[Any, Any] = {
        "first_attempt_at": ahead,
        "proven_absent_at": ahead,
        "next_check_at": "0",
    }
    world.redis.hset(f"{P}refund:{ID}", mapping=fields)
    assert world.claim(kind=kind).result == result


def test_lease_lapses_in_time_on_a_server_whose_clock_is_behind(world: World) -> None:
    world.accept()
    world.claim(lease=MINUTE)
    world.pass_time(-3 * HOUR)
    seen(world)
    world.pass_time(MINUTE)
    taken = world.store.run(sweeps.sweep(10, dry=frozenset()))
    assert [(due.refund_id, due.stage) for due in taken] == [(ID, Stage.SENDING)]


def test_doubt_keeps_the_order_of_its_times_on_a_server_whose_clock_is_behind(world: World) -> None:
    world.accept()
    claim = world.claim()
    world.pass_time(-3 * HOUR)
    world.end(claim, MAYBE)
    times = [entry["at"] for entry in world.store.history(ID)]
    assert times == sorted(times)
