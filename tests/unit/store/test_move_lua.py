"""The parts of a move, each called by itself on the real server."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.unit.store.lua_calls import call
from tests.unit.store.moving import NOW, RETENTION, scored


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


def test_refund_that_settles_has_nothing_left_to_be_sent(sync_redis: redis.Redis) -> None:
    sync_redis.mset({"refunds:body:a": "x", "refunds:body:b": "y"})
    r = "{payment_intent = 'p', stage = 'settled', status = 'failed'}"
    call(sync_redis, f"let_expire('a', {r}, {{stage = 'sending'}}) return 1")
    assert sync_redis.keys("refunds:body:*") == ["refunds:body:b"]


def test_unsettled_refund_is_due_in_the_index_of_its_stage(sync_redis: redis.Redis) -> None:
    r = "{stage = 'waiting', status = 'pending'}"
    call(sync_redis, f"update_indexes('a', {r}, {{bucket = 'waiting'}}, 5) return 1")
    assert scored(sync_redis, "due") == scored(sync_redis, "index:waiting") == {"a": 5}
