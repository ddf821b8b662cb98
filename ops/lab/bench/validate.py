"""How fast a CSV of refunds is validated on one core, and how much memory that takes, whatever the
file's length.

    ./ops/dev python ops/lab/bench/validate.py --rows 200000
    ./ops/dev python ops/lab/bench/validate.py --id-from metadata.order,payment_intent --profile

Each size runs in a process of its own, so that the peak is its own; the rate by CPU time is what
one core does when others use it too. Without --rows: 10,000, 100,000 and 1,000,000.
Columns: refund_id, payment_intent, amount, reason, metadata.order, metadata.channel.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from worker.importer import ImportOptions, Summary, accepted, open_source, validate

SIZES = (10_000, 100_000, 1_000_000)
HEADER = "payment_intent,amount,reason,metadata.order,metadata.channel"
CHANNELS = ("web", "store", "phone", "app")
PROFILE_LINES = 18


def write_csv(path: Path, rows: int, bad_every: int, id_column: str) -> None:
    """Writes a file of refunds; with `bad_every` each such row has an amount that is none."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"{id_column},{HEADER}\n")
        for number in range(rows):
            amount = "1e3" if bad_every and number % bad_every == 0 else str(number % 90_000 + 100)
            channel = CHANNELS[number % len(CHANNELS)]
            payment = f"pi_{1787730829493927936 + number}"
            file.write(
                f"order-{number}-1,{payment},{amount},requested_by_customer,{number},{channel}\n"
            )


def peak_mb() -> float:
    """Return the most memory this process ever held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measured(path: Path, options: ImportOptions) -> dict[str, Any]:
    """Return the rates of judging the file and of reading its requests again, and the peak."""
    before = peak_mb()
    started, cpu = time.perf_counter(), time.process_time()
    with open_source(path, options) as source:
        validation = validate(source)
        judged_at, judged_cpu = time.perf_counter(), time.process_time()
        requests = sum(1 for _ in accepted(source, validation))
        ended = time.perf_counter()
    summary: Summary = validation.summary
    return {
        "rows": summary.rows,
        "accepted": requests,
        "errors": summary.errors,
        "validate_rows_a_second": round(summary.rows / (judged_at - started)),
        "validate_rows_a_cpu_second": round(summary.rows / (judged_cpu - cpu)),
        "read_again_rows_a_second": round(summary.rows / (ended - judged_at)),
        "peak_mb": round(peak_mb(), 1),
        "of_which_python_mb": round(before, 1),
    }


def profiled(path: Path, options: ImportOptions, out: IO[str]) -> None:
    """Prints where validating spends its time."""
    profile = cProfile.Profile()
    with open_source(path, options) as source:
        profile.runcall(validate, source)
    pstats.Stats(profile, stream=out).sort_stats("tottime").print_stats(PROFILE_LINES)


def main() -> None:
    """Measures the sizes asked for, one line of JSON each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, action="append", help="may be given more than once")
    parser.add_argument(
        "--bad-every", type=int, default=0, metavar="N", help="every n-th row is refused"
    )
    parser.add_argument(
        "--id-from", default="", help="make ids from these columns instead (refund_id is left out)"
    )
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    id_from = tuple(filter(None, arguments.id_from.split(",")))
    options = ImportOptions(id_from=id_from, ignore_extra=bool(id_from))
    if arguments.file is not None:
        sys.stdout.write(json.dumps(measured(arguments.file, options)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows or ([100_000] if arguments.profile else SIZES):
            path = Path(folder) / f"{rows}.csv"
            write_csv(path, rows, arguments.bad_every, "row" if id_from else "refund_id")
            if arguments.profile:
                profiled(path, options, sys.stdout)
                continue
            command = [
                sys.executable,
                __file__,
                "--file",
                str(path),
                "--id-from",
                arguments.id_from,
            ]
            subprocess.run(command, check=True)  # noqa: S603 - this very file


if __name__ == "__main__":
    main()
