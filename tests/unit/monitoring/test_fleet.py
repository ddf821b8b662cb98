"""Which workers run, and how fast they may call the provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from worker.monitoring import fleet
from worker.store.store import Store

if TYPE_CHECKING:
    import redis

NOW = 1_787_730_829_000


def test_workers_that_are_alive_are_listed_by_name_with_their_outages(
    any_redis: redis.Redis,
) -> None:
    any_redis.zadd("refunds:workers", {"w-2": NOW, "w-1": NOW - 29_000, "w-0": NOW - 31_000})
    any_redis.zadd("refunds:outages", {"w-1": NOW, "w-2": NOW - 31_000})
    found = fleet.read_fleet(Store(any_redis), NOW).workers
    assert [(each.name, each.is_answered) for each in found] == [("w-1", False), ("w-2", True)]


@pytest.mark.parametrize(("age_ms", "pace"), [(0, 0.5), (10_000, 0.7), (60_000, 1.0)])
def test_the_pace_recovers_after_an_answer_slow_down(
    any_redis: redis.Redis, age_ms: int, pace: float
) -> None:
    fields: dict[Any, Any] = {"pace": "0.5000", "paced_at": str(NOW - age_ms)}
    any_redis.hset("refunds:gate", mapping=fields)
    assert fleet.read_fleet(Store(any_redis), NOW).pace == pytest.approx(pace)


def test_without_such_an_answer_the_pace_is_full(any_redis: redis.Redis) -> None:
    assert fleet.read_fleet(Store(any_redis), NOW).pace == 1
