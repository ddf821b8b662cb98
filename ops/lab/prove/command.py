"""`./ops/dev prove`: real workers under every fault, judged by the provider's ledger, beside a
naive worker.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Final

import click

from ops.lab.prove import callbacks, door, failover, outage, planted, table, webhooks
from ops.lab.prove.rig import Rig, Subject
from ops.lab.prove.scenarios import Result, Scenario, matrix, pair, run
from ops.lab.prove.subjects import Naive, Product

QUICK_SIZE: Final = 32
FULL_SIZE: Final = 250
QUICK_PAIRS: Final = 5
QUICK_OUTAGE: Final = 20.0
WEBHOOKS_SIZE: Final = 120
DOOR_SIZE: Final = 120
CALLBACKS_SIZE: Final = 80
_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run that is still to be made."""

    name: str
    work: Callable[[], Result]
    weight: float = 1.0
    """Long ones are begun first, so that the end does not wait for one of them."""


@click.command()
@click.option(
    "--quick", is_flag=True, help="Each scenario once and small: a few minutes, for every change."
)
@click.option("--only", multiple=True, metavar="NAME", help="Only scenarios whose name holds this.")
@click.option(
    "--refunds",
    default=20_000,
    show_default=True,
    help="A full run goes on with random pairs until so many.",
)
@click.option(
    "--seed",
    default=1,
    show_default=True,
    help="Of the refunds, the crash points' turns and the pairs.",
)
@click.option(
    "--at-once",
    default=6,
    show_default=True,
    type=click.IntRange(1, 16),
    help="Installations side by side.",
)
@click.option(
    "--outage-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="How long the provider is away: 20 in a quick run, else 60. Try 600.",
)
@click.option("--no-control", is_flag=True, help="Leave the naive worker out.")
@click.option(
    "--keep",
    default="prove-evidence",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Traces.",
)
@click.option(
    "--results", type=click.Path(path_type=Path), help="Also write the table to this file."
)
@click.option("--list", "show_list", is_flag=True, help="Name the scenarios and do nothing.")
def main(
    *,
    quick: bool,
    only: tuple[str, ...],
    refunds: int,
    seed: int,
    at_once: int,
    outage_seconds: float | None,
    no_control: bool,
    keep: Path,
    results: Path | None,
    show_list: bool,
) -> None:
    """Prove the promise under faults, on loopback, with processes of its own.

    Exit 1 if a run of ours broke a promise or the judge did not catch the control or a planted bug,
    3 if a run could not be judged.
    """
    away = outage_seconds or (QUICK_OUTAGE if quick else 60.0)
    jobs = list(_jobs(quick=quick, seed=seed, keep=keep, away=away, control=not no_control))
    jobs = [job for job in jobs if not only or any(word in job.name for word in only)]
    if not jobs:
        raise click.UsageError(f"no scenario's name holds {' or '.join(only)}: --list names them")
    if show_list:
        click.echo("\n".join(dict.fromkeys(job.name for job in jobs)))
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _told_to_end)
    began, started = time.monotonic(), datetime.now(UTC)
    found = list(_run_all(jobs, at_once))
    if not quick and not only:
        found += _pairs_until(refunds, found, seed, keep, at_once)
    order = {job.name: place for place, job in enumerate(jobs)}
    rows = table.rows_of(sorted(found, key=lambda result: order.get(result.name, len(order))))
    said = ["--quick" * quick, *(f"--only {name!r}" for name in only), f"--seed {seed}"]
    if outage_seconds is not None:
        said.append(f"--outage-seconds {outage_seconds:g}")
    words = " ".join(filter(None, said))
    text = (
        f"`./ops/dev prove {words}`, {started:%Y-%m-%d %H:%M} UTC, {time.monotonic() - began:.0f}"
        f" s\n\n{table.rendered(rows)}\n\n{table.summary(rows)}\n"
    )
    click.echo(text)
    if results is not None:
        results.write_text(f"# The proof under faults\n\n{text}", encoding="utf-8")
    _end(rows, whole=not only)


def _told_to_end(number: int, _frame: FrameType | None) -> None:
    """End what was started and this process with it.

    The runs under way would hold its end up for minutes.
    """
    Rig.end_all()
    os._exit(128 + number)


def _end(rows: list[table.Row], *, whole: bool) -> None:
    failed = table.ours_failed(rows)
    for result in failed:
        click.echo(f"{result.name}: {result.error or ''}", err=True)
        for violation in result.violations[:_SHOWN]:
            click.echo(f"  {violation}", err=True)
        if result.kept is not None:
            click.echo(f"  its logs and traces: {result.kept}", err=True)
    if not table.control_was_caught(rows, whole=whole):
        click.echo("the judge did not catch the control: it proves nothing", err=True)
    if not table.fewer_were_caught(rows):
        click.echo(
            "nothing was lost or sent twice with too few replicas: the failovers prove nothing",
            err=True,
        )
    for bug in (result for row in rows for result in row.planted):
        if bug.error or not planted.caught(bug):
            click.echo(f"{bug.name}: {bug.error or 'the judge did not catch it'}", err=True)
    if code := table.exit_code(rows, whole=whole):
        raise SystemExit(code)


