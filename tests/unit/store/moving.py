"""Keys that the moves of a record read and write, as a test sets and sees them."""

from __future__ import annotations

from typing import Any

import redis

NOW = 1_000_000
RETENTION = 60_000


def held(client: redis.Redis, key: str) -> dict[str, str]:
    """Return a hash."""
    found: Any = client.hgetall(f"refunds:{key}")
    return dict(found)


def scored(client: redis.Redis, key: str) -> dict[str, float]:
    """Return a sorted set."""
    found: Any = client.zrange(f"refunds:{key}", 0, -1, withscores=True)
    return dict(found)


def put(client: redis.Redis, key: str, fields: Any) -> None:
    """Store a hash."""
    client.hset(f"refunds:{key}", mapping=fields)


def stage(client: redis.Redis, refund_id: str, name: str, **fields: str) -> None:
    """Store a record at a stage."""
    put(client, f"refund:{refund_id}", {"stage": name, **fields})
