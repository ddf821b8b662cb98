"""Celery with one thread a call in flight, and one `httpx.Client` that the threads share."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import redis
from celery import Celery

from ops.lab.bench.peers import job

app = Celery("peer", broker=job.BROKER_URL, task_ignore_result=True, task_acks_late=True)
records = redis.Redis.from_url(job.RECORDS_URL, max_connections=job.CONNECTIONS)
client = httpx.Client(
    base_url=job.PROVIDER,
    auth=(job.KEY, ""),
    timeout=job.TIMEOUT_SECONDS,
    limits=httpx.Limits(max_connections=job.CONNECTIONS, max_keepalive_connections=job.CONNECTIONS),
)


@app.task
def refund(refund_id: str, body: job.Body) -> None:
    """Make one refund."""
    key = job.record(refund_id)
    records.set(key, job.pending(body))
    reply = client.post(job.PATH, json=body, headers=job.headers(refund_id))
    reply.raise_for_status()
    records.set(key, job.succeeded(body, reply.json()), ex=job.RETENTION_SECONDS)


def accept(jobs: Iterable[job.Job]) -> None:
    """Hand in refunds one after the other."""
    for each in jobs:
        refund.delay(each.refund_id, each.body)
