"""A record as it is stored, and the index that a refund is in."""

from __future__ import annotations

import pytest
import redis

from tests.unit.store.lua_calls import call


@pytest.mark.parametrize(("since", "doubted"), [("'5'", "1"), ("''", None), ("nil", None)])
def test_a_doubt_is_remembered(sync_redis: redis.Redis, since: str, doubted: str | None) -> None:
    body = f"local set = {{doubt_since = {since}}} keep_doubt(set) return set.doubted or false"
    assert call(sync_redis, body) == doubted


@pytest.mark.parametrize(
    ("stage", "status", "lane", "index"),
    [
        ("settled", "failed", "refunds.bulk", "failed"),
        ("queued", "pending", "refunds.bulk", "queued.bulk"),
        ("queued", "pending", "refunds", "queued"),
        ("sending", "pending", "refunds.bulk", "sending"),
    ],
)
def test_refund_is_in_the_index_of_its_stage_or_status(
    sync_redis: redis.Redis, stage: str, status: str, lane: str, index: str
) -> None:
    assert call(sync_redis, "return bucket(ARGV[4], ARGV[5], ARGV[6])", stage, status, lane) == (
        index
    )
