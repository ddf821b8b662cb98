"""`./ops/dev bench [FIGURE…]`: every figure as a ratio to its floor, taken in the same run on the
same machine.

Exit 0 if every run's ledger agreed with its records, whatever the figures say; 1 if one did not.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from ops.lab.bench import (
    door,
    gentle,
    page,
    payment,
    plan,
    rates,
    reconcile,
    replicas,
    sizes,
    telling,
    transport,
    waits,
    watch,
)
from ops.lab.bench.machine import Cores, described, usable
from ops.lab.bench.peers import compared
from ops.lab.bench.plan import Plan
from ops.lab.bench.rig import Rig, WrongCountError
from ops.lab.bench.table import Row, Standing, rendered

Taker = Callable[[Plan, frozenset[str]], Iterator[Row | Standing]]

FIGURES: Final[dict[str, Taker]] = {
    "bulk": rates.against_floor,
    "single": rates.against_floor,
    "latency": waits.waits,
    "lanes": waits.waits,
    "processes": rates.two_workers,
    "accept": sizes.accept,
    "handing": sizes.handed_in,
    "memory": sizes.memory,
    "limit": gentle.limit,
    "backlog": rates.backlog,
    "payment": payment.one_payment,
    "transport": transport.transport,
    "watch": watch.watch,
    "door": door.door,
    "upload": door.door,
    "callbacks": telling.callbacks,
    "reconcile": reconcile.reconcile,
    "replicas": replicas.replicas,
    "page": page.page,
    "peers": compared.peers,
}


@click.command()
@click.argument("figures", nargs=-1, type=click.Choice(list(FIGURES)), metavar="[FIGURE]...")
@click.option(
    "--quick",
    is_flag=True,
    help="Less of everything, on any core, inside a minute: shows that it works, no more.",
)
@click.option(
    "--full",
    is_flag=True,
    help="The sizes of the promise: hours of machine time rather than minutes.",
)
@click.option(
    "--allocator",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=(
        "Preload this library into the server: the wheel's takes its memory from libc, its makers'"
        " from jemalloc."
    ),
)
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1, 20), help="Interleaved."
)
def main(
    *, figures: tuple[str, ...], quick: bool, full: bool, allocator: Path | None, rounds: int
) -> None:
    """Measure the figures named, all unless told otherwise.

    They are: bulk single latency lanes processes accept handing memory limit backlog payment
    transport watch door upload callbacks reconcile replicas page peers.
    Absolute numbers drift with the machine: compare ratios, and only within one run.
    """
    if quick and full:
        raise click.UsageError("--quick and --full exclude each other")
    wanted = frozenset(figures or FIGURES)
    if "peers" in wanted:
        compared.require()
    Rig.allocator = allocator
    # Ended by a signal, it still ends what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    everything = usable()
    cores = Cores.split(are_kept=not quick)
    cores.take_rest()
    chosen = plan.quick(cores) if quick else (plan.full if full else plan.usual)(cores, rounds)
    started = time.monotonic()
    rows: list[Row | Standing] = []
    try:
        for taker in dict.fromkeys(FIGURES[name] for name in FIGURES if name in wanted):
            for row in taker(chosen, wanted):
                rows.append(row)
                click.echo(" · ".join(filter(None, row.cells)), err=True)
    except WrongCountError as error:
        raise click.ClickException(str(error)) from None
    click.echo(described(_server_version(cores), everything))
    click.echo(cores.shown)
    click.echo(
        f"{chosen.rounds} interleaved rounds, {time.monotonic() - started:.0f} s: median (least to"
        " most); latencies"
    )
    click.echo("of all rounds together, memory and the limit of one run each\n")
    click.echo(rendered(rows))
    click.echo(
        "\nA floor posts through httpx's client; the leaner one hands its requests to the client's"
        " transport, as the"
    )
    click.echo(
        "worker does. The ledger was counted after every run: each refund moved money once, none is"
        " missing."
    )


def _server_version(cores: Cores) -> str:
    with Rig(cores) as rig:
        facts: Any = rig.refunds.store.redis.info("server")
        name = "valkey" if "valkey_version" in facts else "redis"
        memory: Any = rig.refunds.store.redis.info("memory")
        allocator = (
            f"{Rig.allocator.name} preloaded"
            if Rig.allocator is not None
            else memory.get("mem_allocator")
        )
        return f"{name} {facts.get(f'{name}_version')} ({allocator}), appendfsync always"


if __name__ == "__main__":
    sys.exit(main())
