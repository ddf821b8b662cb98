"""Progress of long work on stderr: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from worker.batches import Batch, read_batch
from worker.cli import render
from worker.cli.exits import DONE, SOME_FAILED, Detached
from worker.cli.session import note
from worker.client import Refunds

LINE_SECONDS: Final = 5.0
STILL_LINE_SECONDS: Final = 60.0
"""Seconds between two lines with the same figures."""
STILL_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.2
_MINUTE: Final = 60
_DAY: Final = 24
"""Hours in one."""
_SHOWN: Final = ("succeeded", "failed", "canceled", "review")


class Show(Protocol):
    """Shows how many items are done, and a short text beside the number."""

    def __call__(self, done: int, beside: str = "") -> None:
        """Show the progress."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.0f}/s", style="dim")


@contextmanager
def progress(what: str, total: int | None, clock: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """Show progress while the block runs; `total` is None if it is not known."""
    screen = render.console(sys.stderr)
    if not screen.is_terminal:
        yield _lines(what, total, clock)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[beside]}", style="dim"),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(what, total=total, beside="")

        def show(done: int, beside: str = "") -> None:
            bar.update(task, completed=done, beside=beside)

        yield show


def _lines(what: str, total: int | None, clock: Callable[[], float]) -> Show:
    started = clock()
    said, before = started, (-1, "")

    def show(done: int, beside: str = "") -> None:
        nonlocal said, before
        now = clock()
        if now - said < (STILL_LINE_SECONDS if (done, beside) == before else LINE_SECONDS):
            return
        said, before = now, (done, beside)
        rate = done / (now - started)
        left = f", {span((total - done) / rate)} left" if total is not None and rate > 0 and done < total else ""
        of = "" if total is None else f" of {total:,}"
        note(f"{what}: {done:,}{of}, {rate:,.0f}/s{left}{f', {beside}' if beside else ''}")

    return show


def span(seconds: float) -> str:
    """Return a length of time for a person: `about 40 s`, `about 12 min`, `about 3 h 20 min`, `about 2 d 4 h`."""
    whole = max(1, round(seconds))
    if whole < _MINUTE:
        return f"about {whole} s"
    minutes = round(seconds / _MINUTE)
    if minutes < _MINUTE:
        return f"about {minutes} min"
    hours, minutes = divmod(minutes, _MINUTE)
    if hours < _DAY:
        return f"about {hours} h {minutes} min"
    return f"about {hours // _DAY} d {hours % _DAY} h"


def counts_of(batch: Batch) -> dict[str, int]:
    """Return how many refunds of a batch have each result, and how many are still in progress."""
    counts = {name: batch.statuses.get(name, 0) for name in ("succeeded", "failed", "canceled")}
    return counts | {"review": batch.stages.get("review", 0), "moving": batch.moving}


def watch_batch(refunds: Refunds, batch_id: str) -> Batch:
    """Show the progress of a batch until no refund is in progress, and return the batch.

    Ctrl-C raises `KeyboardInterrupt`, for which callers raise `detached`.
    """
    batch = read_batch(refunds.store, batch_id)
    moved, said = time.monotonic(), False
    with progress("settled", batch.accepted) as show:
        while True:
            counts = counts_of(batch)
            beside = ", ".join(f"{counts[name]:,} {name}" for name in _SHOWN if counts[name])
            if batch.state == "paused":
                beside = ", ".join(part for part in (beside, "the batch is paused") if part)
            show(batch.accepted - batch.moving, beside)
            if not batch.moving:
                refunds.store.confirm()
                return batch
            if not said and time.monotonic() - moved > STILL_SECONDS:
                said = True
                note(f"no refund has changed for {STILL_SECONDS:g} s: check the workers with 'refunds doctor'")
            time.sleep(_POLL_SECONDS)
            before, batch = batch, read_batch(refunds.store, batch_id)
            if batch.stages != before.stages:
                moved = time.monotonic()


def detached(batch_id: str) -> Detached:
    """Return the exception for a user who stops watching a batch."""
    return Detached(
        f"stopped watching; the refunds continue: watch again with 'refunds batch show {batch_id} --wait', "
        f"or pause them with 'refunds batch pause {batch_id}'"
    )


def verdict(batch: Batch) -> int:
    """Return the exit code of a finished batch."""
    return DONE if batch.statuses.get("succeeded", 0) == batch.accepted else SOME_FAILED
