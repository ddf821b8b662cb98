"""`refunds rejected`: shows messages not understood, and drops them once their sender is fixed."""

from __future__ import annotations

import sys
from itertools import islice

import click
from rich.table import Table

from worker.broker import rejected as rejections
from worker.broker.rejected import Rejection
from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO, Detached
from worker.cli.session import act, note, opened
from worker.wording import values
from worker.wording.ranges import Whole

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line."
)
_MOST_IDS = 3


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  refunds rejected
  refunds rejected show 5f0c0f3e1a
  refunds rejected drop 5f0c0f3e1a
""",
)
@click.pass_context
def rejected(ctx: click.Context) -> int | None:
    """Show and drop the messages that could not be understood; without a command, list them.

    No refund was accepted from them. Fix the sender and send the refund again: the same refund id
    is safe.
    """
    return ctx.invoke(list_rejected) if ctx.invoked_subcommand is None else None


@rejected.command("list", short_help="List the rejected messages, newest first.")
@click.option(
    "--limit",
    type=Whole(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="How many; 0 for all.",
)
@_json_option
def list_rejected(*, limit: int = 20, as_json: bool = False) -> int:
    """List the rejected messages, newest first: when, why, and which refund they name."""
    with opened() as refunds:
        found = rejections.listed(refunds.store)
        page = list(islice(found, limit or None))
        more = next(found, None) is not None
    if as_json:
        for each in page:
            render.as_json(
                {name: value for name, value in each.as_dict().items() if name != "message"}
            )
    elif page:
        render.put(_listing(page))
        note("see a message with 'refunds rejected show ID'")
    else:
        note("no message was rejected")
    if more:
        note(f"there are more messages than the {limit} shown: use --limit 0 to list all")
    return DONE


def _listing(page: list[Rejection]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("id", "rejected", "refund"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for each in page:
        named = ", ".join(each.refund_ids[:_MOST_IDS]) or "-"
        if len(each.refund_ids) > _MOST_IDS:
            named += " …"
        shown = (each.entry_id, values.moment(each.rejected_at), named, each.reason)
        table.add_row(*(values.plain(cell) for cell in shown))
    return table


@rejected.command(
    epilog=(
        "\b\nExample:\n  refunds rejected show 5f0c0f3e1a\n\n\b\nExit code: 3 if no message has"
        " this ID."
    )
)
@click.argument("entry_id", metavar="ID")
@_json_option
def show(*, entry_id: str, as_json: bool) -> int:
    """Show one rejected message, without secrets, as far as it was stored."""
    with opened() as refunds:
        found = rejections.find(refunds.store, entry_id)
    if as_json:
        render.as_json(found.as_dict())
        return DONE
    rows = [
        ("rejected", values.moment(found.rejected_at)),
        ("reason", values.plain(found.reason)),
        *(("refund", values.plain(refund_id)) for refund_id in found.refund_ids),
    ]
    render.put(
        render.heading(values.plain(found.entry_id)),
        render.facts(rows),
        "",
        values.plain(found.message),
    )
    return DONE


@rejected.command(
    epilog="""\b
Examples:
  refunds rejected drop 5f0c0f3e1a
  refunds rejected drop --all

\b
Exit code: 3 if no message has this ID; 9 if there is no message at all, or you
answered no."""
)
@click.argument("entry_id", metavar="[ID]", required=False)
@click.option("--all", "every", is_flag=True, help="Drop all rejected messages.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation before --all.")
def drop(*, entry_id: str | None, every: bool, yes: bool) -> int:
    """Delete one rejected message, or all. The refunds that they requested are not made."""
    if (entry_id is None) != every:
        raise click.UsageError("give the ID of one message, or --all, but not both")
    with opened() as refunds:
        if entry_id is not None:
            act(
                refunds,
                "rejected drop",
                entry_id,
                lambda: rejections.drop(refunds.store, entry_id),
            )
            note(f"message {values.plain(entry_id)} is dropped")
            return DONE
        if not yes and not _agreed(refunds.store.address):
            note("nothing was dropped")
            return NOTHING_TO_DO
        count = act(refunds, "rejected drop", "all", lambda: rejections.drop_all(refunds.store))
    note(
        f"{count:,} {'message is' if count == 1 else 'messages are'} dropped"
        if count
        else "no message was rejected"
    )
    return DONE if count else NOTHING_TO_DO


def _agreed(address: str) -> bool:
    """Ask for confirmation on a terminal; without one, the command itself is the confirmation."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    try:
        return click.confirm(f"drop every rejected message at {address}?", err=True)
    except click.Abort:
        note("")
        raise Detached("nothing was dropped") from None
