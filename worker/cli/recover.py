"""`refunds recover`: what to do before anything else on a server that was restored from an old snapshot."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

import click

from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO, Detached
from worker.cli.session import note, opened, operator
from worker.errors import FieldError, InvalidRequest
from worker.model.request import shown
from worker.model.times import rfc3339
from worker.ranges import Whole
from worker.store.recovery import recover as recover_records


def _moment(text: str) -> datetime:
    """Return a time as it was typed, RFC 3339, and say how it was understood. Raises `InvalidRequest`."""
    try:
        typed = datetime.fromisoformat(text)
        moment = typed.replace(tzinfo=UTC) if typed.tzinfo is None else typed.astimezone(UTC)
    except (ValueError, OverflowError):
        rule = "must be a time such as 2026-01-31T09:00:00Z"
        raise InvalidRequest([FieldError(field="since", code="since", value=shown(text), rule=rule)]) from None
    if moment > datetime.now(UTC):
        rule = "must lie in the past: the time of the snapshot that was restored"
        raise InvalidRequest([FieldError(field="since", code="since", value=shown(text), rule=rule)])
    # Hours beside what was meant, refunds that were sent would not be doubted.
    meant = "" if typed.tzinfo else ": it names no zone, and is taken as UTC"
    note(f"since {rfc3339(moment)}{meant}")
    return moment


def _agreed(place: str) -> bool:
    """Ask where a person can see the question and answer it; elsewhere the command itself is the answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    try:
        return click.confirm(f"stop all sending at {place}, and put in doubt what may have been sent since?", err=True)
    except click.Abort:
        note("")
        raise Detached("nothing was changed") from None


@click.command(
    epilog="""\b
Example:
  refunds recover --since 2026-01-31T09:00:00Z && refunds doctor && refunds resume

\b
Exit code: 9 if you said no."""
)
@click.option(
    "--since",
    required=True,
    metavar="TIME",
    help="When the restored snapshot was taken, or a little earlier; UTC where it names no zone.",
)
@click.option(
    "--resubmitted-for",
    default=72,
    show_default=True,
    type=Whole(0, 24 * 60),
    metavar="HOURS",
    help="New ids begin in doubt for so long: an order system may hand in again what the snapshot lost.",
)
@click.option("--yes", is_flag=True, help="Do not ask; without a terminal it never does.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def recover(*, since: str, resubmitted_for: int, yes: bool, as_json: bool) -> int:
    """Put in doubt what may have been sent since a restored snapshot, with every claim stopped.

    Restore the server, run this, start the workers, then 'refunds resume': each doubt is read back before anything is
    sent. With REFUNDS_READBACK=totals or none most of it goes to 'refunds review', since nothing was read before.
    """
    moment = _moment(since)
    with opened() as refunds:
        if not yes and not _agreed(refunds.store.place):
            note("nothing was changed")
            return NOTHING_TO_DO
        done = recover_records(
            refunds.store,
            moment,
            resubmitted_for=timedelta(hours=resubmitted_for),
            by=operator(refunds.settings),
        )
    if as_json:
        found = {"doubted": done.doubted, "since": rfc3339(moment), "suspect_until": rfc3339(done.suspect_until)}
        click.echo(json.dumps(found))
    else:
        click.echo(f"{done.doubted} refunds are in doubt since {rfc3339(moment)}")
    note(f"new ids begin in doubt until {render.moment(done.suspect_until)}; everything is paused: 'refunds resume'")
    return DONE
