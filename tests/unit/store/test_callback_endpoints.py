"""Callbacks in the records: which endpoint gets what, and when one gets nothing for a while."""

from __future__ import annotations

from datetime import timedelta

import pytest
import redis

from tests.factories import HOUR, MINUTE, SECOND
from tests.support.store_world import ID, World
from tests.unit.store.calling_back import (
    BOOKS,
    SHOP,
    due,
    end,
    endpoint,
    fail_times,
    settle,
    switched_on,
    take,
)
from worker.model.times import to_ms
from worker.store import callbacks
from worker.store.callbacks import Wanted

DAY = timedelta(days=1)


@pytest.fixture
def world(any_redis: redis.Redis) -> World:
    """Records with callbacks switched on."""
    return switched_on(any_redis)


def test_endpoint_gets_the_refunds_that_it_wants_and_others_are_not_concerned(
    world: World,
) -> None:
    for refund_id in ("a1", "b1"):
        settle(world, refund_id)
    assert due(world, SHOP, BOOKS) == {"shop": ["a1", "b1"], "books": ["b1"]}
    assert take(world, name="books", member="a1").result == "gone"
    take(world, member="b1")
    end(world, "failed", member="b1", wait=None)
    assert take(world, name="books", member="b1").result == "taken"


def test_endpoint_that_was_served_before_gets_no_more_than_it_wants(world: World) -> None:
    due(world, SHOP, BOOKS)
    settle(world, "a1")
    assert due(world, SHOP, BOOKS) == {"shop": ["a1"]}
    assert take(world, name="books", member="a1").result == "gone"


def test_worker_whose_file_lacks_an_endpoint_leaves_it_what_is_due(world: World) -> None:
    """The file is changed, and the workers are restarted one by one."""
    due(world, SHOP, BOOKS)
    settle(world, "b1")
    world.pass_time(callbacks.HOLD)
    assert due(world, SHOP) == {"shop": ["b1"]}
    # Nobody serves it any more: it was removed.
    world.pass_time(timedelta(milliseconds=1))
    settle(world, "b2")
    assert due(world, SHOP) == {"shop": ["b2"]}
    assert due(world, BOOKS) == {"books": ["b1"]}


def test_without_an_endpoint_everything_waits_for_one(world: World) -> None:
    settle(world)
    assert world.store.run(callbacks.outbox([])).shared_out == 0
    assert due(world) == {"shop": [ID]}


def test_no_more_is_shared_out_at_once_than_the_limit_oldest_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "SHARED_OUT", 2)
    for number in range(3):
        settle(world, f"r{number}")
        world.pass_time(SECOND)
    shared = [world.store.run(callbacks.outbox([SHOP])) for _ in range(3)]
    assert [each.shared_out for each in shared] == [2, 1, 0]
    assert [each.due.get("shop") for each in shared] == [["r0", "r1"], ["r2"], None]


def test_sweep_takes_as_many_as_are_wanted_oldest_first(world: World) -> None:
    for number in range(5):
        settle(world, f"r{number}")
        world.pass_time(SECOND)
    few = Wanted(name="shop", ids="", most=2)
    assert due(world, few) == {"shop": ["r0", "r1"]}
    assert due(world, few) == {"shop": ["r2", "r3"]}


def test_paused_endpoint_gets_nothing_and_all_is_kept(world: World) -> None:
    settle(world)
    due(world)
    world.redis.hset("refunds:callback-endpoint:shop", "paused_at", "1")
    assert take(world).result == "paused"
    world.pass_time(DAY)
    assert due(world) == {}
    world.redis.hdel("refunds:callback-endpoint:shop", "paused_at")
    assert due(world) == {"shop": [ID]}


def test_endpoint_that_is_gone_is_paused_and_the_refund_is_kept(world: World) -> None:
    settle(world)
    due(world)
    take(world)
    assert end(world, "refused") == "paused"
    assert (endpoint(world)["paused_by"], take(world).result) == ("410", "paused")
    world.redis.hdel("refunds:callback-endpoint:shop", "paused_at", "paused_by")
    assert due(world) == {"shop": [ID]}
    assert take(world).tries == 0


