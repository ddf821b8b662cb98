"""Who is put to the proof: the product, and the naive worker that shows that the judge can catch
one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis

from ops.lab.prove import naive_worker
from ops.lab.prove.missing import waits_for_the_missing
from worker.client import Refunds
from worker.model.refund import Lane
from worker.model.request import RefundRequest, request_body
from worker.settings import Settings

_CELERY: Final = (
    "worker",
    "-P",
    "threads",
    "--without-gossip",
    "--without-mingle",
    "-l",
    "info",
    "-n",
)


class Product:
    """The product's own worker under Celery, with its seams in a process of ours where it is to
    suffer.
    """

    name = "ours"
    is_ours = True

    def worker(self, asked: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, str]]:
        """Return Celery's command, through the faulty worker's module where something is asked."""
        celery = ["celery", "-A", "worker.app", *_CELERY, name]
        if asked:
            return [
                sys.executable,
                "-m",
                "ops.lab.prove.faulty_worker",
                json.dumps(asked),
                *celery,
            ], {}
        return [sys.executable, "-m", *celery], {}

    def open(self, redis_url: str) -> None:
        """Build the producer's door."""
        self.refunds = Refunds(settings=Settings.load(redis_url=redis_url))

    def close(self) -> None:
        """Close it."""
        self.refunds.close()

    def accept(self, requests: Sequence[RefundRequest]) -> None:
        """Hand half in one by one, and half as rows of a file."""
        half = (len(requests) + 1) // 2
        for request in requests[:half]:
            self.refunds.submit(request)
        if requests[half:]:
            self.refunds.submit_many(requests[half:], lane=Lane.BULK)

    def unsettled(self, refund_ids: Sequence[str]) -> int:
        """Return how many are neither settled nor before a person, and do not wait for what is
        missing.
        """
        ends = {"settled", "review"}
        fields = ("stage", "payment_intent", "provider_refund_id", "missing_since")
        records = [
            dict(zip(fields, values, strict=True)) for values in self._fields(refund_ids, *fields)
        ]
        return sum(
            record["stage"] not in ends and not waits_for_the_missing(record) for record in records
        )

    def sending(self, refund_ids: Sequence[str]) -> int:
        """Return how many are in `sending`."""
        return sum(stage == "sending" for (stage,) in self._fields(refund_ids, "stage"))

    def _fields(self, refund_ids: Sequence[str], *names: str) -> list[Any]:
        with self.refunds.store.redis.pipeline(transaction=False) as pipeline:
            for refund_id in refund_ids:
                pipeline.hmget(f"refunds:refund:{refund_id}", *names)
            return list(pipeline.execute())


class Naive:
    """The control."""

    name = "control"
    is_ours = False

    def worker(self, asked: Mapping[str, Any], name: str) -> tuple[list[str], dict[str, str]]:
        """Return Celery's command; its crash points are its own."""
        celery = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "ops.lab.prove.naive_worker",
            *_CELERY,
            name,
            "-c",
            "16",
        ]
        crash = f"{asked['point']}:{asked.get('after', 1)}" if "point" in asked else ""
        return celery, {"NAIVE_CRASH": crash}

    def open(self, redis_url: str) -> None:
        """Connect the producer."""
        self._records = redis.Redis.from_url(redis_url, decode_responses=True)
        naive_app = naive_worker.app
        self._broker = naive_app.connection_for_write(redis_url)

    def close(self) -> None:
        """Leave."""
        self._broker.release()
        self._records.close()

    def accept(self, requests: Sequence[RefundRequest]) -> None:
        """Write the status, then send the message."""
        for request in requests:
            body = json.loads(request_body(request, 1))
            self._records.hsetnx(naive_worker.KEY.format(request.refund_id), "status", "pending")
            naive_worker.refund.apply_async((request.refund_id, body), connection=self._broker)

    def unsettled(self, refund_ids: Sequence[str]) -> int:
        """Return how many have no final status."""
        ends = {"succeeded", "failed", "canceled"}
        return sum(status not in ends for status in self._statuses(refund_ids))

    def sending(self, refund_ids: Sequence[str]) -> int:
        """Return 0 where nothing is pending: it does not tell what it is sending."""
        return self.unsettled(refund_ids)

    def _statuses(self, refund_ids: Sequence[str]) -> list[Any]:
        with self._records.pipeline(transaction=False) as pipeline:
            for refund_id in refund_ids:
                pipeline.hget(naive_worker.KEY.format(refund_id), "status")
            return list(pipeline.execute())
