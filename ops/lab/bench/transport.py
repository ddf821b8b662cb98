"""What the worker's Redis transport is worth: single refunds beside kombu's own transport."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ops.lab.bench.plan import LIST, Plan
from ops.lab.bench.rig import CONCURRENCY, Rig, Window
from ops.lab.bench.table import Row, at_least, spread
from worker.model.refund import Lane

WORTH: Final = 1.5
"""Below this ratio of the rates, the override of kombu's private parts is not worth its risk."""


def transport(plan: Plan, _wanted: frozenset[str]) -> Iterator[Row]:
    """Yield rate, processor time of the worker and of the server, each beside kombu's own."""
    ours, stock = [], []
    for _ in range(plan.rounds):
        ours.append(_run(plan, stock=False))
        stock.append(_run(plan, stock=True))
    pairs = list(zip(ours, stock, strict=True))
    rates = [own.rate / other.rate for own, other in pairs]
    yield Row(
        figure="transport: single refunds a second",
        setting=f"{LIST[0].shown}; the floor is kombu's own transport",
        measured=spread([one.rate for one in ours]),
        floor=spread([one.rate for one in stock]),
        ratio=spread(rates),
        to_reach=f"at least {WORTH:g}",
        reached=at_least(rates, WORTH),
    )
    yield Row(
        figure="transport: worker's CPU a refund",
        setting="",
        measured=spread([one.cpu_ms for one in ours], "ms"),
        floor=spread([one.cpu_ms for one in stock], "ms"),
        ratio=spread([own.cpu_ms / other.cpu_ms for own, other in pairs]),
    )
    yield Row(
        figure="transport: server's CPU a refund",
        setting="",
        measured=spread([_server_us(one) for one in ours], "µs"),
        floor=spread([_server_us(one) for one in stock], "µs"),
        ratio=spread([_server_us(own) / _server_us(other) for own, other in pairs]),
    )


def _server_us(window: Window) -> float:
    return window.server_cpu / window.refunds * 1e6


def _run(plan: Plan, *, stock: bool) -> Window:
    count = plan.single
    with Rig(plan.cores, LIST[0], concurrency=CONCURRENCY) as rig:
        rig.fill(count, Lane.SINGLE)
        rig.start_worker(module="ops.lab.bench.stock_worker" if stock else None)
        window = rig.window(max(count // 5, rig.settled()), count * 4 // 5)
        rig.until(lambda: rig.settled() >= count, "all are settled")
        rig.stop()
        rig.count(count)
        return window
