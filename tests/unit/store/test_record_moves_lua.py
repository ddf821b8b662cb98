"""The parts of a move and of what wakes others, each called by itself on the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from tests.factories import a_request
from tests.unit.store.lua_calls import call
from tests.unit.store.moving import NOW, RETENTION, put, scored
from worker.errors import NotStorable
from worker.model.refund import Lane
from worker.store import creations
from worker.store.records import Moves
from worker.store.store import Store

_SHORTEN = "shorten(P .. 'history:a', redis.call('LLEN', P .. 'history:a')) return 1"


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
        ("{payment_intent = 'p', created_at = 'x'}", "{}", "created_at x is not a whole number"),
        *(
            (
                f"{{payment_intent = 'p', created_at = '1', {name} = 'x'}}",
                "{}",
                f"{name} x is not a whole number",
            )
            for name in ("version", "attempts", "amount", "updated_at", "next_check_at", "resends")
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
        (
            "index:failed",
            "{payment_intent = 'p', created_at = '1', stage = 'settled', status = 'failed'}",
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


@pytest.mark.parametrize("key", ["due", "index:in_doubt"])
def test_refund_is_not_accepted_after_a_recovery_if_it_could_be_written_only_in_part(
    sync_redis: redis.Redis, key: str
) -> None:
    put(sync_redis, "meta", {"suspect_since": "1", "suspect_until": "999999999999999"})
    sync_redis.set(f"refunds:{key}", "text")
    with pytest.raises(NotStorable, match="a value of another type"):
        Store(sync_redis).run(creations.create(a_request("a"), Lane.SINGLE))
    written: Any = sync_redis.keys("*")
    assert set(written) - {"refunds:clock", "refunds:meta"} == {f"refunds:{key}"}


@pytest.mark.parametrize("key", ["contradicted", "owner:re_1"])
def test_keys_of_a_contradiction_are_checked_only_if_there_is_one(
    sync_redis: redis.Redis, key: str
) -> None:
    sync_redis.rpush(f"refunds:{key}", "x")
    assert checked(sync_redis, GOOD) == 1
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        checked(sync_redis, GOOD, "{contradicted_by = 're_1'}")


@pytest.mark.parametrize(
    "r", [GOOD, "{payment_intent = 'p', created_at = '1', stage = 'queued', status = 'pending'}"]
)
def test_move_that_neither_takes_nor_leaves_a_lock_does_not_read_the_doubts(
    sync_redis: redis.Redis, r: str
) -> None:
    sync_redis.set("refunds:doubts:p", "text")
    for to in ("queued", "waiting", "settled"):
        assert checked(sync_redis, r, to=to) == 1


@pytest.mark.parametrize(("to", "status"), [("nowhere", "pending"), ("queued", "odd")])
def test_unknown_stage_or_status_is_refused(sync_redis: redis.Redis, to: str, status: str) -> None:
    with pytest.raises(ResponseError, match=" is none of "):
        call(sync_redis, f"check('a', {GOOD}, '{to}', '{status}', {{}}) return 1")


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


@pytest.mark.parametrize("detail", ["", ',"attempt":1', ',"attempt":2', ',"attempt":1,"ms":5'])
@pytest.mark.parametrize("label", ["accepted", "send", "later"])
@pytest.mark.parametrize("to", ["queued", "sending", "in_doubt"])
@pytest.mark.parametrize("source", ["queued", "sending", "in_doubt"])
def test_move_is_read_with_the_label_and_the_attempt_that_it_was_made_with(
    sync_redis: redis.Redis, source: str, to: str, label: str, detail: str
) -> None:
    before = [{"at": 5, "to": "queued"}, {"after": 1, "to": "sending"}]
    if source != "sending":
        before.append({"after": 1, "to": source, "label": "later"})
    claims = "2" if to == "sending" else "1"
    body = "return entry(ARGV[4], '7', ARGV[5], 'pending', ARGV[6], ARGV[7], ARGV[8])"
    written = call(sync_redis, body, source, to, f'"{label}"', detail, claims)
    *_, read = Moves().read([*map(json.dumps, before), written])
    told = json.loads(f'{{"label":"{label}"{detail}}}')
    if "sending" in {source, to}:
        told = {"attempt": int(claims)} | told
    assert {name: read[name] for name in read.keys() & {"label", "attempt", "ms"}} == told


@pytest.mark.parametrize(("source", "to"), [("queued", "sending"), ("sending", "in_doubt")])
def test_move_of_a_record_that_counts_no_attempts_is_written_whole(
    sync_redis: redis.Redis, source: str, to: str
) -> None:
    body = """return entry(ARGV[4], '7', ARGV[5], 'pending', '"later"', ',"attempt":1', nil)"""
    assert json.loads(call(sync_redis, body, source, to)) == {
        "after": NOW - 7,
        "to": to,
        "label": "later",
        "attempt": 1,
    }


def test_long_history_keeps_its_first_and_newest_moves(sync_redis: redis.Redis) -> None:
    first = json.dumps({"at": 5, "to": "queued", "label": "accepted"})
    moves = [json.dumps({"after": n, "to": "sending" if n % 2 else "in_doubt"}) for n in range(499)]
    sync_redis.rpush("refunds:history:a", first, *moves)
    call(sync_redis, _SHORTEN)
    assert sync_redis.llen("refunds:history:a") == 500
    sync_redis.rpush("refunds:history:a", json.dumps({"after": 1, "to": "waiting"}))
    call(sync_redis, _SHORTEN)
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
    call(sync_redis, _SHORTEN)
    again: Any = sync_redis.lindex("refunds:history:a", 100)
    assert json.loads(again) == {
        "left_out": 3,
        "claims": 2,
        "after": 99 + 100 + 101,
        "to": "sending",
    }


def test_history_that_cannot_be_read_is_left_as_it_is(sync_redis: redis.Redis) -> None:
    sync_redis.rpush("refunds:history:a", *["broken"] * 501)
    call(sync_redis, _SHORTEN)
    assert sync_redis.llen("refunds:history:a") == 501
