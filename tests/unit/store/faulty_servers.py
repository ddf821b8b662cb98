"""Servers that may forget or be slow to write, and the commands that tests send them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio

from tests.factories import a_request
from tests.support.store_world import LEASE
from worker.model.refund import Lane
from worker.sandbox.redis_server import ThrowawayServer
from worker.store import claims, creations
from worker.store.scripts import Command


def accept(refund_id: str = "a") -> Command[creations.Created]:
    return creations.create(a_request(refund_id, payment_intent=f"pi_{refund_id}"), Lane.SINGLE)


def claim(refund_id: str = "a") -> Command[claims.Claim]:
    return claims.claim(refund_id, "send", token="t", lease=LEASE)


@contextmanager
def client_of(server: ThrowawayServer) -> Iterator[redis.Redis]:
    """A client of the emptied server, whose statistics begin at zero."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.flushall()
        client.config_resetstat()
        yield client


def waits(client: redis.Redis) -> int:
    """How often the server was asked to wait for its disk."""
    statistics: Any = client.info("commandstats")
    return int(statistics.get("cmdstat_waitaof", {"calls": 0})["calls"])


def filled(client: redis.Redis) -> None:
    """Fill the server, so that it rewrites its file so slowly that the test is over before the
    rewrite is.
    """
    with client.pipeline(transaction=False) as pipeline:
        for number in range(2000):
            pipeline.set(f"filler:{number}", "x" * 100)
        pipeline.execute()
    client.config_set("rdb-key-save-delay", "10000")


def rewriting_for_long(server: ThrowawayServer, client: redis.Redis) -> None:
    """Let the filled server begin to rewrite its file."""
    filled(client)
    client.bgrewriteaof()
    persistence: Any = client.info("persistence")
    assert persistence["aof_rewrite_in_progress"] == 1, server.url
