"""`refunds audit` shows who did what, from where, and what came of it."""

from __future__ import annotations

from itertools import islice

import click
from rich.table import Table

from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO
from worker.cli.session import note, opened
from worker.store.audit import Entry, entries, selected
from worker.wording import values
from worker.wording.ranges import Whole


@click.command(
    epilog="""\b
Examples:
  refunds audit
  refunds audit --by ann --limit 0 --json
  refunds audit --target order-1001-1

\b
Exit code: 9 if nothing is found."""
)
@click.option(
    "--by", metavar="NAME", help="Only what the person or token with this exact name did."
)
@click.option(
    "--target",
    metavar="ID",
    help="Only what was done with this exact refund, batch, token or endpoint.",
)
@click.option(
    "--limit",
    type=Whole(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="How many actions to show; 0 shows all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def audit(*, by: str | None, target: str | None, limit: int, as_json: bool) -> int:
    """Show what people did on the page, over the API and on the command line.

    The newest come first. A result is done, with a number if it was done to
    several, unchanged (it was so before, or nothing was to be done), refused
    with the reason, or unknown: the action runs now, or may have happened.
    About 50,000 actions are kept.
    """
    with opened() as refunds:
        found = selected(entries(refunds.store), by=by, target=target)
        page = list(islice(found, limit or None))
        more = next(found, None) is not None
    if as_json:
        for entry in page:
            render.as_json(entry.as_dict())
    elif page:
        render.put(_listing(page))
    if more:
        note(f"there are more actions than the {limit} shown: use --limit 0 to list all")
    if not page:
        note("no action was noted yet" if by is target is None else "no action matches")
    return DONE if page else NOTHING_TO_DO


def _listing(page: list[Entry]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("at", "by", "via", "from", "action", "target"):
        table.add_column(name, no_wrap=True)
    for name in ("result", "note"):
        table.add_column(name, overflow="fold")
    for entry in page:
        deed = entry.deed
        cells = (deed.by, deed.via, deed.address, deed.action, deed.target or "-")
        shown = (*cells, entry.result, deed.note)
        table.add_row(values.moment(entry.at), *map(values.plain, shown))
    return table
