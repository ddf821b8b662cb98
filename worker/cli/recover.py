"""`refunds recover`: the first command to run on a Redis server restored from an old snapshot."""

from __future__ import annotations

import json
import sys
from datetime import timedelta

import click

from worker.cli.exits import DONE, NOTHING_TO_DO, Detached
from worker.cli.session import act, note, opened, operator
from worker.cli.values import checked_moment
from worker.model.times import rfc3339
from worker.model.words import counted, verb
from worker.store.recovery import recover as recover_records
from worker.wording import values
from worker.wording.ranges import Whole


def _agreed(address: str) -> bool:
    """Ask for confirmation on a terminal; without one, the command itself is the confirmation."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    try:
        return click.confirm(
            f"pause all sending at {address}, and put in doubt what may have been sent since?",
            err=True,
        )
    except click.Abort:
        note("")
        raise Detached("nothing was changed") from None


@click.command(
    epilog="""\b
Example:
  refunds recover --since 2026-01-31T09:00:00Z && refunds doctor && refunds resume

\b
Exit code: 9 if you answered no."""
)
@click.option(
    "--since",
    required=True,
    metavar="TIME",
    help=(
        "When the restored snapshot was taken, or a little earlier; in UTC unless it names a zone."
    ),
)
@click.option(
    "--resubmitted-for",
    default=72,
    show_default=True,
    type=Whole(0, 24 * 60),
    metavar="HOURS",
    help=(
        "New refund ids start in doubt for so long: an order system may submit again what the"
        " snapshot lost."
    ),
)
@click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation; without a terminal, none is asked."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recover(*, since: str, resubmitted_for: int, yes: bool, as_json: bool) -> int:
    """After restoring a Redis snapshot.

    Pause all sending, and put in doubt what may have been sent since.

    Restore the server, run this command, start the workers, then run 'refunds resume'. Each refund
    in doubt is looked for at the provider before anything is sent. With REFUNDS_READBACK=totals or
    none most of them need review, because there is no earlier reading to compare with.
    """
    # In a wrong time zone the time could be hours late, and refunds sent in those hours would not
    # be put in doubt. So it is shown as it was read.
    moment = checked_moment(
        since, "must be in the past: give the time at which the restored snapshot was taken"
    )
    with opened() as refunds:
        if not yes and not _agreed(refunds.store.address):
            note("nothing was changed")
            return NOTHING_TO_DO
        by, suspected = operator(refunds.settings), timedelta(hours=resubmitted_for)
        try:
            done = act(
                refunds,
                "recover",
                "",
                lambda: recover_records(refunds.store, moment, resubmitted_for=suspected, by=by),
            )
        except KeyboardInterrupt:
            raise Detached(
                "interrupted: not all refunds that may have been sent are in doubt yet: run the"
                " same command again before 'refunds resume'"
            ) from None
    if as_json:
        found = {
            "doubted": done.doubted,
            "since": rfc3339(moment),
            "suspect_until": rfc3339(done.suspect_until),
        }
        click.echo(json.dumps(found))
    else:
        doubted = f"{counted(done.doubted, 'refund')} {verb(done.doubted, 'is', 'are')}"
        click.echo(f"{doubted} in doubt since {rfc3339(moment)}")
    note(f"new refund ids start in doubt until {values.moment(done.suspect_until)}")
    note("all sending is paused: start the workers, then run 'refunds resume'")
    return DONE
