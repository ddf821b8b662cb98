"""The server's processor time for each script of a refund, by how many leave together.

Run by `python -m ops.lab.bench.scripts_cost COUNT TOGETHER [ALLOCATOR]`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click

from ops.lab.bench.orders import requests
from worker.client import Refunds
from worker.model.answers import Outcome, ProviderRefund, TryVerdict
from worker.model.refund import Lane, Refund
from worker.rules import attempts
from worker.rules.attempts import Rules
from worker.sandbox.redis_server import ThrowawayServer
from worker.settings import Settings
from worker.store import claims, record_time, saves, scripts
from worker.store.async_store import AsyncStore
from worker.store.connection import connect_async
from worker.store.scripts import Command

_TICKS = os.sysconf("SC_CLK_TCK")


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def _measured(pid: int, count: int, name: str) -> Iterator[None]:
    before = _seconds(pid)
    yield
    click.echo(f"{name:8} {(_seconds(pid) - before) / count * 1e6:6.1f} us a refund")


async def _run(store: AsyncStore, commands: Sequence[Command[Any]], together: int) -> list[Any]:
    results: list[Any] = []
    for start in range(0, len(commands), together):
        group = commands[start : start + together]
        results += await asyncio.gather(*(store.run(command) for command in group))
    return results


def _save(refund: Refund) -> Command[Any]:
    found = ProviderRefund(
        id=f"re_{refund.refund_id}", status="succeeded", amount=refund.amount, currency="usd"
    )
    outcome = Outcome(verdict=TryVerdict.DONE, code="done", http_status=200, found=found)
    step = attempts.after_attempt(refund, outcome, Rules(), refund.updated_at, 0.5)
    detail = {"attempt": 1, "seen": "done", "ms": 50, "http_status": 200}
    return saves.save(refund, step, detail, durable=False)


async def _measure(server: ThrowawayServer, count: int, together: int) -> None:
    measured = partial(_measured, server.pid, count)
    settings = Settings.load(redis_url=server.url)
    with Refunds(settings=settings) as refunds, measured("accept"):
        refunds.submit_many(requests(count), lane=Lane.BULK)
    store = AsyncStore(connect_async(server.url))
    await store.require_durable()
    await store.load_scripts(scripts.EVERY)
    with measured("clock"):
        await _run(store, [record_time.clock()] * count, together)
    lease = timedelta(seconds=90)
    asked = [
        claims.claim(request.refund_id, "send", token=f"{number:016x}", lease=lease)
        for number, request in enumerate(requests(count))
    ]
    with measured("claim"):
        granted = await _run(store, asked, together)
    done = [_save(claim.refund) for claim in granted]
    with measured("save"):
        saved = await _run(store, done, together)
    if any(one.result != "saved" for one in saved):
        raise RuntimeError("a save was refused")
    await store.close()


def main() -> None:
    """Measure, on a server of its own."""
    count, together, *allocator = sys.argv[1:]
    with ThrowawayServer(*map(Path, allocator)) as server:
        asyncio.run(_measure(server, int(count), int(together)))


if __name__ == "__main__":
    main()
