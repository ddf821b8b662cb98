"""Taskiq over a Redis stream, the broker of its makers that acknowledges what is done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import redis.asyncio
from taskiq_redis import RedisStreamBroker

from ops.lab.bench.peers import job

broker = RedisStreamBroker(job.BROKER_URL, max_connection_pool_size=job.CONNECTIONS)
records = redis.asyncio.Redis.from_url(job.RECORDS_URL, max_connections=job.CONNECTIONS)
client = job.client()


@broker.task
async def refund(refund_id: str, body: job.Body) -> None:
    """Make one refund."""
    key = job.record(refund_id)
    await records.set(key, job.pending(body))
    reply = await client.post(job.PATH, json=body, headers=job.headers(refund_id))
    reply.raise_for_status()
    await records.set(key, job.succeeded(body, reply.json()), ex=job.RETENTION_SECONDS)


async def _kicked(jobs: Iterable[job.Job]) -> None:
    await broker.startup()
    for each in jobs:
        await refund.kiq(each.refund_id, each.body)
    await broker.shutdown()


def accept(jobs: Iterable[job.Job]) -> None:
    """Hand in refunds one after the other."""
    asyncio.run(_kicked(jobs))
