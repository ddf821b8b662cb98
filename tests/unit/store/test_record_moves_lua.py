"""The parts of a move and of what wakes others, each called by itself on the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from tests.factories import a_request
from tests.unit.store.lua_calls import call
from worker.errors import NotStorable
from worker.model.refund import Lane
from worker.store import creations
from worker.store.store import Store

NOW = 1_000_000
RETENTION = 60_000


def held(client: redis.Redis, key: str) -> dict[str, str]:
    """Return a hash."""
    found: Any = client.hgetall(f"refunds:{key}")
    return dict(found)


def scored(client: redis.Redis, key: str) -> dict[str, float]:
    """Return a sorted set."""
    found: Any = client.zrange(f"refunds:{key}", 0, -1, withscores=True)
    return dict(found)


def put(client: redis.Redis, key: str, fields: Any) -> None:
    """Store a hash."""
    client.hset(f"refunds:{key}", mapping=fields)


def stage(client: redis.Redis, refund_id: str, name: str, **fields: str) -> None:
    """Store a record at a stage."""
    put(client, f"refund:{refund_id}", {"stage": name, **fields})


# The payment's lock


@pytest.mark.parametrize(("name", "holder"), [("sending", "b"), ("in_doubt", "b"), ("queued", "")])
def test_lock_is_held_by_one_that_is_in_flight_or_in_doubt(
    sync_redis: redis.Redis, name: str, holder: str
) -> None:
    stage(sync_redis, "b", name)
    sync_redis.hset("refunds:payment:p", "lock", "b")
    assert call(sync_redis, "return lock_holder('p') or ''") == holder


def test_lock_that_another_holds_is_waited_for(sync_redis: redis.Redis) -> None:
    stage(sync_redis, "b", "in_doubt")
    call(sync_redis, "take_lock('p', 'b', '5') return 1")
    assert held(sync_redis, "payment:p") == {"lock": "b"}
    call(sync_redis, "take_lock('p', 'b', '5') return 1")
    call(sync_redis, "take_lock('p', 'c', '6') return 1")
    assert held(sync_redis, "payment:p") == {"lock": "b"}
    assert scored(sync_redis, "doubts:p") == {"c": 6}


def test_one_that_does_not_hold_the_lock_only_leaves_the_queue(sync_redis: redis.Redis) -> None:
    sync_redis.hset("refunds:payment:p", "lock", "b")
    sync_redis.zadd("refunds:doubts:p", {"a": 1, "c": 2})
    assert call(sync_redis, "return tostring(pass_lock('p', 'a'))") == "false"
    assert held(sync_redis, "payment:p") == {"lock": "b"}
    assert scored(sync_redis, "doubts:p") == {"c": 2}


def test_lock_goes_to_the_oldest_that_is_still_in_doubt(sync_redis: redis.Redis) -> None:
    sync_redis.hset("refunds:payment:p", "lock", "a")
    stage(sync_redis, "a", "in_doubt")
    stage(sync_redis, "b", "settled")
    stage(sync_redis, "c", "in_doubt")
    stage(sync_redis, "d", "in_doubt")
    sync_redis.zadd("refunds:doubts:p", {"a": 1, "b": 2, "c": 3, "d": 4})
    assert call(sync_redis, "return tostring(pass_lock('p', 'a'))") == "false"
    assert held(sync_redis, "payment:p") == {"lock": "c"}
    assert scored(sync_redis, "doubts:p") == {"d": 4}


@pytest.mark.parametrize("lock", ["a", None])
def test_payment_is_free_if_no_other_is_in_doubt(sync_redis: redis.Redis, lock: str | None) -> None:
    if lock:
        sync_redis.hset("refunds:payment:p", "lock", lock)
    sync_redis.hset("refunds:payment:p", "open", "1")
    stage(sync_redis, "b", "settled")
    sync_redis.zadd("refunds:doubts:p", {"b": 2})
    assert call(sync_redis, "return tostring(pass_lock('p', 'a'))") == "true"
    assert held(sync_redis, "payment:p") == {"open": "1"}
    assert not sync_redis.exists("refunds:doubts:p")


# What forbids a send


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


# Owners


def test_refund_of_the_provider_is_owned_for_the_whole_installation(
    sync_redis: redis.Redis,
) -> None:
    call(sync_redis, "own('p', 're_1', 'a') return 1")
    assert call(sync_redis, "return owner_of('re_1')") == "a"
    assert held(sync_redis, "payment:p") == {"owner:re_1": "a"}
    call(sync_redis, "expire_owner('re_1', 'b') return 1")
    assert sync_redis.pttl("refunds:owner:re_1") == -1
    call(sync_redis, "expire_owner(nil, 'a') return 1")
    call(sync_redis, "expire_owner('re_1', 'a') return 1")
    assert RETENTION - 1000 <= sync_redis.pttl("refunds:owner:re_1") <= RETENTION


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


# What waits


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


# A streak of equal failures


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


# Checks before a write


def checked(client: redis.Redis, r: str = "{}", written: str = "{}", to: str = "queued") -> Any:
    """Check a move of refund `a`."""
    both = f"check('a', {r}, '{to}', 'pending', {written}) return 1"
    return call(client, both)


GOOD = "{payment_intent = 'p', created_at = '1'}"


@pytest.mark.parametrize(
    ("r", "written", "reason"),
    [
        ("{}", "{}", "refund a has no payment or time"),
        ("{payment_intent = 'p'}", "{}", "refund a has no payment or time"),
        ("{created_at = '1'}", "{}", "refund a has no payment or time"),
        (GOOD, "{attempts = 'x'}", "attempts x is not a whole number up to 999999999999999"),
        (GOOD, "{amount = '1000000000001'}", "amount 1000000000001 is not a whole number up to"),
        (GOOD, "{currency = 'EUR'}", "the currency EUR is not three letters"),
        (GOOD, "{currency = 'euro'}", "the currency euro is not three letters"),
        (
            GOOD,
            "{currency = string.rep('x', 50)}",
            f"the currency {'x' * 40} is not three letters",
        ),
        (
            "{payment_intent = 'p', created_at = '1', version = 'x'}",
            "{}",
            "version x is not a whole number",
        ),
        (
            "{payment_intent = 'p', created_at = '1', resends = 'x'}",
            "{}",
            "resends x is not a whole number",
        ),
    ],
)
def test_move_with_a_wrong_value_is_refused(
    sync_redis: redis.Redis, r: str, written: str, reason: str
) -> None:
    with pytest.raises(ResponseError) as refused:
        checked(sync_redis, r, written)
    assert f"REFUNDS_REFUSED {reason}" in str(refused.value)


@pytest.mark.parametrize(
    "written",
    [
        "{payment_intent = 'p', created_at = '1'}",
        "{payment_intent = 'p', created_at = '1', currency = '', attempts = ''}",
        "{payment_intent = 'p', created_at = '1', currency = 'eur', amount = '1000000000000'}",
        "{payment_intent = 'p', created_at = '1', first_attempt_at = '999999999999999'}",
    ],
)
def test_move_with_good_values_passes(sync_redis: redis.Redis, written: str) -> None:
    assert checked(sync_redis, "{}", written) == 1


@pytest.mark.parametrize("field", ["seq", "open"])
def test_payment_with_a_broken_counter_is_refused(sync_redis: redis.Redis, field: str) -> None:
    sync_redis.hset("refunds:payment:p", field, "x")
    with pytest.raises(ResponseError, match=f"{field} x is not a whole number"):
        checked(sync_redis, GOOD)


@pytest.mark.parametrize(
    ("key", "r", "to"),
    [
        ("history:a", GOOD, "queued"),
        ("due", GOOD, "queued"),
        ("index:queued", GOOD, "queued"),
        (
            "index:waiting",
            "{payment_intent = 'p', created_at = '1', stage = 'waiting', status = 'pending'}",
            "queued",
        ),
        ("doubts:p", GOOD, "sending"),
        (
            "doubts:p",
            "{payment_intent = 'p', created_at = '1', stage = 'sending', status = 'pending'}",
            "waiting",
        ),
    ],
)
def test_key_of_another_type_is_found_before_anything_is_written(
    sync_redis: redis.Redis, key: str, r: str, to: str
) -> None:
    assert checked(sync_redis, r, to=to) == 1
    sync_redis.set(f"refunds:{key}", "text")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        checked(sync_redis, r, to=to)


@pytest.mark.parametrize(
    ("key", "lane"),
    [("due", Lane.SINGLE), ("index:queued", Lane.SINGLE), ("index:queued.bulk", Lane.BULK)],
)
def test_refund_is_not_accepted_if_it_could_be_written_only_in_part(
    sync_redis: redis.Redis, key: str, lane: Lane
) -> None:
    sync_redis.set(f"refunds:{key}", "text")
    with pytest.raises(NotStorable, match="a value of another type"):
        Store(sync_redis).run(creations.create(a_request("a"), lane))
    written: Any = sync_redis.keys("*")
    assert set(written) - {"refunds:clock"} == {f"refunds:{key}"}


@pytest.mark.parametrize("key", ["contradicted", "owner:re_1"])
def test_keys_of_a_contradiction_are_checked_only_if_there_is_one(
    sync_redis: redis.Redis, key: str
) -> None:
    sync_redis.rpush(f"refunds:{key}", "x")
    assert checked(sync_redis, GOOD) == 1
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        checked(sync_redis, GOOD, "{contradicted_by = 're_1'}")


@pytest.mark.parametrize(("to", "status"), [("nowhere", "pending"), ("queued", "odd")])
def test_unknown_stage_or_status_is_refused(sync_redis: redis.Redis, to: str, status: str) -> None:
    with pytest.raises(ResponseError, match=" is none of "):
        call(sync_redis, f"check('a', {GOOD}, '{to}', '{status}', {{}}) return 1")


# What is written


def completed(client: redis.Redis, r: str, to: str, status: str, written: str = "{}") -> Any:
    """Return the fields that a move writes."""
    body = f"local set = {written} complete(set, {r}, '{to}', '{status}', 77) return flat(set)"
    flat = call(client, body)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def test_every_move_writes_stage_version_and_times(sync_redis: redis.Redis) -> None:
    assert completed(sync_redis, "{version = '4'}", "queued", "pending") == {
        "stage": "queued",
        "status": "pending",
        "version": "5",
        "updated_at": str(NOW),
        "next_check_at": "77",
    }
    assert completed(sync_redis, "{held = 'x'}", "queued", "pending")["held"] == ""


@pytest.mark.parametrize(
    ("r", "status", "written", "dropped"),
    [
        ("{amount = '5'}", "succeeded", "{}", {"lane", "fingerprint"}),
        ("{amount = '5'}", "failed", "{}", {"fingerprint"}),
        ("{amount = '5'}", "canceled", "{amount = '5'}", {"lane", "fingerprint"}),
        ("{amount = '5'}", "succeeded", "{amount = '6'}", {"lane"}),
        ("{all_remaining = '1'}", "succeeded", "{amount = '6'}", {"lane", "fingerprint"}),
    ],
)
def test_settled_record_drops_what_the_rest_implies(
    sync_redis: redis.Redis, r: str, status: str, written: str, dropped: set[str]
) -> None:
    fields = completed(sync_redis, r, "settled", status, written)
    assert {name for name, value in fields.items() if value == ""} == {*dropped, "next_check_at"}


def test_index_of_settled_ones_drops_two_expired_ids_a_move(sync_redis: redis.Redis) -> None:
    expired = {"x": NOW - RETENTION, "y": 1, "z": 2}
    sync_redis.zadd("refunds:index:failed", {**expired, "kept": NOW - RETENTION + 1})
    sync_redis.zadd("refunds:due", {"a": 1})
    sync_redis.zadd("refunds:index:sending", {"a": 1})
    r = "{stage = 'settled', status = 'failed'}"
    call(sync_redis, f"update_indexes('a', {r}, {{bucket = 'sending'}}, 5) return 1")
    assert scored(sync_redis, "index:failed") == {
        "x": NOW - RETENTION,
        "kept": NOW - RETENTION + 1,
        "a": NOW,
    }
    assert not sync_redis.exists("refunds:due", "refunds:index:sending")


def test_unsettled_refund_is_due_in_the_index_of_its_stage(sync_redis: redis.Redis) -> None:
    r = "{stage = 'waiting', status = 'pending'}"
    call(sync_redis, f"update_indexes('a', {r}, {{bucket = 'waiting'}}, 5) return 1")
    assert scored(sync_redis, "due") == scored(sync_redis, "index:waiting") == {"a": 5}


# The history


def test_long_history_keeps_its_first_and_newest_moves(sync_redis: redis.Redis) -> None:
    first = json.dumps({"at": 5, "to": "queued", "label": "accepted"})
    moves = [json.dumps({"after": n, "to": "sending" if n % 2 else "in_doubt"}) for n in range(499)]
    sync_redis.rpush("refunds:history:a", first, *moves)
    call(sync_redis, "shorten(P .. 'history:a') return 1")
    assert sync_redis.llen("refunds:history:a") == 500
    sync_redis.rpush("refunds:history:a", json.dumps({"after": 1, "to": "waiting"}))
    call(sync_redis, "shorten(P .. 'history:a') return 1")
    kept: Any = sync_redis.lrange("refunds:history:a", 0, -1)
    assert len(kept) == 500
    assert kept[:100] == [first, *moves[:99]]
    assert json.loads(kept[100]) == {
        "left_out": 2,
        "claims": 1,
        "after": 99 + 100,
        "to": "in_doubt",
    }
    assert kept[101:499] == moves[101:]
    sync_redis.rpush("refunds:history:a", json.dumps({"after": 1, "to": "queued"}))
    call(sync_redis, "shorten(P .. 'history:a') return 1")
    again: Any = sync_redis.lindex("refunds:history:a", 100)
    assert json.loads(again) == {
        "left_out": 3,
        "claims": 2,
        "after": 99 + 100 + 101,
        "to": "sending",
    }


def test_history_that_cannot_be_read_is_left_as_it_is(sync_redis: redis.Redis) -> None:
    sync_redis.rpush("refunds:history:a", *["broken"] * 501)
    call(sync_redis, "shorten(P .. 'history:a') return 1")
    assert sync_redis.llen("refunds:history:a") == 501
