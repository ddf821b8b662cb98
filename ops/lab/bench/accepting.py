"""A producer alone in its process.

Accept so many refunds with `submit_many`, and print what that took as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator

from ops.lab.bench.machine import resident_mb
from ops.lab.bench.orders import requests
from worker.client import Refunds
from worker.model.request import RefundRequest

early: list[float] = []


def watched(count: int) -> Iterator[RefundRequest]:
    """Yield the requests, and note the memory once a fifth of them was taken."""
    for number, request in enumerate(requests(count)):
        if number == count // 5:
            early.append(resident_mb(os.getpid()))
        yield request


def main() -> None:
    """Accept and report."""
    count = int(sys.argv[1])
    with Refunds.from_env() as refunds:
        refunds.submit_many(requests(200, name="warm"))
        started, used = time.perf_counter(), time.process_time()
        report = refunds.submit_many(watched(count - 200))
        seconds, used = time.perf_counter() - started, time.process_time() - used
    facts = {
        "rate": report.created / seconds,
        "cpu_us": used / report.created * 1e6,
        "early_mb": early[0],
        "end_mb": resident_mb(os.getpid(), peak=True),
    }
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main()
