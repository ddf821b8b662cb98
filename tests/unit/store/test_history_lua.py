"""The entries of a history, and how a long one is shortened."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from tests.unit.store.lua_calls import call
from tests.unit.store.moving import NOW
from worker.store.records import Moves

_SHORTEN = "shorten(P .. 'history:a', redis.call('LLEN', P .. 'history:a')) return 1"


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
