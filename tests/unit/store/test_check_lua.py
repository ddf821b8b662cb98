"""What must hold before a move is written."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from tests.factories import a_request
from tests.unit.store.lua_calls import call
from tests.unit.store.moving import put
from worker.errors import NotStorable
from worker.model.refund import Lane
from worker.store import creations
from worker.store.store import Store


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
