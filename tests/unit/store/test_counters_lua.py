"""The names that counters have."""

from __future__ import annotations

import redis

from tests.unit.store.lua_calls import call


def test_unknown_names_count_as_other(sync_redis: redis.Redis) -> None:
    assert call(sync_redis, "return currency_name('eur')") == "eur"
    assert call(sync_redis, "return currency_name('zzz')") == "other"
    assert call(sync_redis, "return currency_name(nil)") == "unknown"
    assert call(sync_redis, "return code_name('card_declined')") == "card_declined"
    assert call(sync_redis, "return code_name('zzz')") == "other"
    assert call(sync_redis, "return code_name(nil)") == "other"
