"""Arguments, numbers and the time: what comes before every script, each called by itself."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from tests.unit.store.lua_calls import call

MOST = 999_999_999_999_999


@pytest.mark.parametrize("number", [0, 1, 99_999_999_999_999, MOST])
def test_whole_number_has_up_to_fifteen_digits(sync_redis: redis.Redis, number: int) -> None:
    assert call(sync_redis, "return int(whole('x', ARGV[4]))", str(number)) == str(number)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e3", " 1", str(MOST + 1), "0" * 16])
def test_what_is_not_a_whole_number_is_refused_with_its_name(
    sync_redis: redis.Redis, text: str
) -> None:
    with pytest.raises(ResponseError) as refused:
        call(sync_redis, "return whole('the share', ARGV[4])", text)
    assert f"REFUNDS_REFUSED the share {text} is not a whole number up to {MOST}" in str(
        refused.value
    )


def test_bound_of_a_whole_number_is_inclusive(sync_redis: redis.Redis) -> None:
    assert call(sync_redis, "return whole('x', ARGV[4], 7)", "7") == 7
    with pytest.raises(ResponseError, match="x 8 is not a whole number up to 7"):
        call(sync_redis, "return whole('x', ARGV[4], 7)", "8")


def test_refusals_show_forty_characters_of_a_value(sync_redis: redis.Redis) -> None:
    value = "abcdefghij" * 5
    with pytest.raises(ResponseError, match=f"x {value[:40]} is not a whole"):
        call(sync_redis, "return whole('x', ARGV[4])", value)
    with pytest.raises(ResponseError, match=f"REFUSED {value[:40]} is none of one two "):
        call(sync_redis, "return must_be_one_of(' one two ', ARGV[4])", value)


def test_missing_value_is_refused_as_an_empty_one(sync_redis: redis.Redis) -> None:
    with pytest.raises(ResponseError, match="REFUSED x  is not a whole number"):
        call(sync_redis, "return whole('x', nil)")
    with pytest.raises(ResponseError, match="REFUSED  is none of one two "):
        call(sync_redis, "return must_be_one_of(' one two ', nil)")


@pytest.mark.parametrize("word", ["one", "two"])
def test_name_in_a_list_is_known(sync_redis: redis.Redis, word: str) -> None:
    assert call(sync_redis, "must_be_one_of(' one two ', ARGV[4]) return 1", word) == 1


@pytest.mark.parametrize("word", ["", " ", "on", "ne", " one", "one ", "one two", "o.e", "t[w]o"])
def test_name_is_known_only_as_a_whole(sync_redis: redis.Redis, word: str) -> None:
    assert call(sync_redis, "return tostring(known(' one two ', ARGV[4]))", word) == "false"
    with pytest.raises(ResponseError, match=" is none of one two "):
        call(sync_redis, "return must_be_one_of(' one two ', ARGV[4])", word)


def test_name_that_is_a_pattern_is_compared_as_text(sync_redis: redis.Redis) -> None:
    assert call(sync_redis, "return tostring(known(' a.c ', 'a.c'))") == "true"
    assert call(sync_redis, "return tostring(known(' abc ', 'a.c'))") == "false"


def test_keys_of_another_type_end_a_script(sync_redis: redis.Redis) -> None:
    sync_redis.set("refunds:x", "text")
    for check in ("must_be_sorted", "must_be_list"):
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            call(sync_redis, f"{check}(P .. 'x') return 1")


@pytest.mark.parametrize("retention", ["", "x", "-1"])
def test_retention_is_a_whole_number(sync_redis: redis.Redis, retention: str) -> None:
    with pytest.raises(ResponseError, match=r"the retention .*is not a whole number"):
        call(sync_redis, "return 1", retention=retention)


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", "7"), ("-7", "-7"), ("1.5", "1.5"), ("", "0"), ("x", "0"), ("1x", "0"), ("0x10", "0")],
)
def test_text_that_is_not_a_number_counts_as_nothing(
    sync_redis: redis.Redis, text: str, number: str
) -> None:
    assert call(sync_redis, "return tostring(number(ARGV[4]))", text) == number
    assert call(sync_redis, "return tostring(number(false))") == "0"


def test_nothing_is_written_by_what_makes_memory_irrelevant(sync_redis: redis.Redis) -> None:
    sync_redis.set("refunds:nothing", "1")
    sync_redis.set("refunds:nothingx", "1")
    call(sync_redis, "at_any_memory() return 1")
    assert not sync_redis.exists("refunds:nothing")
    assert sync_redis.exists("refunds:nothingx")


@pytest.mark.parametrize(
    ("seconds", "microseconds", "time"),
    [("5", "999999", "5999"), ("5", "0", "5000"), ("1800000000", "1000", "1800000000001")],
)
def test_servers_time_is_in_whole_milliseconds(
    sync_redis: redis.Redis, seconds: str, microseconds: str, time: str
) -> None:
    first = """
    local server = redis
    local redis = {pcall = server.pcall}
    function redis.call(name, ...)
        if name == 'TIME' then return {ARGV[4], ARGV[5]} end
        return server.call(name, ...)
    end
    """
    read = call(sync_redis, "return int(NOW)", seconds, microseconds, now="", first=first)
    assert read == time


def clock(client: redis.Redis, at: int, ahead: int, server_now: int) -> tuple[int, int, int]:
    """Return the time, and what `clock` holds after it was read."""
    client.hset("refunds:clock", mapping={"at": at, "ahead": ahead})
    now = call(client, "return int(NOW)", now=server_now)
    held: Any = client.hmget("refunds:clock", "at", "ahead")
    return int(now), int(held[0]), int(held[1])


@pytest.mark.parametrize(
    ("at", "ahead", "server_now", "expected"),
    [
        # The server's clock is behind by more than a second: time continues from the largest seen.
        (5_000_000, 0, 4_000_000, (5_000_000, 5_000_000, 1_000_000)),
        # By a second or less: time stands still, and nothing is written.
        (5_000_000, 0, 4_999_000, (5_000_000, 5_000_000, 0)),
        (5_000_000, 0, 4_999_999, (5_000_000, 5_000_000, 0)),
        # Less than a second later: nothing is written.
        (5_000_000, 0, 5_000_000, (5_000_000, 5_000_000, 0)),
        (5_000_000, 0, 5_000_999, (5_000_999, 5_000_000, 0)),
        (5_000_000, 0, 5_001_000, (5_001_000, 5_001_000, 0)),
        # A minute and a bit without a script, on a server that has caught up: it is followed again.
        (5_000_000, 1, 5_060_000, (5_060_000, 5_060_000, 0)),
        (5_000_000, 1, 5_059_999, (5_060_000, 5_060_000, 1)),
        # Not while the server is behind by a minute or more, however much later it is.
        (5_000_000, 200_000, 4_940_000, (5_140_000, 5_140_000, 200_000)),
        # One that is behind by less was set right: time goes on from the largest seen.
        (5_000_000, 200_000, 4_940_001, (5_000_000, 5_000_000, 59_999)),
        (5_000_000, 100_000, 4_998_999, (5_000_000, 5_000_000, 1_001)),
        (5_000_000, 100_000, 4_999_999, (5_000_000, 5_000_000, 100_000)),
        (5_000_000, 100_000, 5_000_000, (5_000_000, 5_000_000, 100_000)),
        (5_000_000, 100_000, 5_001_000, (5_001_000, 5_001_000, 0)),
    ],
)
def test_time_continues_from_the_largest_seen(
    sync_redis: redis.Redis, at: int, ahead: int, server_now: int, expected: tuple[int, int, int]
) -> None:
    assert clock(sync_redis, at, ahead, server_now) == expected
