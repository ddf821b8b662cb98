"""The tables of `refunds batch`: one batch a row, or one batch in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from worker.batches import Batch, BatchProgress
from worker.cli import render
from worker.cli.session import note
from worker.wording import values
from worker.wording.batches import SETTLED_STATUSES, facts_of_batch, state_of_batch

_STYLES: Final = {
    "running": "cyan",
    "finished": "green",
    "paused": "yellow",
    "incomplete": "yellow",
    "canceled": "dim",
}


def listing(page: Sequence[Batch]) -> Table:
    """Return the table of `refunds batch list`: one batch a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("batch", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("refunds", *SETTLED_STATUSES, "review", "unfinished"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("imported", no_wrap=True)
    table.add_column("file", overflow="fold")
    for each in page:
        counts = [each.accepted, *(each.statuses.get(name, 0) for name in SETTLED_STATUSES)]
        counts += [each.stages.get("review", 0), each.moving]
        table.add_row(
            each.batch_id,
            _state(each),
            *(f"{count:,}" for count in counts),
            values.moment(each.created_at),
            values.plain(each.file),
        )
    return table


def _state(each: Batch) -> Text:
    word = state_of_batch(each)
    return Text(word, style=_STYLES[word])


def put(seen: BatchProgress) -> None:
    """Print what `refunds batch show` shows of a batch, with hints to what needs a person."""
    each = seen.batch
    rows = [("state", _state(each)), *facts_of_batch(seen)]
    render.put(render.heading(each.batch_id), render.facts(rows))
    if each.stages.get("review"):
        note("some refunds need review: see them with 'refunds review list'")
    if each.statuses.get("failed"):
        note(
            f"some refunds failed: see them with 'refunds list --batch {each.batch_id} --status"
            " failed'"
        )
