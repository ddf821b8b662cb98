"""Celery as its first pages have it: one process a call in flight, and `requests`."""

from __future__ import annotations

from collections.abc import Iterable

import redis
import requests
from celery import Celery

from ops.lab.bench.peers import job

app = Celery("peer", broker=job.BROKER_URL, task_ignore_result=True, task_acks_late=True)
records = redis.Redis.from_url(job.RECORDS_URL)
session = requests.Session()
session.auth = (job.KEY, "")


@app.task
def refund(refund_id: str, body: job.Body) -> None:
    """Make one refund."""
    key = job.record(refund_id)
    records.set(key, job.pending(body))
    reply = session.post(
        job.PROVIDER + job.PATH,
        json=body,
        headers=job.headers(refund_id),
        timeout=job.TIMEOUT_SECONDS,
    )
    reply.raise_for_status()
    records.set(key, job.succeeded(body, reply.json()), ex=job.RETENTION_SECONDS)


def accept(jobs: Iterable[job.Job]) -> None:
    """Hand in refunds one after the other."""
    for each in jobs:
        refund.delay(each.refund_id, each.body)
