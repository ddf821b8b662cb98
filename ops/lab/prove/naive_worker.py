"""The control: the worker that anyone writes first.

Celery with late acks, tenacity around the POST, status in Redis.

It sends the same idempotency key each time and gives up as failed. Its own crash points are named
by `NAIVE_CRASH`.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import Any, Final

import httpx
import redis
from celery import Celery
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

TASK: Final = "naive.refund"
QUEUE: Final = "refunds"
KEY: Final = "naive:{}"
_point, _, _after = os.environ.get("NAIVE_CRASH", "").partition(":")
_arrivals = count(1)

app = Celery("naive", broker=os.environ.get("REFUNDS_REDIS_URL"), set_as_current=False)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    task_default_queue=QUEUE,
    worker_prefetch_multiplier=1,
    # As short as it may be, in its favour: a killed worker's message comes back after that.
    broker_transport_options={"visibility_timeout": 15, "unacked_restore_interval": 5},
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
)


def reached(point: str) -> None:
    """Die here if it is the point named, and its turn."""
    if point == _point and next(_arrivals) == int(_after):
        os.kill(os.getpid(), signal.SIGKILL)


@retry(
    retry=retry_if_exception_type(httpx.HTTPError),
    stop=stop_after_attempt(5),
    wait=wait_exponential(0.2),
    reraise=True,
)
def _post(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    reached("before bytes")
    key = body["metadata"]["refund_id"]
    reply = client.post(
        "/v1/refunds", json=body, headers={"Idempotency-Key": key}
    ).raise_for_status()
    answer: dict[str, Any] = reply.json()
    return answer


@app.task(name=TASK)  # type: ignore[untyped-decorator]  # celery carries no types
def refund(refund_id: str, body: dict[str, Any]) -> None:
    """Refund once, it hopes."""
    reached("received")
    records = redis.Redis.from_url(os.environ["REFUNDS_REDIS_URL"], decode_responses=True)
    auth = (os.environ["REFUNDS_API_KEY"], "")
    timeout = float(os.environ["REFUNDS_REQUEST_TIMEOUT_SECONDS"])
    with (
        records,
        httpx.Client(base_url=os.environ["REFUNDS_API_URL"], auth=auth, timeout=timeout) as client,
    ):
        if records.hget(KEY.format(refund_id), "status") != "pending":
            return
        try:
            made = _post(client, body)
        except (httpx.HTTPError, ValueError) as error:
            records.hset(KEY.format(refund_id), mapping={"status": "failed", "error": str(error)})
            return
        reached("read unsaved")
        records.hset(
            KEY.format(refund_id), mapping={"status": made["status"], "amount": made["amount"]}
        )
        reached("saved unacked")
