"""`python -m tests.simulation`: play seeds, replay one to the letter, hunt planted bugs, count the
control's sins.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

import click

from tests.simulation.bugs.planted import BUGS, planted
from tests.simulation.bugs.sources import SEEN_IN
from tests.simulation.drawing import plan_for
from tests.simulation.faults import EVERY_FAULT
from tests.simulation.odd import FAMILIES, ON
from tests.simulation.runner import MOST_SHOWN, Report, Who, arena, play, wire_to_server
from tests.simulation.secrets import log_taken

TOLD_EVERY: Final = 10.0
MOST_SEEDS: Final = 10_000_000
ENOUGH_SEEDS: Final = 400
EVERY_END: Final = ("settled succeeded", "settled failed", "settled canceled", "review pending")


@click.command()
@click.option(
    "--seeds", type=click.IntRange(min=1), help="How many to play: 5,000 unless told otherwise."
)
@click.option("--minutes", type=float, help="Play as many as fit into this.")
@click.option("--start", default=1, show_default=True, help="The first seed.")
@click.option("--seed", type=int, help="Play this one alone and show what happened.")
@click.option(
    "--bug",
    type=click.Choice(sorted(BUGS)),
    help="With --seed: planted there. With --bugs: hunted alone.",
)
@click.option("--bugs", is_flag=True, help="Hunt every planted bug.")
@click.option("--naive", is_flag=True, help="Play the control instead.")
@click.option("--wide", is_flag=True, help="With what is known to be open, too.")
@click.option(
    "--with",
    "families",
    multiple=True,
    type=click.Choice(sorted(FAMILIES)),
    help="Of what is odd, this.",
)
@click.option("--plain", is_flag=True, help="With nothing odd at all.")
def main(
    *,
    seeds: int | None,
    minutes: float | None,
    start: int,
    seed: int | None,
    bug: str | None,
    bugs: bool,
    naive: bool,
    wide: bool,
    families: tuple[str, ...],
    plain: bool,
) -> None:
    """Play refunds under simulated faults.

    Exit 1 where the judge found anything, or a kind of fault never fired.
    """
    if bug is not None and seed is None and not bugs:
        raise click.UsageError(
            "--bug plants it into one world: name that with --seed, or hunt all with --bugs"
        )
    odd = () if plain else families or ON
    if bugs and (naive or wide or minutes is not None):
        raise click.UsageError("--bugs goes with --seeds alone: how many each may take")
    # Ended by a signal, it still ends the servers that it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if seed is not None:
        sys.exit(_replay(seed, bug, wide=wide, naive=naive, families=odd))
    if bugs:
        sys.exit(_hunt([bug] if bug is not None else [*BUGS], seeds or 1000))
    began = time.monotonic()
    most = seeds or (5000 if minutes is None else MOST_SEEDS)
    seconds = math.inf if minutes is None else minutes * 60
    with arena() as here:
        who: Who = "naive" if naive else "ours"
        report = here.play(
            start, start + most, who=who, wide=wide, families=odd, seconds=seconds, told=_telling()
        )
    # So many seeds meet every kind of fault and of end; fewer are a look at a few of them.
    whole = report.seeds >= ENOUGH_SEEDS and set(odd) >= ON
    met = {name for name in EVERY_FAULT if report.fired[name]} | {*report.ends}
    never = [name for name in (*EVERY_FAULT, *EVERY_END) if name not in met] if whole else []
    _show(report, start, time.monotonic() - began)
    if never:
        click.echo(f"never met: {', '.join(never)}")
    sys.exit(1 if (report.violated or never) and not naive else 0)


def _telling() -> Callable[[Report], None]:
    """Return what tells on stderr now and then how far it is."""
    due = time.monotonic() + TOLD_EVERY

    def told(report: Report) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + TOLD_EVERY
            click.echo(f"{report.seeds} seeds, {len(report.violated)} violated", err=True)

    return told


def _replay(
    seed: int, bug: str | None, *, wide: bool, naive: bool, families: Collection[str]
) -> int:
    with log_taken(), planted(bug), wire_to_server() as wire:
        who: Who = "naive" if naive else "ours"
        result = play(seed, wire, who=who, wide=wide, families=families, tracing=True)
    click.echo(plan_for(seed, wide=wide, families=families).summary())
    click.echo("\n".join(result.trace))
    click.echo("\n".join(result.violations) or "nothing was broken")
    return 1 if result.violations else 0


def _hunt(names: Sequence[str], most: int) -> int:
    missed = 0
    with arena() as here:
        for name in names:
            caught = here.hunt(name, most=most)
            missed += caught is None
            found = (
                "missed" if caught is None else f"seed {caught.seed}: {caught.violations[0][:90]}"
            )
            click.echo(f"{name:30} {found} ({SEEN_IN.get(name, 'a variation')})")
    return 1 if missed else 0


def _show(report: Report, start: int, seconds: float) -> None:
    click.echo(f"{report.seeds} seeds from {start} on in {seconds:.0f} s")
    click.echo(f"requests sent: {report.posts}, virtual hours: {report.hours:.0f}")
    click.echo(f"ends: {dict(report.ends)}")
    click.echo(f"faults fired: {sum(report.fired[name] for name in EVERY_FAULT)}")
    for name in EVERY_FAULT:
        click.echo(f"  {name:36} {report.fired[name]}")
    beside = {
        name: count for name, count in sorted(report.fired.items()) if name not in EVERY_FAULT
    }
    if beside:
        click.echo(f"beside them: {beside}")
    click.echo(f"violated: {len(report.violated)} seeds {dict(report.rules)}")
    for seed, sentences in sorted(report.violated.items())[:MOST_SHOWN]:
        click.echo(f"  --seed {seed}: {sentences[0]}")


if __name__ == "__main__":
    main()
