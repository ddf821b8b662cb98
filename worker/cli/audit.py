"""`refunds audit` shows who did what, from where, and what came of it."""

from __future__ import annotations

from itertools import islice

import click
from rich.table import Table

from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO
from worker.cli.session import note, opened
from worker.ranges import Whole
from worker.store.audit import Entry, entries, selected
from worker.wording import values


@click.command(
    epilog="""\b
Examples:
  refunds audit
  refunds audit --by ann --limit 0 --json
  refunds audit --target order-1001-1

\b
Exit code: 9 if nothing is found."""
)
@click.option("--by", metavar="NAME", help="Only what this person or token did.")
@click.option("--target", metavar="ID", help="Only what was done to this refund, batch or name.")
@click.option(
    "--limit",
    type=Whole(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="How many; 0 for all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def audit(*, by: str | None, target: str | None, limit: int, as_json: bool) -> int:
    """Show what people did with the page, the API and the command line, newest first.

    The result is done, unchanged, refused or unknown. It is unknown if the
    action may have happened, and while it goes on. About 50,000 actions are kept.
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
        note("no action is noted" if by is target is None else "no action matches")
    return DONE if page else NOTHING_TO_DO


def _listing(page: list[Entry]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("at", "by", "with", "from", "action", "target"):
        table.add_column(name, no_wrap=True)
    for name in ("result", "note"):
        table.add_column(name, overflow="fold")
    for entry in page:
        deed = entry.deed
        cells = (deed.by, deed.via, deed.address, deed.action, deed.target or "-")
        shown = (*cells, entry.result, deed.note)
        table.add_row(values.moment(entry.at), *map(values.plain, shown))
    return table
