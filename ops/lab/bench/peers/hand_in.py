"""A producer alone in its process: hand in so many refunds, and print how many a second as JSON.

`python -m ops.lab.bench.peers.hand_in NAME COUNT`, where NAME is a module of this folder.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module

from ops.lab.bench.peers.job import Job
from ops.lab.bench.peers.jobs import jobs

started: list[float] = []


def watched(ready: Sequence[Job]) -> Iterator[Job]:
    """Yield the jobs, and note the time at which the second is asked for.

    By then what hands them in is connected.
    """
    yield ready[0]
    started.append(time.perf_counter())
    yield from ready[1:]


def main() -> None:
    """Hand in, and report."""
    name, count = sys.argv[1], int(sys.argv[2])
    ready = list(jobs(count))
    import_module(f"ops.lab.bench.peers.{name}").accept(watched(ready))
    seconds = time.perf_counter() - started[0]
    sys.stdout.write(json.dumps({"rate": (count - 1) / seconds}))


if __name__ == "__main__":
    main()
