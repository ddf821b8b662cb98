"""A payment's lock, and what waits for it, each function called by itself on the real server."""

from __future__ import annotations

import pytest
import redis

from tests.support.store_calls import asked
from tests.unit.store.lua_calls import call
from tests.unit.store.moving import NOW, held, scored, stage

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
