"""`python -m tests.simulation`: play seeds, replay one to the letter, hunt planted bugs, count the control's sins."""

from __future__ import annotations

import sys
import time

import click

from tests.simulation.faults import EVERY_FAULT
from tests.simulation.plan import plan_for
from tests.simulation.planted import BUGS, planted
from tests.simulation.runner import MOST_SHOWN, Report, arena, play, silence, wire_to_server

STEP = 1000


@click.command()
@click.option("--seeds", default=5000, show_default=True, help="How many to play.")
@click.option("--start", default=0, show_default=True, help="The first seed.")
@click.option("--seed", type=int, help="Play this one alone and show what happened.")
@click.option("--bug", type=click.Choice(sorted(BUGS)), help="With --seed: with this bug planted.")
@click.option("--bugs", is_flag=True, help="Hunt every planted bug.")
@click.option("--naive", is_flag=True, help="Play the control instead.")
@click.option("--wide", is_flag=True, help="With what is known to be open, too.")
def main(*, seeds: int, start: int, seed: int | None, bug: str | None, bugs: bool, naive: bool, wide: bool) -> None:
    """Play refunds under simulated faults; exit 1 where the judge found anything."""
    if seed is not None:
        sys.exit(_replay(seed, bug, wide=wide, naive=naive))
    if bugs:
        sys.exit(_hunt(seeds))
    began, report = time.monotonic(), Report()
    with arena() as here:
        for first in range(start, start + seeds, STEP):
            part = here.play(first, min(start + seeds, first + STEP), who="naive" if naive else "ours", wide=wide)
            _merge(report, part)
            click.echo(f"{report.seeds} seeds, {len(report.violated)} violated", err=True)
    _show(report, time.monotonic() - began)
    sys.exit(1 if report.violated and not naive else 0)


def _replay(seed: int, bug: str | None, *, wide: bool, naive: bool) -> int:
    with silence(), planted(bug), wire_to_server() as wire:
        result = play(seed, wire, who="naive" if naive else "ours", wide=wide, tracing=True)
    click.echo(plan_for(seed, wide=wide).summary())
    click.echo("\n".join(result.trace))
    click.echo("\n".join(result.violations) or "nothing was broken")
    return 1 if result.violations else 0


def _hunt(most: int) -> int:
    missed = 0
    with arena() as here:
        for name in BUGS:
            caught = here.hunt(name, most=most)
            missed += caught is None
            click.echo(
                f"{name:30} {'missed' if caught is None else f'seed {caught.seed}: {caught.violations[0][:90]}'}"
            )
    return 1 if missed else 0


def _merge(report: Report, part: Report) -> None:
    report.seeds += part.seeds
    report.fired += part.fired
    report.ends += part.ends
    report.rules += part.rules
    report.posts += part.posts
    report.hours += part.hours
    report.violated |= part.violated


def _show(report: Report, seconds: float) -> None:
    click.echo(f"{report.seeds} seeds in {seconds:.0f} s: {report.posts} requests, {report.hours:.0f} virtual hours")
    click.echo(f"ends: {dict(report.ends)}")
    click.echo(f"faults fired: {sum(report.fired[name] for name in EVERY_FAULT)}")
    for name in EVERY_FAULT:
        click.echo(f"  {name:36} {report.fired[name]}")
    click.echo(f"violated: {len(report.violated)} seeds {dict(report.rules)}")
    for seed, sentences in sorted(report.violated.items())[:MOST_SHOWN]:
        click.echo(f"  --seed {seed}: {sentences[0]}")


if __name__ == "__main__":
    main()
