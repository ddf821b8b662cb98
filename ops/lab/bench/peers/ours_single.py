"""The worker with one refund a message: `submit`, one after the other."""

from __future__ import annotations

from collections.abc import Iterable

from ops.lab.bench.peers import job
from worker.client import Refunds


def accept(jobs: Iterable[job.Job]) -> None:
    """Hand in refunds one after the other."""
    with Refunds.from_env() as refunds:
        for each in jobs:
            refunds.submit(each.request)
