"""`refunds submit`, `status`, `cancel` and `retry`: one refund by its id."""

from __future__ import annotations

from typing import Any

import click

from worker.broker import rejected
from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO, REJECTED
from worker.cli.session import note, opened, operator
from worker.cli.values import request_of
from worker.cli.waiting import verdict, wait_for
from worker.errors import IdempotencyConflict
from worker.model.refund import Lane, Refund, Status
from worker.model.request import REASONS
from worker.ranges import SECONDS
from worker.rules import decisions

wait_option = click.option("--wait", "wait", type=SECONDS, metavar="SECONDS", help="Wait at most so long for the end.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.command(
    epilog="""\b
Examples:
  refunds submit order-1001-1 --payment-intent pi_3NfK2x
  refunds submit order-1001-1 --payment-intent pi_3NfK2x --amount 500 --reason duplicate --wait 30
  refunds submit order-1001-1 --payment-intent pi_3NfK2x --metadata order=1001 --json

\b
Exit code with --wait: 0 succeeded, or still on its way (a note says so);
4 failed, canceled or needs a person."""
)
@click.argument("refund_id")
@click.option("--payment-intent", required=True, metavar="PI", help="The provider's id of the payment.")
@click.option("--amount", metavar="MINOR", help="In minor units (500 is 5.00 USD); without it all that is left.")
@click.option("--currency", metavar="ISO", help="Refuse unsent if the payment is in another; it is never sent.")
@click.option("--reason", metavar="REASON", help=f"One of {', '.join(REASONS)}.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Kept with the refund; may be repeated.")
@wait_option
@json_option
def submit(*, wait: float | None, as_json: bool, **values: Any) -> int:
    """Hand in one refund.

    REFUND_ID is your own, and the idempotency key: the same id with the same contents moves nothing twice and shows
    the record as it stands; with other contents it is refused (exit 6).
    """
    request = request_of(**values)
    with opened() as refunds:
        ((_, created),) = refunds.submit_stream([request], lane=Lane.SINGLE)
        if created.result == "conflict":
            raise IdempotencyConflict(request.refund_id)
        if created.result == "exists":
            note(f"refund {request.refund_id} was already accepted, with the same contents: nothing was sent again")
        elif not as_json and wait is None:
            note(f"accepted: follow it with 'refunds status {request.refund_id}'")
        if wait is None:
            _write(refunds.get(request.refund_id), as_json=as_json)
            return DONE
        shown = wait_for(refunds, [request.refund_id], wait)
        for refund in shown:
            _write(refund, as_json=as_json)
        return verdict(shown, wait)


@click.command(
    epilog="""\b
Examples:
  refunds status order-1001-1
  refunds status order-1001-1 --history
  refunds status order-1001-1 order-1002-1 --json | jq -r .status
  refunds status order-1001-1 --wait 60 && echo money is back

\b
Exit code: 3 if an id is unknown, or its message was rejected; with --wait 4 if any failed, was canceled or
needs a person. One still on its way after the wait leaves 0 and a note."""
)
@click.argument("refund_ids", nargs=-1, required=True, metavar="REFUND_ID...")
@click.option("--history", is_flag=True, help="Every move, oldest first: when, from where to where, what was seen.")
@wait_option
@json_option
def status(*, refund_ids: tuple[str, ...], history: bool, wait: float | None, as_json: bool) -> int:
    """Show refunds as they stand."""
    with opened() as refunds:
        found = wait_for(refunds, refund_ids, wait or 0)
        known = {refund.refund_id for refund in found}
        for refund in found:
            entries = refunds.history(refund.refund_id) if history else None
            if history and not as_json and refund is not found[0]:
                click.echo()
            _write(refund, as_json=as_json, entries=entries)
        unknown = [refund_id for refund_id in dict.fromkeys(refund_ids) if refund_id not in known]
        refused = {refund_id: rejected.of_refund(refunds.store, refund_id) for refund_id in unknown}
        place = refunds.store.place
    code = DONE if wait is None else verdict(found, wait)
    for refund_id, why in refused.items():
        if why is None:
            note(f"error: no refund {render.plain(refund_id)} was accepted at {place}: check the id and the settings")
        else:
            note(
                f"rejected: {refund_id} was not accepted: its message of {render.moment(why.rejected_at)} was refused "
                f"({why.reason}); see it with 'refunds rejected show {why.entry_id}', then send it with the same id"
            )
    return REJECTED if unknown else code


@click.command(
    epilog="""\b
Example:
  refunds cancel order-1001-1

\b
Exit code: 6 if it may have been sent already, or is settled; 3 if unknown;
9 if it was canceled already."""
)
@click.argument("refund_id")
@json_option
def cancel(*, refund_id: str, as_json: bool) -> int:
    """Cancel a refund before anything was sent.

    Once it may have reached the provider it cannot be canceled, and nothing is changed.
    """
    with opened() as refunds:
        before = refunds.get(refund_id)
        refund = refunds.apply(refund_id, decisions.cancel, {"by": operator(refunds.settings)})
    _write(refund, as_json=as_json)
    if before.status is Status.CANCELED:
        note(f"refund {refund_id} was canceled already: nothing was changed")
        return NOTHING_TO_DO
    return DONE


@click.command(
    epilog="""\b
Examples:
  refunds retry order-1001-1
  refunds retry order-1001-1 --unknown --wait 60

\b
Exit code: 6 if it has not failed, or sending it again cannot help; 3 if unknown;
9 if it goes again already; with --wait 4 if it failed again or needs a person."""
)
@click.argument("refund_id")
@click.option("--unknown", is_flag=True, help="Also if it is not known whether that can help.")
@wait_option
@json_option
def retry(*, refund_id: str, unknown: bool, wait: float | None, as_json: bool) -> int:
    """Send a failed refund again: the same id, as a new generation with a key of its own.

    Find out first why it failed: 'refunds status ID' has the code.
    """
    with opened() as refunds:
        before = refunds.get(refund_id)
        refund = refunds.retry(refund_id, unknown=unknown, by=operator(refunds.settings))
        again = refund.generation > before.generation
        if not again:
            note(f"refund {refund_id} goes again already: nothing was changed")
        shown = [refund] if wait is None else wait_for(refunds, [refund_id], wait)
    for each in shown:
        _write(each, as_json=as_json)
    if wait is not None:
        return verdict(shown, wait)
    return DONE if again else NOTHING_TO_DO


def _write(refund: Refund, *, as_json: bool, entries: list[dict[str, Any]] | None = None) -> None:
    if as_json:
        shown = refund.as_dict()
        if entries is not None:
            shown["history"] = render.history_as_json(entries)
        render.as_json(shown)
        return
    moves = () if entries is None else (render.history(entries),)
    render.put(render.heading(refund.refund_id), render.block(refund), *moves)
