"""`./ops/dev mutants`: change the code in small ways, and see whether a test notices.

Exit 0 where every mutant was noticed or is explained in `explained.toml`, else 1.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import click

from ops.lab.mutants.change import Key, Mutant
from ops.lab.mutants.crew import Verdict, crew_for
from ops.lab.mutants.explained import read_explained
from ops.lab.mutants.table import rendered, shown, survivors
from ops.lab.mutants.targets import Plan, checkout

EXPLANATION: Final = (
    "Each mutant is one small change: a comparison, a limit, a number, a condition, an argument, a"
    " statement. It is killed where a test fails, or hangs, for it. The score is the part killed of"
    " those that are not explained; `explained.toml` says of each of the others why nothing can"
    " notice it. Never tried: log lines, words for people, annotations, and what guards against"
    " mistakes of the language alone (`zip`'s `strict`)."
)


@click.command()
@click.option("--only", multiple=True, metavar="FILE", help="Only targets whose path holds this.")
@click.option(
    "--jobs", default=2, show_default=True, type=click.IntRange(1, 16), help="Copies side by side."
)
@click.option(
    "--sample", type=click.IntRange(1), metavar="N", help="Only so many mutants, drawn by chance."
)
@click.option("--seed", default=1, show_default=True, help="Of the sample.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the table to this file.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, dir_okay=False),
    help=(
        "Keep verdicts in this file; what was killed before is not tried again while its target is"
        " unchanged, else with the test that noticed it first."
    ),
)
@click.option(
    "--worlds",
    default=150,
    show_default=True,
    help="Of the simulation, for what nothing else notices.",
)
@click.option(
    "--seconds",
    type=float,
    default=math.inf,
    help="Of tests for each mutant: what survives may yet be noticed.",
)
@click.option(
    "--first",
    multiple=True,
    metavar="TEST",
    help="Try tests whose name holds this before all others.",
)
@click.option("--list", "show_list", is_flag=True, help="Show the mutants and do nothing.")
def main(
    *,
    only: tuple[str, ...],
    jobs: int,
    sample: int | None,
    seed: int,
    results: Path | None,
    keep: Path | None,
    worlds: int,
    seconds: float,
    first: tuple[str, ...],
    show_list: bool,
) -> None:
    """Judge the tests of the rules, the store with its scripts, and the service by what they let
    pass.
    """
    plan = checkout(only)
    os.environ["MUTANTS_WORLDS"] = str(worlds)
    if not plan.targets:
        raise click.UsageError(f"no target's path holds {' or '.join(only)}")
    mutants = [mutant for file in plan.targets for mutant in plan.mutants(file)]
    if sample is not None and sample < len(mutants):
        mutants = sorted(
            random.Random(seed).sample(mutants, sample),  # noqa: S311 - repeatable, not secret
            key=lambda one: (one.file, one.start),
        )
    if show_list:
        click.echo(
            "\n".join(
                f"{mutant.place} {mutant.function or 'top'}\n{mutant.diff()}" for mutant in mutants
            )
        )
        return
    explained = read_explained()
    began = time.monotonic()
    # Ended by a signal, it still ends what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verdicts = _judged(plan, mutants, explained, keep, jobs=jobs, seconds=seconds, first=first)
    alive = survivors(verdicts, explained)
    hung = sum(one.fate == "timeout" for one in verdicts)
    told = [
        rendered(verdicts, explained),
        *(f"```diff\n{text}\n```" for text in shown(alive)),
        f"{len(verdicts)} mutants, {hung} of them killed by their time limit;"
        f" {time.monotonic() - began:.0f} s"
        + ("" if keep is None else " for what was not known from before"),
    ]
    click.echo("\n\n".join(told))
    if results is not None:
        command = " ".join(["./ops/dev mutants", *(f"--only {part}" for part in only)])
        head = (
            f"# What the tests notice\n\n{datetime.now(UTC):%Y-%m-%d}, `{command}`. {EXPLANATION}"
        )
        results.write_text("\n\n".join([head, *told]) + "\n", "utf-8")
    stale = _stale(mutants if sample is None else [], explained)
    for key in stale:
        click.echo(f"explained, but there is no such mutant: {key}", err=True)
    sys.exit(1 if alive or stale else 0)


def _judged(
    plan: Plan,
    mutants: Sequence[Mutant],
    explained: dict[Key, str],
    keep: Path | None,
    *,
    jobs: int,
    seconds: float,
    first: Sequence[str],
) -> list[Verdict]:
    """Return a verdict for each mutant; those that are explained are not tried."""
    kept = _Kept(plan, keep)
    verdicts = [kept.verdicts.get((mutant.key, mutant.start)) for mutant in mutants]
    found = [
        Verdict(mutant=mutant, fate="survived") if mutant.key in explained else known
        for mutant, known in zip(mutants, verdicts, strict=True)
    ]
    open_ones = [mutant for mutant, known in zip(mutants, found, strict=True) if known is None]
    done = [one for one in found if one is not None]
    if not open_ones:
        return done
    began = time.monotonic()

    def told(verdict: Verdict) -> None:
        done.append(verdict)
        kept.add(verdict)
        if not verdict.killed:
            click.echo(f"{verdict.fate}: {verdict.mutant.place}\n{verdict.mutant.diff()}", err=True)
        elif len(done) % 50 == 0:
            click.echo(f"{len(done)} of {len(mutants)}, {time.monotonic() - began:.0f} s", err=True)

    measured = None if keep is None else keep.with_name(f"{keep.name}.tests")
    with crew_for(
        plan,
        jobs=jobs,
        tell=partial(click.echo, err=True),
        measured=measured,
        seconds=seconds,
        first=first,
        noticed=kept.noticed,
    ) as crew:
        click.echo(f"the tests were measured in {time.monotonic() - began:.0f} s", err=True)
        # Those that need a session of their own come last: they are few and slow.
        crew.judge(sorted(open_ones, key=lambda one: not one.hot), told)
    order = {(mutant.key, mutant.start): place for place, mutant in enumerate(mutants)}
    return sorted(done, key=lambda one: order[one.mutant.key, one.mutant.start])


class _Kept:
    """Verdicts in a file, one JSON object a line; only those that killed are believed later on."""

    def __init__(self, plan: Plan, path: Path | None) -> None:
        self._path = path
        self._digests = {
            file: hashlib.sha256(plan.source(file).encode()).hexdigest() for file in plan.targets
        }
        self.verdicts: dict[tuple[Key, int], Verdict] = {}
        self.noticed: dict[Key, str] = {}
        """The test that noticed each change, in whatever state its target was then."""
        if path is None or not path.exists():
            return
        entries = [
            entry
            for entry in map(json.loads, path.read_text("utf-8").splitlines())
            if entry["fate"] in {"killed", "timeout"}
        ]
        self.noticed |= {Key(*one["key"]): one["by"] for one in entries if one["by"] is not None}
        killed = {
            (*Key(*entry["key"]), entry["start"]): entry
            for entry in entries
            if entry["digest"] == self._digests.get(entry["key"][0])
        }
        for file in {key[0] for key in killed}:
            for mutant in plan.mutants(file):
                entry = killed.get((*mutant.key, mutant.start))
                if entry is not None:
                    known = Verdict(mutant=mutant, fate=entry["fate"], by=entry["by"])
                    self.verdicts[mutant.key, mutant.start] = known

    def add(self, verdict: Verdict) -> None:
        """Keep one."""
        if self._path is not None:
            mutant = verdict.mutant
            entry = {
                "key": mutant.key,
                "start": mutant.start,
                "line": mutant.line,
                "fate": verdict.fate,
                "by": verdict.by,
                "digest": self._digests[mutant.file],
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _stale(mutants: Sequence[Mutant], explained: dict[Key, str]) -> list[Key]:
    """Return the explanations that belong to no mutant of their file."""
    known = {mutant.key for mutant in mutants}
    files = {key.file for key in known}
    return [key for key in explained if key.file in files and key not in known]


if __name__ == "__main__":
    main()
