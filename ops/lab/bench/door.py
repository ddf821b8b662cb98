"""What the HTTP API costs: durable POSTs beside a bare handler, memory, and the answers of `wait`.

The server has a core of its own. Redis and the client share the other, in every run alike.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final
from urllib.parse import urlsplit

from ops.lab.bench.machine import cpu_seconds, resident_mb
from ops.lab.bench.orders import requests
from ops.lab.bench.plan import Plan
from ops.lab.bench.posting import Load, message, posted
from ops.lab.bench.rig import Rig, WrongCountError
from ops.lab.bench.serving import DOOR, prepared
from ops.lab.bench.table import Row, at_least, number, quantile, spread
from ops.lab.bench.uploading import upload

LEAST_RATE: Final = 1_200
LONGEST_WAIT_MS: Final = 15.0
FLAT_MB: Final = 2.0
CONNECTIONS: Final = 64
WARM: Final = 500
PATH: Final = "/v1/refunds"
_ACCEPTED, _OK = 202, 200
_HALF_MS: Final = 0.5
"""Records hold whole milliseconds, rounded down."""
_FLOOR: Final = (sys.executable, "-m", "ops.lab.bench.door_floor")


@dataclass(frozen=True, kw_only=True)
class Posts:
    """A run of POSTs against one server."""

    load: Load
    cpu: float
    server_cpu: float
    early_mb: float
    late_mb: float
    peak_mb: float

    @property
    def rate(self) -> float:
        """POSTs a second."""
        return len(self.load.waits) / self.load.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds of the HTTP server a POST."""
        return self.cpu / len(self.load.waits) * 1000

    @property
    def server_us(self) -> float:
        """Processor microseconds of Redis a POST."""
        return self.server_cpu / len(self.load.waits) * 1e6


def door(plan: Plan, wanted: frozenset[str]) -> Iterator[Row]:
    """Yield the rate and cost of POSTs beside the floor, the memory, and the time to an answer."""
    if "door" in wanted:
        doors, floors = [], []
        for round_ in range(plan.rounds):
            for is_floor in (False, True) if round_ % 2 == 0 else (True, False):
                (floors if is_floor else doors).append(_posts(plan, plan.posted, is_floor=is_floor))
        yield from _beside(doors, floors)
        yield _memory(plan)
        yield from _waits(plan)
    yield from upload(plan)


def _beside(doors: list[Posts], floors: list[Posts]) -> Iterator[Row]:
    rates = [own.rate for own in doors]
    waits = [wait * 1000 for own in doors for wait in own.load.waits]
    bare = [wait * 1000 for floor in floors for wait in floor.load.waits]
    setting = f"{CONNECTIONS} connections, each answer after its record is on disk"
    yield Row(
        figure="door: POSTs a second",
        setting=setting,
        measured=spread(rates),
        floor=spread([floor.rate for floor in floors]) + ", a bare handler",
        ratio=spread([own.rate / floor.rate for own, floor in zip(doors, floors, strict=True)]),
        to_reach=f"at least {LEAST_RATE:,}",
        reached=at_least(rates, LEAST_RATE),
    )
    yield Row(
        figure="door: CPU a POST",
        setting="the same",
        measured=spread([own.cpu_ms for own in doors], "ms"),
        floor=spread([floor.cpu_ms for floor in floors], "ms"),
        ratio=spread([own.cpu_ms / floor.cpu_ms for own, floor in zip(doors, floors, strict=True)]),
    )
    yield Row(
        figure="door: CPU of Redis a POST",
        setting="the same; the door also sends its messages there",
        measured=spread([own.server_us for own in doors], "µs"),
        floor=spread([floor.server_us for floor in floors], "µs"),
        ratio=spread(
            [own.server_us / floor.server_us for own, floor in zip(doors, floors, strict=True)]
        ),
    )
    yield Row(
        figure="door: time to an answer, p50 and p99",
        setting="the same",
        measured=f"{number(quantile(waits, 0.5))} and {number(quantile(waits, 0.99))} ms",
        floor=f"{number(quantile(bare, 0.5))} and {number(quantile(bare, 0.99))} ms",
    )


def _memory(plan: Plan) -> Row:
    run = _posts(plan, plan.posted_held, is_floor=False)
    return Row(
        figure="door: memory",
        setting=f"{plan.posted_held:,} POSTs, {CONNECTIONS} connections",
        measured=(
            f"{number(run.peak_mb)} MB at most; {number(run.early_mb)} MB after a fifth,"
            f" {number(run.late_mb)} MB at the end"
        ),
        to_reach="flat",
        reached=run.late_mb - run.early_mb < FLAT_MB,
    )


