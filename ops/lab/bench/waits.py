"""How long one refund takes from `submit` to settled, on an idle system and beside a file, less the
provider's time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Final

import httpx

from ops.lab.bench.orders import requests
from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import CONCURRENCY, IN_FLIGHT, Rig
from ops.lab.bench.table import Row, number, quantile
from worker.model.refund import Lane
from worker.model.request import RefundRequest, request_body
from worker.model.times import to_ms
from worker.provider.transport import build_client
from worker.settings import Settings

IDLE_MORE_MS: Final = {0.50: 4.0, 0.99: 10.0}
"""How much more than a bare call a refund may take on an idle system, by the quantile."""
BESIDE_FILE: Final = 3.0
WARM: Final = 20
_HALF_MS: Final = 0.5
"""Records hold whole milliseconds, rounded down."""


def waits(plan: Plan, wanted: frozenset[str]) -> Iterator[Row]:
    """Yield the idle latency with what a bare call takes beside it, then that of single refunds
    while a file runs.

    Quantiles are of all rounds together, each on an installation of its own.
    """
    mode = plan.modes[0]
    rounds = [_round(plan, wanted) for _ in range(plan.rounds)]
    alone, bare, few, many = (
        [one for taken in part for one in taken] for part in zip(*rounds, strict=True)
    )
    p99 = quantile(alone, 0.99)
    for part, most in IDLE_MORE_MS.items():
        taken, call = quantile(alone, part), quantile(bare, part) - mode.latency_ms
        yield Row(
            figure=f"single: idle latency, p{part * 100:.0f}",
            setting=f"{mode.shown}; {len(alone)} refunds, less the provider's {mode.latency_ms} ms",
            measured=f"{number(taken)} ms",
            floor=f"{number(call)} ms, a bare call",
            ratio=f"{taken - call:+.2f} ms",
            to_reach=f"at most {most:+g} ms",
            reached=taken - call <= most,
        )
    if "lanes" in wanted:
        yield _beside_row(plan, IN_FLIGHT, few, p99)
        yield _beside_row(plan, CONCURRENCY, many, p99)


def _round(plan: Plan, wanted: frozenset[str]) -> tuple[list[float], ...]:
    beside = [
        _beside_file(plan, number) if "lanes" in wanted else []
        for number in (IN_FLIGHT, CONCURRENCY)
    ]
    return (*idle(plan), *beside)


def idle(plan: Plan, *, replicas: int = 0) -> tuple[list[float], list[float]]:
    """Return the latencies of refunds on an idle system, less the provider's time, and those of
    bare calls.
    """
    mode = plan.modes[0]
    with Rig(plan.cores, mode, concurrency=IN_FLIGHT, replicas=replicas) as rig:
        rig.start_worker()
        rig.await_workers()
        # The first refunds of a new process pay for connections and scripts, once.
        rig.fill(WARM, Lane.SINGLE, name="warm")
        rig.until(lambda: rig.settled() >= WARM, "the first are settled")
        taken = _latencies(rig, plan.idle, mode.latency_ms)
        rig.stop()
        rig.count(plan.idle + WARM)
        bare = _bare(rig, plan.idle)
    return taken, bare


def _beside_file(plan: Plan, concurrency: int) -> list[float]:
    """Return the latencies of single refunds beside a file, less the provider's time."""
    mode = plan.modes[0]
    with Rig(plan.cores, mode, concurrency=concurrency) as rig:
        rig.fill(plan.file_rows, Lane.BULK, name="file")
        rig.start_worker()
        rig.until(lambda: rig.settled() >= plan.file_rows // 20, "the file is under way")
        taken = _latencies(rig, plan.idle, mode.latency_ms, while_below=plan.file_rows)
        rig.until(lambda: rig.settled() >= plan.file_rows + len(taken), "all are settled")
        rig.stop()
        rig.count(plan.file_rows + len(taken))
    return taken


def _beside_row(plan: Plan, concurrency: int, taken: list[float], idle_p99: float) -> Row:
    """Return the row of single refunds beside a file.

    Judged with the calls in flight that a worker usually has.
    """
    mode, is_judged = plan.modes[0], concurrency == IN_FLIGHT
    p99, most = quantile(taken, 0.99), BESIDE_FILE * idle_p99 + mode.latency_ms
    return Row(
        figure="single: latency beside a file, p99",
        setting=(
            f"{mode.shown}; {concurrency} in flight, {len(taken)} refunds, {plan.file_rows:,} rows"
        ),
        measured=f"{number(p99)} ms (p50 {number(quantile(taken, 0.50))} ms)",
        floor=f"{number(idle_p99)} ms idle",
        ratio=number(p99 / idle_p99),
        to_reach=f"under {most:.0f} ms (3 times idle, and one call)" if is_judged else "",
        reached=p99 < most if is_judged else None,
    )


def _latencies(
    rig: Rig, count: int, provider_ms: int, *, while_below: int | None = None
) -> list[float]:
    """Submit refunds one at a time and return each one's milliseconds from the call to settled, by
    the record.

    Settled refunds are dated by the server, whose clock is this machine's. With `while_below` it
    ends once a file of so many rows is done.
    """
    submitted: dict[str, float] = {}
    for request in requests(count, name="one"):
        if while_below is not None and rig.settled() >= while_below:
            break
        submitted[request.refund_id] = time.time() * 1000
        rig.refunds.submit(request)
        time.sleep(provider_ms / 1000 + random.uniform(0.02, 0.06))  # noqa: S311 - keeps step with no timer of the worker
    rig.until(
        lambda: all(r is not None and r.settled for r in rig.refunds.get_many(list(submitted))),
        "all are settled",
    )
    return [
        to_ms(record.updated_at) + _HALF_MS - submitted[record.refund_id] - provider_ms
        for record in rig.refunds.get_many(list(submitted))
        if record is not None
    ]


def _bare(rig: Rig, count: int) -> list[float]:
    """Return the milliseconds of bare POSTs with the same client, one at a time.

    They move money that no record knows of, so the ledger is counted before.
    """
    settings = Settings.load(api_url=rig.sandbox.url, api_key="sk_test_bench")

    async def timed() -> list[float]:
        async with build_client(settings) as client:
            return [await _one(client, request) for request in requests(count + 1, name="bare")]

    return asyncio.run(timed())[1:]


async def _one(client: httpx.AsyncClient, request: RefundRequest) -> float:
    headers = {"Content-Type": "application/json", "Idempotency-Key": request.refund_id}
    started = time.perf_counter()
    reply = await client.post("/v1/refunds", content=request_body(request, 1), headers=headers)
    reply.raise_for_status().json()
    return (time.perf_counter() - started) * 1000
