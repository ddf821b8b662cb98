"""`refunds submit`, `status`, `cancel` and `retry`: one refund by its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from worker.broker import rejected
from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO, REJECTED
from worker.cli.session import act, note, opened, operator
from worker.cli.values import request_of
from worker.cli.waiting import verdict, wait_for
from worker.errors import IdempotencyConflict
from worker.model.refund import Lane, Refund, Stage
from worker.model.request import REASONS
from worker.store.records import history_as_json
from worker.wording import values
from worker.wording.ranges import SECONDS

wait_option = click.option(
    "--wait", "wait", type=SECONDS, metavar="SECONDS", help="Wait at most this long for the result."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line."
)


@click.command(
    epilog="""\b
Examples:
  refunds submit order-1001-1 --payment-intent pi_3NfK2x
  refunds submit order-1001-1 --payment-intent pi_3NfK2x --amount 500 --reason duplicate --wait 30
  refunds submit order-1001-1 --payment-intent pi_3NfK2x --metadata order=1001 --json

\b
Exit code with --wait: 0 succeeded, or still in progress (a note says so);
4 failed, canceled or needs review."""
)
@click.argument("refund_id")
@click.option(
    "--payment-intent", required=True, metavar="PI", help="The provider's id of the payment."
)
@click.option(
    "--amount",
    metavar="MINOR",
    help="In minor units (500 is 5.00 USD); all that is left if omitted.",
)
@click.option(
    "--currency",
    metavar="ISO",
    help="Refuse the refund if its payment has another currency. Not sent itself.",
)
@click.option("--reason", metavar="REASON", help=f"One of {', '.join(REASONS)}.")
@click.option(
    "--metadata",
    multiple=True,
    metavar="KEY=VALUE",
    help="Stored and sent with the refund; may be repeated.",
)
@wait_option
@json_option
def submit(*, wait: float | None, as_json: bool, **values: Any) -> int:
    """Submit one refund.

    REFUND_ID is your own id and the idempotency key. The same id with the same contents shows the
    existing refund and moves no money again; with other contents it is refused (exit code 6).
    """
    request = request_of(**values)
    with opened() as refunds:
        ((_, created),) = refunds.submit_stream([request], lane=Lane.SINGLE)
        if created.result == "conflict":
            raise IdempotencyConflict(request.refund_id)
        if created.result == "exists":
            note(
                f"refund {request.refund_id} was already accepted, with the same contents: nothing"
                " was sent again"
            )
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
  refunds status order-1001-1 --wait 60 --json | jq -r .status

\b
Exit code: 3 if an id is unknown, or its message was rejected; with --wait 4 if
any failed, was canceled or needs review. A refund still in progress after the
wait leaves 0 and a note."""
)
@click.argument("refund_ids", nargs=-1, required=True, metavar="REFUND_ID...")
@click.option(
    "--history",
    is_flag=True,
    help="Also show every move, oldest first: when, to which stage, and why.",
)
@wait_option
@json_option
def status(*, refund_ids: tuple[str, ...], history: bool, wait: float | None, as_json: bool) -> int:
    """Show the current records of refunds."""
    with opened() as refunds:
        found = wait_for(refunds, refund_ids, wait or 0)
        known = {refund.refund_id for refund in found}
        for refund in found:
            in_review = refund.stage is Stage.REVIEW and not as_json
            entries = refunds.history(refund.refund_id) if history or in_review else ()
            if history and not as_json and refund is not found[0]:
                click.echo()
            _write(refund, as_json=as_json, entries=entries, history=history)
            if in_review and wait is None:
                note(
                    f"refund {refund.refund_id} needs review: see why with 'refunds review show"
                    f" {refund.refund_id}'"
                )
        unknown = [refund_id for refund_id in dict.fromkeys(refund_ids) if refund_id not in known]
        refused = {refund_id: rejected.of_refund(refunds.store, refund_id) for refund_id in unknown}
        address = refunds.store.address
    code = DONE if wait is None else verdict(found, wait)
    for refund_id, why in refused.items():
        if why is None:
            note(
                f"error: no refund {values.plain(refund_id)} exists at {address}: check the id,"
                " REFUNDS_REDIS_URL and REFUNDS_PREFIX"
            )
        else:
            note(
                f"error: refund {refund_id} was not accepted, because its message was rejected at"
                f" {values.moment(why.rejected_at)} ({why.reason}): see the message with 'refunds"
                f" rejected show {why.entry_id}', fix the sender, and send the refund again with"
                " the same id"
            )
    return REJECTED if unknown else code


@click.command(
    epilog="""\b
Example:
  refunds cancel order-1001-1

\b
Exit code: 6 if the refund may have been sent, or is settled; 3 if the id is
unknown; 9 if it was already canceled."""
)
@click.argument("refund_id")
@json_option
def cancel(*, refund_id: str, as_json: bool) -> int:
    """Cancel a refund that was not sent yet.

    A refund that may have reached the provider cannot be canceled, and is not changed.
    """
    with opened() as refunds:
        by = operator(refunds.settings)
        changed, refund = act(
            refunds, "cancel", refund_id, lambda: refunds.cancel_once(refund_id, by=by)
        )
    _write(refund, as_json=as_json)
    if not changed:
        note(f"refund {refund_id} was already canceled: nothing was changed")
        return NOTHING_TO_DO
    return DONE


@click.command(
    epilog="""\b
Examples:
  refunds retry order-1001-1
  refunds retry order-1001-1 --unknown --wait 60

\b
Exit code: 6 if the refund has not failed, or sending it again cannot help; 3 if
the id is unknown; 9 if it is already being sent again; with --wait 4 if it
failed again or needs review."""
)
@click.argument("refund_id")
@click.option(
    "--unknown", is_flag=True, help="Also if it is not known whether sending it again can help."
)
@wait_option
@json_option
def retry(*, refund_id: str, unknown: bool, wait: float | None, as_json: bool) -> int:
    """Send a failed refund again: the same id, as a new generation with a new idempotency key.

    First find out why it failed: 'refunds status REFUND_ID' shows the code.
    """
    with opened() as refunds:
        by = operator(refunds.settings)
        again, refund = act(
            refunds,
            "retry",
            refund_id,
            lambda: refunds.retry_once(refund_id, unknown=unknown, by=by),
        )
        if not again:
            state = "is already being sent again"
            if refund.stage is Stage.REVIEW:
                state = f"needs review (see 'refunds review show {refund_id}')"
            note(f"refund {refund_id} {state}: nothing was changed")
        shown = [refund] if wait is None else wait_for(refunds, [refund_id], wait)
    for each in shown:
        _write(each, as_json=as_json)
    if wait is not None:
        return verdict(shown, wait)
    return DONE if again else NOTHING_TO_DO


def _write(
    refund: Refund, *, as_json: bool, entries: Sequence[dict[str, Any]] = (), history: bool = False
) -> None:
    if as_json:
        shown = refund.as_dict()
        if history:
            shown["history"] = history_as_json(entries)
        render.as_json(shown)
        return
    moves = (render.history(entries),) if history else ()
    render.put(render.heading(refund.refund_id), render.block(refund, entries), *moves)
