"""`refunds recover`: what to do before anything else on a server that was restored from an old snapshot."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import click

from worker.cli import render
from worker.cli.exits import DONE
from worker.cli.session import note, opened
from worker.errors import FieldError, InvalidRequest
from worker.model import rfc3339
from worker.ranges import Whole
from worker.recovery import recover as recover_records
from worker.request import shown


def _moment(text: str) -> datetime:
    """Return a time as it was typed, RFC 3339; without a zone it is UTC. Raises `InvalidRequest`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        rule = "must be a time such as 2026-01-31T09:00:00Z"
        raise InvalidRequest([FieldError(field="since", code="since", value=shown(text), rule=rule)]) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if moment > datetime.now(UTC):
        rule = "must lie in the past: the time of the snapshot that was restored"
        raise InvalidRequest([FieldError(field="since", code="since", value=shown(text), rule=rule)])
    return moment


@click.command(
    epilog="\b\nExample:\n  refunds recover --since 2026-01-31T09:00:00Z && refunds doctor && refunds resume"
)
@click.option(
    "--since", required=True, metavar="TIME", help="When the restored snapshot was taken, or a little earlier."
)
@click.option(
    "--resubmitted-for",
    default=72,
    show_default=True,
    type=Whole(0, 24 * 60),
    metavar="HOURS",
    help="New ids begin in doubt for so long: an order system may hand in again what the snapshot lost.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def recover(*, since: str, resubmitted_for: int, as_json: bool) -> int:
    """Put in doubt what may have been sent since a restored snapshot, with every claim stopped.

    Restore the server, run this, start the workers, then 'refunds resume': each doubt is read back before anything is
    sent. With REFUNDS_READBACK=totals or none most of it goes to 'refunds review', since nothing was read before.
    """
    moment = _moment(since)
    with opened() as refunds:
        done = recover_records(refunds.store, moment, resubmitted_for=timedelta(hours=resubmitted_for))
    if as_json:
        found = {"doubted": done.doubted, "since": rfc3339(moment), "suspect_until": rfc3339(done.suspect_until)}
        click.echo(json.dumps(found))
    else:
        click.echo(f"{done.doubted} refunds are in doubt since {rfc3339(moment)}")
    note(f"new ids begin in doubt until {render.moment(done.suspect_until)}; everything is paused: 'refunds resume'")
    return DONE
