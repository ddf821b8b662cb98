"""The worker with many refunds a message, as for a file: `submit_many`."""

from __future__ import annotations

from collections.abc import Iterable

from ops.lab.bench.peers import job
from worker.client import Refunds


def accept(jobs: Iterable[job.Job]) -> None:
    """Hand in all refunds in one call."""
    with Refunds.from_env() as refunds:
        refunds.submit_many(each.request for each in jobs)
