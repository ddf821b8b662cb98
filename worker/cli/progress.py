"""Progress of long work on stderr: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from worker.batches import Batch, BatchProgress, look_at_batch, read_batch
from worker.cli import render
from worker.cli.exits import DONE, SOME_FAILED, Detached
from worker.cli.session import ALL_PAUSED, note
from worker.client import Refunds
from worker.model.refund import Stage, Status
from worker.model.words import counted, verb
from worker.store import flags
from worker.store.listing import Filter, page
from worker.wording import held, values
from worker.wording.batches import span

LINE_SECONDS: Final = 5.0
STILL_LINE_SECONDS: Final = 60.0
"""Seconds between two lines with the same figures."""
STILL_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.2
_LOOKED_AT: Final = 100
"""Unsettled refunds of a batch that are read to see what they wait for."""
_SHOWN: Final = ("succeeded", "failed", "canceled", "review")


class Show(Protocol):
    """Shows how many items are done, and a short text beside the number."""

    def __call__(self, done: int, beside: str = "", *, is_held: bool = False) -> None:
        """Show the progress; `is_held` if nothing is done for now, so no time left is known."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.0f}/s", style="dim")


class _Left(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return Text("") if task.fields["is_held"] else super().render(task)


@contextmanager
def progress(
    what: str,
    total: int | None,
    *,
    done: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Show]:
    """Show progress while the block runs; `total` is None if it is not known.

    `done` is how many were done before, which do not count for the pace.
    """
    screen = render.console(sys.stderr)
    if not screen.is_terminal:
        yield _lines(what, total, done, clock)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        _Left(),
        TextColumn("{task.fields[beside]}", style="dim"),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done, beside="", is_held=False)

        def show(done: int, beside: str = "", *, is_held: bool = False) -> None:
            bar.update(task, completed=done, beside=beside, is_held=is_held)

        yield show


def _lines(what: str, total: int | None, before_it: int, clock: Callable[[], float]) -> Show:
    started = clock()
    said, before = started, (-1, "")

    def show(done: int, beside: str = "", *, is_held: bool = False) -> None:
        nonlocal said, before
        now = clock()
        if now - said < (STILL_LINE_SECONDS if (done, beside) == before else LINE_SECONDS):
            return
        said, before = now, (done, beside)
        rate = max(0, done - before_it) / (now - started)
        is_known = total is not None and rate > 0 and not is_held
        left = (
            f", {span((total - done) / rate)} left"
            if is_known and total is not None and done < total
            else ""
        )
        of = "" if total is None else f" of {total:,}"
        note(f"{what}: {done:,}{of}, {rate:,.0f}/s{left}{f', {beside}' if beside else ''}")

    return show


def counts_of(batch: Batch) -> dict[str, int]:
    """Return how many refunds of a batch have each result, and how many are still in progress."""
    counts = {name: batch.statuses.get(name, 0) for name in ("succeeded", "failed", "canceled")}
    return counts | {"review": batch.stages.get("review", 0), "moving": batch.moving}


def watch_batch(refunds: Refunds, batch_id: str) -> Batch:
    """Show a batch's progress until no refund is in progress or it paused itself; return the batch.

    After it has paused itself, the refunds in flight are waited for, unless none of them changes
    for a while. So are the rows that its import has not accepted yet. Ctrl-C raises
    `KeyboardInterrupt`, for which callers raise `detached`.
    """
    batch = read_batch(refunds.store, batch_id)
    moved, said = time.monotonic(), False
    with progress("settled", batch.accepted, done=batch.accepted - batch.moving) as show:
        while True:
            counts = counts_of(batch)
            beside = ", ".join(f"{counts[name]:,} {name}" for name in _SHOWN if counts[name])
            is_paused = batch.state == "paused"
            if is_paused:
                beside = ", ".join(part for part in (beside, "the batch is paused") if part)
            show(batch.accepted - batch.moving, beside, is_held=is_paused)
            is_still = time.monotonic() - moved > STILL_SECONDS
            is_over = held.pauses_itself(batch) and (is_still or not batch.stages.get("sending"))
            if is_over or batch.finished or (is_still and not batch.moving):
                refunds.store.confirm()
                return batch
            if is_still and not said:
                said = True
                seen = look_at_batch(refunds.store, batch_id)
                note(f"no refund has changed for {STILL_SECONDS:g} s: {why_still(refunds, seen)}")
            time.sleep(_POLL_SECONDS)
            before, batch = batch, read_batch(refunds.store, batch_id)
            if batch.stages != before.stages:
                moved = time.monotonic()


def why_still(refunds: Refunds, seen: BatchProgress) -> str:
    """Return why no refund of a batch changes, or how to find out."""
    batch = seen.batch
    if batch.state == "paused":
        return f"the batch is paused {held.paused(batch)}"
    if batch.not_before is not None and batch.not_before > seen.now:
        return f"nothing is sent before {values.moment(batch.not_before)}"
    switches = flags.read(refunds.store)
    if switches.paused_at is not None:
        return ALL_PAUSED
    if switches.stopped:
        return "nothing at all is sent: see why with 'refunds doctor'"
    return (
        f"{_waiting_for(refunds, batch.batch_id)}see what the rest waits for with 'refunds list"
        f" --batch {batch.batch_id} --status pending', and check the workers with 'refunds doctor'"
    )


def _waiting_for(refunds: Refunds, batch_id: str) -> str:
    """Return the code with which most unsettled refunds of a batch wait; '' if none has a code."""
    wanted = Filter(status=Status.PENDING, batch=batch_id)
    found = page(refunds.store, wanted, after=None, limit=_LOOKED_AT).refunds
    moving = [each for each in found if each.stage is not Stage.REVIEW]
    codes = Counter(each.error_code for each in moving if each.error_code is not None)
    if not codes:
        return ""
    code, count = codes.most_common(1)[0]
    said = next(each.error_message for each in moving if each.error_code == code)
    words = f"{code}: {said}" if said else code
    seen = f"of {counted(len(moving), 'refund')} looked at, {count:,}"
    return f"{seen} {verb(count, 'waits', 'wait')} with {words}; "


def detached(batch_id: str) -> Detached:
    """Return the exception for a user who stops watching a batch."""
    return Detached(
        f"stopped watching; the refunds continue: watch again with 'refunds batch show {batch_id}"
        f" --wait', or pause them with 'refunds batch pause {batch_id}'"
    )


def verdict(batch: Batch) -> int:
    """Return the exit code of a batch without a refund in progress.

    Of a batch whose import stopped part way, more than the accepted refunds were wanted.
    """
    is_whole = batch.imported_at is not None
    all_succeeded = batch.statuses.get("succeeded", 0) == batch.accepted
    return DONE if is_whole and all_succeeded else SOME_FAILED
