"""Dramatiq with actors that are coroutines; its broker acknowledges a message once it is done."""

from __future__ import annotations

from collections.abc import Iterable

import dramatiq
import redis.asyncio
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO

from ops.lab.bench.peers import job

broker = RedisBroker(url=job.BROKER_URL)
broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)
records = redis.asyncio.Redis.from_url(job.RECORDS_URL, max_connections=job.CONNECTIONS)
client = job.client()


@dramatiq.actor
async def refund(refund_id: str, body: job.Body) -> None:
    """Make one refund."""
    key = job.record(refund_id)
    await records.set(key, job.pending(body))
    reply = await client.post(job.PATH, json=body, headers=job.headers(refund_id))
    reply.raise_for_status()
    await records.set(key, job.succeeded(body, reply.json()), ex=job.RETENTION_SECONDS)


def accept(jobs: Iterable[job.Job]) -> None:
    """Hand in refunds one after the other."""
    for each in jobs:
        refund.send(each.refund_id, each.body)
