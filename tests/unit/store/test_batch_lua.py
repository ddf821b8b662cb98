"""What holds a refund back, the room in a batch, and a batch that pauses itself."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.support.store_calls import asked
from tests.unit.store.lua_calls import call
from tests.unit.store.moving import NOW, RETENTION, held, put, scored, stage


@pytest.mark.parametrize(
    ("key", "fields", "expected"),
    [
        ("meta", {"paused": "x"}, ["paused"]),
        ("meta", {"credentials_refused_at": "x"}, ["parked"]),
        ("meta", {"account_lost_at": "x"}, ["account"]),
        ("meta", {"paused": "x", "credentials_refused_at": "x"}, ["paused"]),
        ("meta", {"credentials_refused_at": "x", "account_lost_at": "x"}, ["parked"]),
        ("gate", {"blocked_until": NOW}, []),
        ("gate", {"blocked_until": NOW + 1}, ["blocked", NOW + 1]),
        ("batch:b", {"state": "canceled"}, ["canceled"]),
        ("batch:b", {"state": "paused"}, ["batch"]),
        ("batch:b", {"state": "running"}, []),
        ("batch:b", {"not_before": NOW}, []),
        ("batch:b", {"not_before": NOW + 1}, ["batch", NOW + 1]),
        ("batch:other", {"state": "canceled"}, []),
    ],
)
def test_brake_is_named_with_its_end(
    sync_redis: redis.Redis, key: str, fields: dict[str, Any], expected: list[Any]
) -> None:
    put(sync_redis, key, fields)
    assert call(sync_redis, "return {brake({batch_id = 'b'})}") == expected


def test_batch_starts_narrow_and_widens_with_each_accepted_row(sync_redis: redis.Redis) -> None:
    assert call(sync_redis, "return room_in_batch('b')") == 8
    counts = {"stage:sending": 3, "status:succeeded": 10, "stage:processing": 5}
    put(sync_redis, "batch:b", counts)
    assert call(sync_redis, "return room_in_batch('b')") == 8 + 10 + 5 - 3


def test_counts_of_a_batch_are_right_after_a_counter_was_written(sync_redis: redis.Redis) -> None:
    put(sync_redis, "batch:b", {"stage:sending": 3})
    adding = "add_in(P .. 'batch:b', 'stage:sending', 2)"
    body = f"local before = room_in_batch('b') {adding} return {{before, room_in_batch('b')}}"
    assert call(sync_redis, body) == [8 - 3, 8 - 5]


def test_batch_expires_at_once_where_no_counters_are_gathered(sync_redis: redis.Redis) -> None:
    put(sync_redis, "batch:b", {"stage:settled": 1})
    sync_redis.zadd("refunds:batch-refunds:b", {"a": 1})
    call(sync_redis, "let_batch_expire('b') return 1")
    assert held(sync_redis, "batch:b") == {"stage:settled": "1"}
    for key in ("batch:b", "batch-refunds:b"):
        assert RETENTION - 1000 <= sync_redis.pttl(f"refunds:{key}") <= RETENTION


@pytest.mark.parametrize(
    ("sending", "woken"), [(9, []), (8, []), (7, ["a"]), (6, ["a", "b"]), (0, ["a", "b"])]
)
def test_rows_are_woken_as_far_as_there_is_room_and_two_at_most(
    sync_redis: redis.Redis, sending: int, woken: list[str]
) -> None:
    assert call(sync_redis, "return wake_rows('b')") == []
    sync_redis.hset("refunds:batch:b", "stage:sending", str(sending))
    sync_redis.zadd("refunds:batch-waiters:b", {"gone": 1, "a": 2, "b": 3, "c": 4})
    for refund_id in "abc":
        stage(sync_redis, refund_id, "queued")
    assert call(sync_redis, "return wake_rows('b')") == woken
    left = {"gone", "a", "b", "c"} - set(woken) - ({"gone"} if woken else set())
    assert set(scored(sync_redis, "batch-waiters:b")) == left


def test_last_row_that_waits_is_woken_alone(sync_redis: redis.Redis) -> None:
    sync_redis.zadd("refunds:batch-waiters:b", {"a": 2})
    stage(sync_redis, "a", "queued")
    assert call(sync_redis, "return wake_rows('b')") == ["a"]
    assert not sync_redis.exists("refunds:batch-waiters:b")


def test_batch_of_which_no_row_waits_is_asked_once_a_script(sync_redis: redis.Redis) -> None:
    sync_redis.config_resetstat()
    assert call(sync_redis, "return {wake_rows('b'), wake_rows('b')}") == [[], []]
    statistics = asked(sync_redis)
    assert statistics.get("exists") == 1
    assert "zpopmin" not in statistics


def failing(client: redis.Redis, code: str | None, status: str = "failed") -> dict[str, str]:
    """Let a row end, and return the batch."""
    error_code = f", error_code = '{code}'" if code else ""
    call(client, f"watch_streak({{batch_id = 'b'{error_code}}}, '{status}') return 1")
    return held(client, "batch:b")


def test_twentieth_equal_failure_in_a_row_pauses_a_batch(sync_redis: redis.Redis) -> None:
    sync_redis.hset("refunds:batch:b", "state", "running")
    for number in range(1, 20):
        assert failing(sync_redis, "x") == {
            "state": "running",
            "streak_code": "x",
            "streak": str(number),
        }
    assert failing(sync_redis, "x") == {
        "state": "paused",
        "paused_reason": "x",
        "paused_at": str(NOW),
    }


@pytest.mark.parametrize("state", ["paused", "canceled"])
def test_only_a_running_batch_is_paused(sync_redis: redis.Redis, state: str) -> None:
    put(sync_redis, "batch:b", {"state": state, "streak_code": "x", "streak": "19"})
    assert failing(sync_redis, "x") == {"state": state, "streak_code": "x", "streak": "20"}


def test_another_code_or_a_success_begins_a_new_streak(sync_redis: redis.Redis) -> None:
    failing(sync_redis, "x")
    failing(sync_redis, "x")
    assert failing(sync_redis, "y") == {"streak_code": "y", "streak": "1"}
    assert failing(sync_redis, None) == {"streak_code": "unknown", "streak": "1"}
    assert failing(sync_redis, None, "succeeded") == {}


def test_streak_that_cannot_be_counted_pauses_at_once(sync_redis: redis.Redis) -> None:
    broken = {"state": "running", "streak_code": "x", "streak": "broken"}
    put(sync_redis, "batch:b", broken)
    assert failing(sync_redis, "x")["state"] == "paused"


def test_batch_that_pauses_itself_is_paused_for_the_rest_of_its_script(
    sync_redis: redis.Redis,
) -> None:
    put(sync_redis, "batch:b", {"state": "running", "streak_code": "x", "streak": "19"})
    body = """
    gathered = {counts = {}, scores = {}, settled = {}, bodies = {}}
    local row = {batch_id = 'b', error_code = 'x'}
    local first = brake(row) or 'none'
    watch_streak(row, 'failed')
    return {first, brake(row) or 'none'}
    """
    assert call(sync_redis, body) == ["none", "batch"]
