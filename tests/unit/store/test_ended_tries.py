"""What the end of a try to send a callback, and a replay, write about endpoint, log and member."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest
import redis

from tests.factories import SECOND
from tests.support.store_world import ID, P, World
from tests.unit.store.calling_back import due, end, endpoint, settle, switched_on, take
from worker.errors import NotStorable
from worker.model.times import to_ms
from worker.store import callbacks

CIRCUIT = {"failures": "7", "probe": ID, "probes": "2", "probe_at": "5", "failing_since": "5"}
"""An endpoint that keeps failing, and this refund as its probe."""


@pytest.fixture
def world(any_redis: redis.Redis) -> World:
    """Records with callbacks switched on, and a refund of which a try is under way."""
    world = switched_on(any_redis)
    settle(world)
    due(world)
    assert take(world).result == "taken"
    return world


def keep(world: World, state: dict[Any, Any]) -> None:
    world.redis.hset(f"{P}callback-endpoint:shop", mapping=state)


def test_success_closes_the_circuit_and_is_noted_with_its_time(world: World) -> None:
    keep(world, CIRCUIT)
    assert end(world, "delivered") == "done"
    assert endpoint(world) == {"delivered_at": str(to_ms(world.now))}


def test_refusal_closes_the_circuit_pauses_and_leaves_no_try_behind(world: World) -> None:
    keep(world, CIRCUIT)
    assert end(world, "refused") == "paused"
    now = str(to_ms(world.now))
    assert endpoint(world) == {"refused_at": now, "paused_at": now, "paused_by": "410"}
    assert world.hash("callback-tries:shop") == {}


def test_failures_are_counted_from_the_time_of_the_first(world: World) -> None:
    first = str(to_ms(world.now))
    for times, became in (("1", "again"), ("2", "late")):
        assert end(world, "failed") == became
        assert endpoint(world) == {"failures": times, "failing_since": first}
        world.pass_time(SECOND)


@pytest.mark.parametrize(("probes", "counted"), [("2", "3"), ("19", "20"), ("20", "20")])
def test_failed_probes_are_counted_up_to_twenty(world: World, probes: str, counted: str) -> None:
    keep(world, {**CIRCUIT, "probes": probes})
    assert end(world, "failed") == "again"
    at = to_ms(world.now + min(callbacks.FIRST_PROBE * 2 ** int(counted), callbacks.MOST_PROBE))
    assert endpoint(world) == {
        "failures": "8",
        "probes": counted,
        "probe_at": str(at),
        "failing_since": "5",
    }


def test_probe_that_the_endpoint_does_not_want_leaves_room_for_another(world: World) -> None:
    keep(world, CIRCUIT)
    assert end(world, "skipped") == "done"
    assert endpoint(world) == {"failures": "7", "probes": "2", "failing_since": "5"}
    assert "callback:shop:skipped" not in world.hash("counters")


@pytest.mark.parametrize("log", [{}, {"ms": "3"}, {"ms": "3", "code": "500"}])
def test_try_is_logged_with_its_time_if_there_is_something_to_tell(
    world: World, log: dict[str, str]
) -> None:
    wait = timedelta(seconds=5)
    world.store.run(
        callbacks.ended("shop", ID, token="t1", result="failed", version="1", wait=wait, log=log)
    )
    entries: Any = world.redis.xrange(f"{P}callback-log:shop")
    told = [{"at": str(to_ms(world.now)), **log}] if log else []
    assert [fields for _, fields in entries] == told


def test_dead_letters_are_forgotten_with_their_records(world: World) -> None:
    oldest = to_ms(world.now) - world.store.retention_ms
    world.redis.zadd(f"{P}callback-dead:shop", {"old": oldest, "newer": oldest + 1})
    assert end(world, "failed", wait=None) == "dead"
    assert world.redis.zrange(f"{P}callback-dead:shop", 0, -1) == ["newer", ID]


@pytest.mark.parametrize("kind", ["callbacks", "callback-since", "callback-dead"])
@pytest.mark.parametrize("result", ["delivered", "failed"])
def test_end_of_a_try_changes_nothing_if_a_list_is_of_another_type(
    world: World, kind: str, result: callbacks.Result
) -> None:
    world.redis.delete(f"{P}{kind}:shop")
    world.redis.set(f"{P}{kind}:shop", "text")
    before = world.dump()
    with pytest.raises(NotStorable, match="a value of another type"):
        end(world, result, wait=None)
    assert world.dump() == before


@pytest.mark.parametrize("kind", ["callbacks", "callback-since", "callback-dead"])
def test_replay_changes_nothing_if_a_list_is_of_another_type(world: World, kind: str) -> None:
    assert end(world, "failed") == "again"
    world.redis.delete(f"{P}{kind}:shop")
    world.redis.set(f"{P}{kind}:shop", "text")
    before = world.dump()
    with pytest.raises(NotStorable, match="a value of another type"):
        world.store.run(callbacks.replay("shop", [ID]))
    assert world.dump() == before


def test_try_that_ended_in_an_unknown_way_is_refused(world: World) -> None:
    before = world.dump()
    with pytest.raises(NotStorable, match="odd is none of"):
        end(world, cast("callbacks.Result", "odd"))
    assert world.dump() == before