def _posts(plan: Plan, count: int, *, is_floor: bool) -> Posts:
    """Send so many POSTs, and count that each 202 is a record and nothing else is one."""
    with Rig(plan.cores) as rig:
        headers = prepared(rig)
        process, url = rig.serve(_FLOOR if is_floor else DOOR)
        headers["Host"] = urlsplit(url).netloc
        wanted = creations(headers, WARM + count)
        # The first requests of a new process pay for connections and the token, once.
        accepted(url, islice(wanted, WARM))
        used, served = cpu_seconds(process.pid), cpu_seconds(rig.server.pid)
        fifth = accepted(url, islice(wanted, count // 5))
        early = resident_mb(process.pid)
        rest = accepted(url, wanted)
        run = Posts(
            load=Load(
                seconds=fifth.seconds + rest.seconds, waits=fifth.waits + rest.waits, refused=0
            ),
            cpu=cpu_seconds(process.pid) - used,
            server_cpu=cpu_seconds(rig.server.pid) - served,
            early_mb=early,
            late_mb=resident_mb(process.pid),
            peak_mb=resident_mb(process.pid, peak=True),
        )
        rig.stop_serving(process)
        rig.count(0, unsent=WARM + count)
        return run


def creations(headers: dict[str, str], count: int, *, path: str = PATH) -> Iterator[bytes]:
    """Yield so many POSTs, each of another refund."""
    for request in requests(count):
        fields = {
            "refund_id": request.refund_id,
            "payment_intent": request.payment_intent,
            "amount": request.amount,
            "reason": request.reason,
            "metadata": dict(request.metadata),
        }
        yield message("POST", path, headers, json.dumps(fields).encode("ascii"))


def accepted(url: str, messages: Iterator[bytes]) -> Load:
    """Send POSTs; raises `WrongCountError` if one is not answered with 202."""
    load = asyncio.run(posted(url, messages, connections=CONNECTIONS, status=_ACCEPTED))
    if load.refused:
        raise WrongCountError(f"{load.refused} of {len(load.waits)} POSTs were not accepted")
    return load


def _waits(plan: Plan) -> Iterator[Row]:
    """Yield how long after settling a POST with `wait` is answered: one at a time, and many."""
    taken: dict[int, list[float]] = {1: [], CONNECTIONS: []}
    for _ in range(plan.rounds):
        for at_once, all_lates in taken.items():
            all_lates.extend(_late(plan, at_once, plan.idle * (1 if at_once == 1 else 4)))
    for at_once, lates in taken.items():
        is_judged = at_once == 1
        p50 = quantile(lates, 0.5)
        yield Row(
            figure="door: from settled to the answer of wait",
            setting=f"{len(lates)} POSTs, {at_once} waiting at once; {plan.modes[0].shown}",
            measured=f"p50 {number(p50)} ms, p99 {number(quantile(lates, 0.99))} ms",
            to_reach=f"p50 within {LONGEST_WAIT_MS:g} ms" if is_judged else "",
            reached=p50 <= LONGEST_WAIT_MS if is_judged else None,
        )


def _late(plan: Plan, at_once: int, count: int) -> list[float]:
    """Return the milliseconds from each refund's settling, by its record, to its answer."""
    lates: list[float] = []

    def seen(body: bytes, at: float) -> None:
        record: dict[str, Any] = json.loads(body)
        settled = datetime.fromisoformat(record["updated_at"]).timestamp() * 1000
        lates.append(at * 1000 - settled - _HALF_MS)

    with Rig(plan.cores, plan.modes[0]) as rig:
        headers = prepared(rig)
        rig.start_worker()
        rig.await_workers()
        process, url = rig.serve(DOOR, place=1)
        headers["Host"] = urlsplit(url).netloc
        wanted = creations(headers, at_once + count, path=f"{PATH}?wait=30")

        def sent(some: Iterator[bytes]) -> None:
            load = asyncio.run(posted(url, some, connections=at_once, status=_OK, seen=seen))
            if load.refused:
                raise WrongCountError(f"{load.refused} of {count} answers came before the end")

        sent(islice(wanted, at_once))
        lates.clear()
        sent(wanted)
        rig.stop_serving(process)
        rig.count(at_once + count)
    return lates
