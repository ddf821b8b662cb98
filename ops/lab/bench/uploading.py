"""A large file sent to the HTTP API: what memory the server needs for it, and how fast it is."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from ops.lab.bench.machine import cpu_seconds, resident_mb
from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import Rig, WrongCountError
from ops.lab.bench.serving import DOOR, prepared
from ops.lab.bench.table import Row, number
from ops.lab.bench.validate import write_csv

MOST_MB: Final = 120.0
_PATIENCE: Final = 600.0


def upload(plan: Plan) -> Iterator[Row]:
    """Yield the memory and the time of one file; each of its rows becomes a record."""
    with Rig(plan.cores) as rig:
        headers = prepared(rig) | {"Content-Type": "text/csv"}
        process, url = rig.serve(DOOR)
        before = resident_mb(process.pid)
        path = rig.folder / "refunds.csv"
        write_csv(path, plan.uploaded, 0, "refund_id")
        used, started = cpu_seconds(process.pid), time.perf_counter()
        with path.open("rb") as file:
            begun = _called(url, "POST", "/v1/batches?name=bench", headers, file)
        answered = time.perf_counter() - started
        rig.until(
            lambda: _called(url, "GET", f"/v1/batches/{begun['batch_id']}", headers)["imported_at"],
            "every row is imported",
        )
        seconds, cpu = time.perf_counter() - started, cpu_seconds(process.pid) - used
        peak, late = resident_mb(process.pid, peak=True), resident_mb(process.pid)
        rig.stop_serving(process)
        rig.count(0, unsent=plan.uploaded)
    yield Row(
        figure="door: memory of an upload",
        setting=f"a file of {plan.uploaded:,} rows",
        measured=f"{number(peak)} MB at most; {number(before)} MB before, {number(late)} MB after",
        to_reach=f"under {MOST_MB:g} MB",
        reached=peak < MOST_MB,
    )
    yield Row(
        figure="door: rows a second of an upload",
        setting="the same, from the first byte until every row is a record on disk",
        measured=(
            f"{number(plan.uploaded / seconds)}, {number(cpu / plan.uploaded * 1e6)} µs CPU;"
            f" answered after {number(answered)} of {number(seconds)} s"
        ),
    )


def _called(
    url: str, method: str, path: str, headers: Mapping[str, str], body: Any = None
) -> dict[str, Any]:
    """Return the answer to one request. Raises `WrongCountError` if it is refused."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_PATIENCE)
    try:
        size = {} if body is None else {"Content-Length": str(_size(body))}
        connection.request(method, path, body, dict(headers) | size)
        with connection.getresponse() as response:
            answer: dict[str, Any] = json.loads(response.read())
            if response.status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED}:
                raise WrongCountError(f"{method} {path} was answered with {answer}")
            return answer
    finally:
        connection.close()


def _size(file: Any) -> int:
    size: int = file.seek(0, 2)
    file.seek(0)
    return size