def test_after_five_failures_in_a_row_one_probe_at_a_time_is_sent(world: World) -> None:
    fail_times(world, callbacks.OPEN_FROM)
    settle(world, "p1")
    assert due(world) == {}
    # What was taken before costs no try.
    assert take(world, member="p1").result == "open"
    waits = []
    for tries in range(6):
        start = world.now
        while not (probe := due(world)):
            world.pass_time(5 * SECOND)
        waits.append(world.now - start)
        assert probe == {"shop": ["p1"]}
        assert take(world, member="f1").result == "open"
        taken = take(world, member="p1")
        assert (taken.result, taken.tries) == ("taken", tries)
        assert end(world, "failed", member="p1", wait=timedelta(0)) == "again"
    assert waits == [30 * SECOND, MINUTE, 2 * MINUTE, 4 * MINUTE, 5 * MINUTE, 5 * MINUTE]
    settle(world, "p2")
    world.pass_time(5 * MINUTE)
    assert due(world) == {"shop": ["p1"]}
    take(world, member="p1")
    assert end(world, "delivered", member="p1") == "done"
    assert "failures" not in endpoint(world)
    assert due(world) == {"shop": ["p2"]}


@pytest.mark.parametrize(
    ("failures", "probe_at", "taken"), [(5, None, 1), (5, 1, 1), (4, 1, 2), (4, None, 2)]
)
def test_failures_in_a_row_alone_tell_whether_one_probe_is_sent(
    world: World, failures: int, probe_at: int | None, taken: int
) -> None:
    world.redis.hset("refunds:callback-endpoint:shop", "failures", str(failures))
    if probe_at is not None:
        at = to_ms(world.now) - probe_at
        world.redis.hset("refunds:callback-endpoint:shop", "probe_at", str(at))
    for refund_id in ("a1", "a2"):
        settle(world, refund_id)
    assert len(due(world)["shop"]) == taken


def test_probe_that_is_lost_or_not_wanted_is_followed_by_another(world: World) -> None:
    fail_times(world, callbacks.OPEN_FROM)
    for refund_id in ("p1", "p2"):
        settle(world, refund_id)
    due(world)
    world.pass_time(callbacks.FIRST_PROBE)
    assert due(world) == {"shop": ["p1"]}
    assert due(world) == {}
    world.pass_time(callbacks.HOLD)
    (probe,) = due(world)["shop"]
    assert take(world, member=probe).result == "taken"
    assert end(world, "skipped", member=probe) == "done"
    assert len(due(world)["shop"]) == 1


def test_probe_that_failed_is_not_sent_again_before_the_next_one(world: World) -> None:
    fail_times(world, callbacks.OPEN_FROM)
    settle(world, "p1")
    world.pass_time(callbacks.FIRST_PROBE)
    assert due(world) == {"shop": ["p1"]}
    take(world, member="p1")
    assert end(world, "failed", member="p1", wait=timedelta(0)) == "again"
    assert take(world, member="p1").result == "open"


def test_late_failure_of_what_was_taken_before_does_not_put_off_the_probe(world: World) -> None:
    settle(world, "late")
    due(world)
    take(world, member="late")
    fail_times(world, callbacks.OPEN_FROM)
    probe_at = endpoint(world)["probe_at"]
    world.pass_time(SECOND)
    assert end(world, "failed", member="late", wait=HOUR) == "again"
    assert endpoint(world)["probe_at"] == probe_at


def test_what_the_endpoint_does_not_want_ends_no_probe_of_another(world: World) -> None:
    settle(world, "unwanted")
    due(world)
    take(world, member="unwanted")
    fail_times(world, callbacks.OPEN_FROM)
    settle(world, "p1")
    world.pass_time(callbacks.FIRST_PROBE)
    assert due(world) == {"shop": ["p1"]}
    before = endpoint(world)
    assert end(world, "skipped", member="unwanted") == "done"
    assert endpoint(world) == before


def test_one_success_between_failures_keeps_the_endpoint_open(world: World) -> None:
    fail_times(world, callbacks.OPEN_FROM - 1)
    settle(world)
    due(world)
    take(world)
    end(world, "delivered")
    for number in range(callbacks.OPEN_FROM):
        refund_id = f"g{number}"
        settle(world, refund_id)
        due(world)
        assert take(world, member=refund_id).result == "taken"
        end(world, "failed", member=refund_id, wait=HOUR)
