"""What a move does for others: the payment's lock, who is woken, and a batch that fails."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.support.store_calls import asked
from tests.unit.store.lua_calls import call
from tests.unit.store.moving import NOW, RETENTION, held, put, scored, stage

_PASS = "local free = pass_lock('p', 'a') write_payment('p') return tostring(free)"


@pytest.mark.parametrize(("name", "holder"), [("sending", "b"), ("in_doubt", "b"), ("queued", "")])
def test_lock_is_held_by_one_that_is_in_flight_or_in_doubt(
    sync_redis: redis.Redis, name: str, holder: str
) -> None:
    stage(sync_redis, "b", name)
    sync_redis.hset("refunds:payment:p", "lock", "b")
    assert call(sync_redis, "return lock_holder('p') or ''") == holder


def test_lock_that_another_holds_is_waited_for(sync_redis: redis.Redis) -> None:
    stage(sync_redis, "b", "in_doubt")
    call(sync_redis, "take_lock('p', 'b', '5') write_payment('p') return 1")
    assert held(sync_redis, "payment:p") == {"lock": "b"}
    call(sync_redis, "take_lock('p', 'b', '5') write_payment('p') return 1")
    call(sync_redis, "take_lock('p', 'c', '6') return 1")
    assert held(sync_redis, "payment:p") == {"lock": "b"}
    assert scored(sync_redis, "doubts:p") == {"c": 6}


def test_what_was_written_of_a_payment_is_not_written_again(sync_redis: redis.Redis) -> None:
    call(
        sync_redis,
        "take_lock('p', 'a', '5') payment_of('p').expires = true write_payment('p')"
        " redis.call('HSET', P .. 'payment:p', 'lock', 'b') redis.call('PERSIST', P .. 'payment:p')"
        " write_payment('p') return 1",
    )
    assert held(sync_redis, "payment:p") == {"lock": "b"}
    assert sync_redis.pttl("refunds:payment:p") == -1


def test_one_that_does_not_hold_the_lock_only_leaves_the_queue(sync_redis: redis.Redis) -> None:
    sync_redis.hset("refunds:payment:p", "lock", "b")
    sync_redis.zadd("refunds:doubts:p", {"a": 1, "c": 2})
    assert call(sync_redis, _PASS) == "false"
    assert held(sync_redis, "payment:p") == {"lock": "b"}
    assert scored(sync_redis, "doubts:p") == {"c": 2}


def test_lock_goes_to_the_oldest_that_is_still_in_doubt(sync_redis: redis.Redis) -> None:
    sync_redis.hset("refunds:payment:p", "lock", "a")
    stage(sync_redis, "a", "in_doubt")
    stage(sync_redis, "b", "settled")
    stage(sync_redis, "c", "in_doubt")
    stage(sync_redis, "d", "in_doubt")
    sync_redis.zadd("refunds:doubts:p", {"a": 1, "b": 2, "c": 3, "d": 4})
    assert call(sync_redis, _PASS) == "false"
    assert held(sync_redis, "payment:p") == {"lock": "c"}
    assert scored(sync_redis, "doubts:p") == {"d": 4}


@pytest.mark.parametrize("lock", ["a", None])
def test_payment_is_free_if_no_other_is_in_doubt(sync_redis: redis.Redis, lock: str | None) -> None:
    if lock:
        sync_redis.hset("refunds:payment:p", "lock", lock)
    sync_redis.hset("refunds:payment:p", "open", "1")
    stage(sync_redis, "b", "settled")
    sync_redis.zadd("refunds:doubts:p", {"b": 2})
    assert call(sync_redis, _PASS) == "true"
    assert held(sync_redis, "payment:p") == {"open": "1"}
    assert not sync_redis.exists("refunds:doubts:p")


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


def test_refund_of_the_provider_is_owned_for_the_whole_installation(
    sync_redis: redis.Redis,
) -> None:
    call(sync_redis, "own('p', 're_1', 'a') write_payment('p') return 1")
    assert call(sync_redis, "return owner_of('re_1')") == "a"
    assert held(sync_redis, "payment:p") == {"owner:re_1": "a"}


@pytest.mark.parametrize(
    "field", ["provider_refund_id", "contradicted_by", "prior_refund_ids", "set_aside_ids"]
)
def test_only_the_owner_of_a_refund_of_the_provider_says_how_long_its_key_lives(
    sync_redis: redis.Redis, field: str
) -> None:
    call(sync_redis, "own('p', 're_1', 'a') own('p', 're_2', 'b') return 1")
    record = f"{{{field} = 're_1 re_2 re_3'}}"
    call(sync_redis, f"keep_owners('a', {record}, true, 're_1') return 1")
    assert [sync_redis.pttl(f"refunds:owner:re_{number}") for number in "123"] == [-1, -1, -2]
    call(sync_redis, f"keep_owners('a', {record}, true) return 1")
    assert RETENTION - 1000 <= sync_redis.pttl("refunds:owner:re_1") <= RETENTION
    assert [sync_redis.pttl(f"refunds:owner:re_{number}") for number in "23"] == [-1, -2]
    call(sync_redis, f"keep_owners('b', {record}, false) return 1")
    assert RETENTION - 1000 <= sync_redis.pttl("refunds:owner:re_1") <= RETENTION
    call(sync_redis, f"keep_owners('a', {record}, false) return 1")
    assert sync_redis.pttl("refunds:owner:re_1") == -1


def test_contradiction_is_kept_and_owned_until_it_is_resolved(sync_redis: redis.Redis) -> None:
    sync_redis.zadd("refunds:contradicted", {"old": NOW - RETENTION, "newer": NOW - RETENTION + 1})
    call(sync_redis, "contradict('a', 'p', 're_1') return 1")
    assert scored(sync_redis, "contradicted") == {"newer": NOW - RETENTION + 1, "a": NOW}
    assert held(sync_redis, "counters") == {"contradicted": "1"}
    assert sync_redis.get("refunds:owner:re_1") == "a"
    call(sync_redis, "contradict('b', 'p', 're_1') return 1")
    assert sync_redis.get("refunds:owner:re_1") == "a"
    call(sync_redis, "contradict('a', 'p', '') return 1")
    assert set(scored(sync_redis, "contradicted")) == {"newer", "b"}
    assert held(sync_redis, "counters") == {"contradicted": "2"}


def test_hundred_contradictions_are_forgotten_at_a_time(sync_redis: redis.Redis) -> None:
    sync_redis.zadd("refunds:contradicted", {f"old-{number:03}": number for number in range(101)})
    call(sync_redis, "contradict('a', 'p', 're_1') return 1")
    assert set(scored(sync_redis, "contradicted")) == {"old-100", "a"}


@pytest.mark.parametrize(
    ("name", "lane", "index"),
    [
        ("queued", "", "queued"),
        ("queued", "refunds.bulk", "queued.bulk"),
        ("waiting", "", "waiting"),
    ],
)
def test_one_that_waits_is_made_due(
    sync_redis: redis.Redis, name: str, lane: str, index: str
) -> None:
    stage(sync_redis, "a", name, lane=lane)
    assert call(sync_redis, "return tostring(make_due('a'))") == "true"
    assert held(sync_redis, "refund:a")["next_check_at"] == str(NOW)
    assert scored(sync_redis, "due") == {"a": NOW}
    assert scored(sync_redis, f"index:{index}") == {"a": NOW}


@pytest.mark.parametrize("name", ["sending", "in_doubt", "processing", "review", "settled"])
def test_one_that_does_not_wait_is_not_made_due(sync_redis: redis.Redis, name: str) -> None:
    stage(sync_redis, "a", name)
    assert call(sync_redis, "return tostring(make_due('a'))") == "false"
    assert held(sync_redis, "refund:a") == {"stage": name}
    assert not sync_redis.exists("refunds:due")


def test_oldest_that_still_waits_for_a_payment_is_woken(sync_redis: redis.Redis) -> None:
    assert call(sync_redis, "return wake('p')") == ""
    sync_redis.zadd("refunds:waiters:p", {"gone": 1, "a": 2, "b": 3})
    stage(sync_redis, "a", "queued")
    stage(sync_redis, "b", "queued")
    assert call(sync_redis, "return wake('p')") == "a"
    assert scored(sync_redis, "waiters:p") == {"b": 3}
    call(sync_redis, "forget_waiter('p', 'b') return 1")
    assert call(sync_redis, "return wake('p')") == ""


def test_payment_for_which_nobody_waits_is_asked_for_its_waiters_once_a_script(
    sync_redis: redis.Redis,
) -> None:
    sync_redis.config_resetstat()
    body = "local woken = wake('p') forget_waiter('p', 'a') return woken"
    assert call(sync_redis, body) == ""
    assert asked(sync_redis)["zpopmin"] == 1
    assert "zrem" not in asked(sync_redis)


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
