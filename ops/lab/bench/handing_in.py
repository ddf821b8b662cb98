"""A producer of single refunds alone in its process: alone, in a stream, and from many threads.

`python -m ops.lab.bench.handing_in COUNT THREADS` prints JSON: the seconds of each `submit` that
waits for no other and of a bare write of as many bytes beside each, and how many a second
`submit_many` and the threads hand in.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ops.lab.bench.orders import requests
from worker.client import Refunds
from worker.model.refund import Lane
from worker.model.request import RefundRequest, request_body

WARM: Final = 20
ALONE: Final = 20
"""Of so many refunds one is submitted alone."""


def accepted(count: int) -> int:
    """Return how many refunds are accepted in all."""
    return WARM + count // ALONE + 2 * count


def main() -> None:
    """Hand in, and report."""
    count, threads = int(sys.argv[1]), int(sys.argv[2])
    with Refunds.from_env() as refunds:
        for request in requests(WARM, name="warm"):
            refunds.submit(request)
        writes, submits = alone(refunds, requests(count // ALONE, name="alone"))
        stream = rate(count, lambda: refunds.submit_many(requests(count), lane=Lane.SINGLE))
        wanted = list(requests(count, name="thread"))
        with ThreadPoolExecutor(threads) as pool:
            together = rate(count, lambda: _all(pool, refunds, wanted, threads))
    said = {"writes": writes, "submits": submits, "stream": stream, "threads": together}
    sys.stdout.write(json.dumps(said))


def alone(refunds: Refunds, wanted: Iterable[RefundRequest]) -> tuple[list[float], list[float]]:
    """Return the seconds of a bare write and of a submit, one pair a refund."""
    writes, submits = [], []
    for request in wanted:
        body = request_body(request, 1)
        started = time.perf_counter()
        refunds.store.redis.set("bare", body)
        between = time.perf_counter()
        refunds.submit(request)
        submits.append(time.perf_counter() - between)
        writes.append(between - started)
    return writes, submits


def rate(count: int, run: Callable[[], object]) -> float:
    """Return how many a second a run hands in."""
    started = time.perf_counter()
    run()
    return count / (time.perf_counter() - started)


def _all(
    pool: ThreadPoolExecutor, refunds: Refunds, wanted: list[RefundRequest], threads: int
) -> None:
    def some(place: int) -> None:
        for request in wanted[place::threads]:
            refunds.submit(request)

    list(pool.map(some, range(threads)))


if __name__ == "__main__":
    main()
