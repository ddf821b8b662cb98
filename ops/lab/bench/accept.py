"""How fast a file becomes accepted refunds.

Validated, compared with the records, recorded, enqueued.

`./ops/dev python -m ops.lab.bench.accept` imports files of 10,000, 100,000 and a million rows on a
throw-away server, each write on disk before it counts, and prints one line of JSON a file: rows a
second of each pass and of all together, what they cost in CPU of this process and of the server,
the peak of memory, and how long `batch show` takes afterwards. `--profile` prints where accepting
spends its time instead.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from ops.lab.bench.validate import peak_mb, write_csv
from worker.batches import close_batch, compare, look_at_batch, open_batch
from worker.client import Refunds
from worker.importer import ImportOptions, Source, Validation, accepted, open_source, validate
from worker.importer.prefetch import ahead
from worker.model.refund import Lane
from worker.sandbox.redis_server import running_server
from worker.settings import Settings

T = TypeVar("T")

SIZES: Final = (10_000, 100_000, 1_000_000)
PROFILE_LINES: Final = 30
BATCH: Final = "bench"
_LOOKS: Final = 20


class Clock:
    """Time and CPU of named passes."""

    def __init__(self, refunds: Refunds) -> None:
        self._refunds = refunds
        self.passes: dict[str, dict[str, float]] = {}

    def timed(self, name: str, rows: int, run: Callable[[], T]) -> T:
        """Run a pass over so many rows and note what it took."""
        started, used, served = time.perf_counter(), time.process_time(), self._server_cpu()
        result = run()
        seconds = time.perf_counter() - started
        self.passes[name] = {
            "rows_a_second": round(rows / seconds),
            "cpu_us_a_row": round((time.process_time() - used) / rows * 1e6, 1),
            "server_cpu_us_a_row": round((self._server_cpu() - served) / rows * 1e6, 1),
            "seconds": seconds,
        }
        return result

    def _server_cpu(self) -> float:
        facts: Any = self._refunds.store.redis.info("cpu")
        return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])


def accept(refunds: Refunds, source: Source, validation: Validation) -> int:
    """Record and enqueue every row, as `refunds import` does, and return how many were new."""
    open_batch(
        refunds.store, BATCH, file=source.name, digest=source.digest, rows=validation.summary.rows
    )
    created = 0
    with ahead(row.request for row in accepted(source, validation)) as ready:
        for _, made in refunds.submit_stream(ready, lane=Lane.BULK, batch_id=BATCH):
            created += made.result == "created"
    close_batch(refunds.store, BATCH, handed_in=created, conflicting=0)
    return created


def measured(path: Path, *, profile: bool) -> dict[str, Any]:
    """Import one file into an empty server and return the figures."""
    before = peak_mb()
    with (
        running_server() as server,
        Refunds(settings=Settings.load(redis_url=server.url)) as refunds,
    ):
        with open_source(path, ImportOptions()) as source:
            rows = sum(1 for _ in source.text()) - 1
            clock = Clock(refunds)
            validation = clock.timed("validate", rows, lambda: validate(source))
            found = clock.timed(
                "compare", rows, lambda: compare(refunds.store, accepted(source, validation))
            )
            if profile:
                profiler = cProfile.Profile()
                profiler.runcall(accept, refunds, source, validation)
                pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(
                    PROFILE_LINES
                )
                return {}
            created = clock.timed("accept", rows, lambda: accept(refunds, source, validation))
        if not created == found.fresh == rows:
            raise SystemExit(f"{created} of {rows} rows were accepted")
        started = time.perf_counter()
        for _ in range(_LOOKS):
            look_at_batch(refunds.store, BATCH)
        show_ms = (time.perf_counter() - started) / _LOOKS * 1e3
    seconds = sum(figures.pop("seconds") for figures in clock.passes.values())
    return {
        "rows": rows,
        **clock.passes,
        "all_rows_a_second": round(rows / seconds),
        "batch_show_ms": round(show_ms, 2),
        "peak_mb": round(peak_mb(), 1),
        "of_which_python_mb": round(before, 1),
    }


def main() -> None:
    """Measure the sizes asked for, each in a process of its own, so that a peak is the file's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, action="append", help="may be given more than once")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.file is not None:
        figures = measured(arguments.file, profile=arguments.profile)
        if figures:
            sys.stdout.write(json.dumps(figures) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows or ([100_000] if arguments.profile else SIZES):
            path = Path(folder) / f"{rows}.csv"
            write_csv(path, rows, 0, "refund_id")
            command = [sys.executable, "-m", "ops.lab.bench.accept", "--file", str(path)]
            subprocess.run(command + ["--profile"] * arguments.profile, check=True)  # noqa: S603 - this very module


if __name__ == "__main__":
    main()
