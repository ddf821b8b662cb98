"""The tables of `refunds batch`: one batch a row, or one batch in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from worker.batches import Batch, BatchProgress
from worker.cli import render
from worker.cli.import_report import amount_rows, total_rows
from worker.cli.progress import span
from worker.cli.session import note
from worker.imports import reading_of
from worker.wording import held, values
from worker.words import counted

_STATUSES: Final = ("succeeded", "failed", "canceled")
_COUNTS: Final = {
    "invalid": "invalid",
    "duplicates": "duplicates",
    "known": "accepted before",
    "conflicting": "id taken",
}


def listing(page: Sequence[Batch]) -> Table:
    """Return the table of `refunds batch list`: one batch a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("batch", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("refunds", *_STATUSES, "review", "unfinished"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("imported", no_wrap=True)
    table.add_column("file", overflow="fold")
    for each in page:
        counts = [each.accepted, *(each.statuses.get(name, 0) for name in _STATUSES)]
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
    if each.state != "running":
        return Text(each.state, style="yellow" if each.state == "paused" else "dim")
    if each.imported_at is None:
        return Text("incomplete", style="yellow")
    return Text("finished", style="green") if each.finished else Text("running", style="cyan")


def put(seen: BatchProgress) -> None:
    """Print what `refunds batch show` shows of a batch, with hints to what needs a person."""
    each = seen.batch
    waiting = each.not_before is not None and each.not_before > seen.now
    rows: list[tuple[str, object]] = [
        ("state", _state(each)),
        ("file", each.file),
        ("started", values.moment(each.created_at)),
        (
            "imported",
            (
                values.moment(each.imported_at)
                if each.imported_at
                else "incomplete: import the file again"
            ),
        ),
        ("held until", values.moment(each.not_before) if waiting else None),
        ("paused", held.paused(each) if each.state == "paused" else None),
        (
            "canceled",
            (
                f"{values.moment(each.canceled_at)} by {each.canceled_by}"
                if each.canceled_at
                else None
            ),
        ),
        ("rows", f"{each.rows:,}"),
    ]
    unit = reading_of(each.options).amount_unit
    rows += [
        (label, f"{count:,}") for name, label in _COUNTS.items() if (count := getattr(each, name))
    ]
    rows += total_rows(dict(sorted(each.totals.items())), {}, unit)
    if each.all_remaining:
        rows.append(("no amount", f"{counted(each.all_remaining, 'refund')} of all that is left"))
    rows.append(("refunds", f"{each.accepted:,}"))
    rows += [(name, f"{each.statuses[name]:,}") for name in _STATUSES if each.statuses.get(name)]
    rows += [
        (name, f"{count:,}") for name, count in sorted(each.stages.items()) if name != "settled"
    ]
    rows += amount_rows(each.amounts, unit)
    if each.moving:
        rows.append(
            (
                "pace",
                (
                    f"{seen.rate:,.1f} refunds a second"
                    if seen.rate
                    else "no refund has settled recently"
                ),
            )
        )
    if seen.eta is not None:
        rows.append(
            (
                "left",
                f"{span((seen.eta - seen.now).total_seconds())}, until {values.moment(seen.eta)}",
            )
        )
    render.put(render.heading(each.batch_id), render.facts(rows))
    if each.stages.get("review"):
        note("some refunds need review: see them with 'refunds review list'")
    if each.statuses.get("failed"):
        note(
            f"some refunds failed: see them with 'refunds list --batch {each.batch_id} --status"
            " failed'"
        )
