"""`refunds list`: shows the refunds that match, as `worker.store.listing` finds them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import click
from rich.table import Table

from worker.batches import read_batch
from worker.cli import render
from worker.cli.exits import DONE
from worker.cli.session import note, opened
from worker.model.refund import Refund, Stage, Status
from worker.store.listing import Filter, matching
from worker.wording.ranges import Whole


@click.command(
    "list",
    epilog="""\b
Examples:
  refunds list --status pending
  refunds list --stage review
  refunds list --payment-intent pi_3NfK2x --json
  refunds list --reversed
  refunds list --status failed --limit 0 --json | jq -r .refund_id""",
)
@click.option(
    "--status",
    type=click.Choice([status.value for status in Status]),
    help="Only refunds with this status.",
)
@click.option(
    "--stage",
    type=click.Choice([stage.value for stage in Stage]),
    help="Only refunds in this stage.",
)
@click.option("--batch", metavar="ID", help="Only refunds that this batch created.")
@click.option("--payment-intent", metavar="PI", help="Only refunds on this payment.")
@click.option(
    "--reversed",
    "reversed_only",
    is_flag=True,
    help="Only refunds that succeeded and failed later, latest first, with their status now.",
)
@click.option(
    "--limit",
    type=Whole(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="How many; 0 for all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_refunds(
    *,
    status: str | None,
    stage: str | None,
    batch: str | None,
    payment_intent: str | None,
    reversed_only: bool,
    limit: int,
    as_json: bool,
) -> int:
    """List refunds: those in progress by their next check, then settled ones, newest first.

    With --batch they may be in the order of the file's rows, with --payment-intent in any order.
    """
    with opened() as refunds:
        found = matching(
            refunds.store,
            Filter(
                status=Status(status) if status else None,
                stage=Stage(stage) if stage else None,
                batch=batch,
                payment_intent=payment_intent,
                reversed_only=reversed_only,
            ),
        )
        shown = _write(islice(found, limit or None), as_json=as_json)
        if batch is not None and not shown:
            # A batch without matches is not an error, but an unknown batch id is: this raises.
            read_batch(refunds.store, batch)
        more = limit > 0 and shown == limit and next(found, None) is not None
    if more:
        note(f"more refunds match than the {limit} shown: use --limit 0 to list all")
    elif not shown:
        note("no refund matches")
    return DONE


def _write(refunds: Iterable[Refund], *, as_json: bool) -> int:
    """Write refunds and return their number.

    JSON one by one, a table page by page.
    """
    if not as_json:
        return sum(_put(table) for table in render.listings(refunds))
    count = 0
    for count, refund in enumerate(refunds, 1):  # noqa: B007 - read after the loop
        render.as_json(refund.as_dict())
    return count


def _put(table: Table) -> int:
    render.put(table)
    return table.row_count