def _jobs(*, quick: bool, seed: int, keep: Path, away: float, control: bool) -> Iterator[Job]:
    size = QUICK_SIZE if quick else FULL_SIZE
    for place, scenario in enumerate(matrix()):
        if quick and not scenario.quick:
            continue
        yield _job(scenario, Product(), size, seed * 1000 + place, keep)
        if control and (scenario.quick_control if quick else scenario.controlled):
            yield _job(scenario, Naive(), size, seed * 1000 + place, keep)
    # What is in flight when the provider goes away costs some 140 requests more, whatever the size:
    # of 700 refunds that was a fifth, the most that is allowed.
    for place, work in enumerate(outage.outages(1000 if quick else 1500, away, keep)):
        named = ("silent", "refusing", "failing", "401", "403", "by totals", "by totals, long")[
            place
        ]
        if quick and "totals" in named:
            # What it tells is a share, of which a short outage has too few.
            continue
        yield Job(name=f"outage: {named}", work=partial(work, seed * 1000 + 900 + place), weight=3)
    yield from _with_http(quick=quick, seed=seed, keep=keep, away=away)
    failovers = failover.runs(keep=keep, quick=quick, control=control)
    for place, (name, work) in enumerate(failovers):
        yield Job(name=name, work=partial(work, seed * 1000 + 700 + place), weight=4)
    for place, (name, work) in enumerate(planted.plants(quick=quick)):
        yield Job(
            name=name, work=partial(work, QUICK_SIZE, seed * 1000 + 950 + place, keep), weight=2
        )
    if quick:
        for place in range(QUICK_PAIRS):
            yield _job(pair(seed * 1000 + place), Product(), size, seed * 1000 + 800 + place, keep)


def _with_http(*, quick: bool, seed: int, keep: Path, away: float) -> Iterator[Job]:
    """Yield the runs with webhooks, with the HTTP API and with callbacks."""
    # One seed for all of them: each run is compared with another one of the same refunds.
    for name, work in webhooks.runs(
        size=QUICK_SIZE if quick else WEBHOOKS_SIZE, keep=keep, quick=quick
    ):
        yield Job(name=name, work=partial(work, seed * 1000 + 980), weight=2)
    doors = door.runs(size=QUICK_SIZE if quick else DOOR_SIZE, keep=keep, quick=quick)
    for place, (name, work) in enumerate(doors):
        yield Job(name=name, work=partial(work, seed * 1000 + 960 + place), weight=2)
    shops = callbacks.runs(
        size=QUICK_SIZE if quick else CALLBACKS_SIZE, keep=keep, quick=quick, seconds=away
    )
    for place, (name, work) in enumerate(shops):
        # The one in which a shop is away takes longest.
        long = name.endswith("away")
        yield Job(name=name, work=partial(work, seed * 1000 + 940 - place), weight=3 if long else 2)


def _job(scenario: Scenario, subject: Subject, size: int, seed: int, keep: Path) -> Job:
    work = partial(run, scenario, subject, size=size, seed=seed, keep=keep)
    heavy = scenario.name.startswith(("provider", "Redis restored", "pair"))
    return Job(name=scenario.name, work=work, weight=2 if heavy else 1)


def _run_all(jobs: list[Job], at_once: int) -> Iterator[Result]:
    with ThreadPoolExecutor(at_once) as pool:
        waiting: list[Future[Result]] = [
            pool.submit(job.work) for job in sorted(jobs, key=lambda job: -job.weight)
        ]
        work = dict(zip(waiting, sorted(jobs, key=lambda job: -job.weight), strict=True))
        again: list[Future[Result]] = []
        for done in as_completed(waiting):
            result = done.result()
            _tell(result)
            if result.error:
                # A fault that found nothing to hit proves nothing; what was judged stands as it was
                # judged.
                again.append(pool.submit(work[done].work))
            else:
                yield result
        for done in again:
            result = done.result()
            _tell(result)
            yield result


def _tell(result: Result) -> None:
    verdict = "could not be judged" if result.error else f"{len(result.violations)} violations"
    click.echo(
        f"{result.subject:8} {result.name}: {result.refunds} refunds, {result.fired} fired,"
        f" {verdict}, {result.seconds:.0f} s",
        err=True,
    )


def _pairs_until(
    refunds: int, found: list[Result], seed: int, keep: Path, at_once: int
) -> list[Result]:
    """Run random pairs, several at once, until our runs have had so many refunds."""
    more: list[Result] = []
    seeds = count(seed * 1000)
    # Pairs are part of the proof, however many refunds the single faults have had.
    while (
        not more
        or sum(result.refunds for result in [*found, *more] if result.subject == "ours") < refunds
    ):
        drawn = [next(seeds) for _ in range(2 * at_once)]
        more += _run_all(
            [_job(pair(one), Product(), FULL_SIZE, one + 5000, keep) for one in drawn], at_once
        )
    return more
