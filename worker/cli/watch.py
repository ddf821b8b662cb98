"""`refunds watch`: shows the watch of settled refunds for reversals, and sets it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click
from rich.table import Table

from worker.cli import render
from worker.cli.exits import DONE, NOTHING_TO_DO
from worker.cli.session import note, opened
from worker.cli.values import checked_moment
from worker.errors import SettingsError
from worker.model.times import rfc3339
from worker.model.words import counted
from worker.monitoring.checks import lasting
from worker.settings import Settings
from worker.store.watch_state import Rung, WatchState, backfill, read_watch, rung_name
from worker.wording import values

_DAY_SECONDS: Final = 86_400


@click.group(
    epilog="""\b
Examples:
  refunds watch status
  refunds watch backfill --since 2026-01-01
"""
)
def watch() -> None:
    """Show and set back the watch: settled refunds are read again after 1, 7, 30 and 60 days.

    A refund that succeeded may fail days later, and then its status becomes failed. REFUNDS_WATCH
    names the times. See the refunds found with 'refunds list --reversed'.
    """


@watch.command(
    short_help="Show how far the watch has come.",
    epilog="\b\nExample:\n  refunds watch status --json",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(*, as_json: bool) -> int:
    """Show each rung of the watch: up to when it has read, how late it is, its calls a day."""
    with opened() as refunds:
        settings = refunds.settings
        state = read_watch(refunds.store, settings.watch_rungs, refunds.store.time())
    if as_json:
        render.as_json(_as_dict(state, settings))
        return DONE
    if state.rungs:
        render.put(_table(state.rungs), "")
    a_day = sum(rung.a_day for rung in state.rungs)
    most = settings.watch_rate * _DAY_SECONDS
    rows = [
        ("started", None if state.started_at is None else values.moment(state.started_at)),
        ("calls", f"{a_day:,} a day, of {most:,.0f} that are allowed" if state.rungs else None),
        ("waiting", counted(state.waiting, "refund")),
        (
            "left out",
            f"{counted(state.blind, 'read')} of refunds that have no provider id to be read by",
        ),
        ("reversed", counted(state.reversed, "refund")),
    ]
    render.put(render.facts(rows))
    if not state.rungs:
        note("the watch is off: set REFUNDS_WATCH, such as 1d,7d,30d,60d, for every worker")
    elif state.started_at is None:
        note("the watch has not begun: start a worker with 'refunds worker'")
    if state.reversed:
        note("see the reversed refunds with 'refunds list --reversed'")
    return DONE


def _as_dict(state: WatchState, settings: Settings) -> dict[str, Any]:
    return {
        "started_at": None if state.started_at is None else rfc3339(state.started_at),
        "rungs": [
            {
                "rung": rung_name(rung.after),
                "status": rung.status.value,
                "cursor": None if rung.cursor is None else rfc3339(rung.cursor),
                "lag_seconds": rung.lag.total_seconds(),
                "calls_a_day": rung.a_day,
            }
            for rung in state.rungs
        ],
        "calls_a_day": sum(rung.a_day for rung in state.rungs),
        "most_calls_a_day": round(settings.watch_rate * _DAY_SECONDS),
        "waiting": state.waiting,
        "blind": state.blind,
        "reversed": state.reversed,
    }


def _table(rungs: Sequence[Rung]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rung", "status", "read what settled until", "behind"):
        table.add_column(name, no_wrap=True)
    table.add_column("calls a day", justify="right", no_wrap=True)
    for rung in rungs:
        table.add_row(
            rung_name(rung.after),
            rung.status.value,
            "-" if rung.cursor is None else values.moment(rung.cursor),
            lasting(rung.lag.total_seconds()) if rung.lag else "-",
            f"{rung.a_day:,}",
        )
    return table


@watch.command(
    "backfill",
    short_help="Let older settled refunds be read again.",
    epilog="""\b
Example:
  refunds watch backfill --since 2026-01-01

\b
Exit code: 9 if nothing that settled since then is to be read again.""",
)
@click.option(
    "--since",
    required=True,
    metavar="DATE",
    help="Read again what settled since then; in UTC unless it names a zone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def backfill_watch(*, since: str, as_json: bool) -> int:
    """Set the watch back, so that what settled since DATE is read again, each refund once.

    The reads take their share of the rate limit (REFUNDS_WATCH_SHARE), so many of them take a
    while. Nothing is sent.
    """
    moment = checked_moment(since, "must be in the past: give the date from which to read again")
    with opened() as refunds:
        settings = refunds.settings
        if not settings.watch_rungs:
            raise SettingsError(
                "REFUNDS_WATCH is off, so no worker reads settled refunds again: set it for every"
                " worker, such as 1d,7d,30d,60d"
            )
        moved = backfill(refunds.store, settings.watch_rungs, moment, refunds.store.time())
    count = sum(each.refunds for each in moved)
    seconds = count / settings.watch_rate
    if as_json:
        render.as_json(
            {
                "since": rfc3339(moment),
                "refunds": count,
                "seconds": round(seconds),
                "rungs": [
                    {
                        "rung": rung_name(each.after),
                        "status": each.status.value,
                        "cursor": rfc3339(each.cursor),
                        "refunds": each.refunds,
                    }
                    for each in moved
                ],
            }
        )
    elif count:
        click.echo(f"{counted(count, 'refund')} will be read again, in {lasting(seconds)} or more")
    if not count:
        note("nothing that settled since then is to be read again")
        return NOTHING_TO_DO
    note("follow it with 'refunds watch status'")
    return DONE
