"""The refunds that all are given: the bench's requests, with the bodies that the worker sends."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ops.lab.bench.orders import requests
from ops.lab.bench.peers.job import Job
from worker.model.request import request_body


def jobs(count: int) -> Iterator[Job]:
    """Yield so many jobs, the same ones each time."""
    for request in requests(count):
        body = json.loads(request_body(request, 1))
        yield Job(refund_id=request.refund_id, body=body, request=request)
