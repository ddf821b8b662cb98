"""Which record has a refund of the provider, and what contradicts a record."""

from __future__ import annotations

import pytest
import redis

from tests.unit.store.lua_calls import call
from tests.unit.store.moving import NOW, RETENTION, held, scored


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
