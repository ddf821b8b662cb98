"""`refunds totals`: what succeeded and what was reversed in a window of time."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import tzinfo
from typing import Any

import click
from rich.table import Table

from worker.cli import render
from worker.cli.exits import DONE, INTERNAL, NOTHING_TO_DO
from worker.cli.session import note, opened
from worker.cli.windows import window_of, window_options, zone_name
from worker.importer.cells import guarded
from worker.model.currencies import in_major
from worker.model.times import rfc3339
from worker.model.words import counted
from worker.reconcile.totals import GROUPS, Compared, Total, check, totals
from worker.reconcile.window import Window
from worker.wording.values import plain


def _groups(_ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text is not None else ()
    for name in names:
        if name not in GROUPS:
            raise click.BadParameter(
                f"{name!r} is not one of {', '.join(GROUPS)}: separate several by commas",
                param=param,
            )
    if len({*names}) < len(names):
        raise click.BadParameter("names a group twice: name each once", param=param)
    return names


@click.command(
    "totals",
    epilog="""\b
Examples:
  refunds totals --from 2026-01-01 --to 2026-01-31
  refunds totals --from 2026-01-01 --to 2026-01-31 --by day --tz Europe/Berlin --csv
  refunds totals --from 2026-01-01 --to 2026-01-31 --check

\b
Exit code: 9 if nothing settled then; 1 if --check finds that the counters
and the records disagree.""",
)
@window_options(required=True)
@click.option(
    "--by",
    "groups",
    metavar="GROUPS",
    callback=_groups,
    help=f"Totals for each of these too, comma-separated: {', '.join(GROUPS)}.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV instead of a table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--check",
    "wants_check",
    is_flag=True,
    help="Also compare the counters of the metrics with all records.",
)
def totals_of(
    *,
    start: str,
    end: str,
    zone: tzinfo,
    groups: tuple[str, ...],
    as_csv: bool,
    as_json: bool,
    wants_check: bool,
) -> int:
    """Sum up the refunds that succeeded in a window, by the time at which they settled.

    A reversal is a line of its own on the day on which it was seen. It never changes what an
    earlier month added up to.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other: leave one out")
    window = window_of(start, end, zone)
    with opened() as refunds:
        found = totals(refunds.store, window, groups, zone)
        compared = check(refunds.store) if wants_check else []
    if as_json:
        render.as_json(_as_dict(found, compared, window, groups, zone))
    elif as_csv:
        _write_csv(found, groups)
    elif found:
        render.put(_table(found, groups))
    _note_unknown(found)
    agreed = [_note_check(each) for each in compared]
    if not all(agreed):
        return INTERNAL
    if not found:
        note("no refund succeeded or was reversed then")
        return NOTHING_TO_DO
    return DONE


def _as_dict(
    found: Sequence[Total],
    compared: Sequence[Compared],
    window: Window,
    groups: Sequence[str],
    zone: tzinfo,
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "from": rfc3339(window.start),
        "to": rfc3339(window.end),
        "tz": zone_name(zone),
        "totals": [
            dict(zip(groups, total.group, strict=True))
            | {
                "kind": total.kind,
                "currency": total.currency,
                "refunds": total.refunds,
                "amount": total.signed,
                "unknown": total.unknown,
            }
            for total in found
        ],
    }
    if compared:
        facts["check"] = [
            {
                "counter": each.name,
                "counted": each.counter,
                "records": each.walked,
                "agrees": each.agrees,
            }
            for each in compared
        ]
    return facts


def _row(total: Total) -> list[str]:
    major = in_major(total.signed, total.currency)
    return [
        *total.group,
        total.kind,
        total.currency or "",
        str(total.refunds),
        str(total.signed),
        major or "",
    ]


def _header(groups: Sequence[str]) -> list[str]:
    return [*groups, "kind", "currency", "refunds", "amount", "amount_major"]


def _write_csv(found: Sequence[Total], groups: Sequence[str]) -> None:
    sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    writer = csv.writer(sys.stdout)
    writer.writerow(_header(groups))
    for total in found:
        texts = _row(total)
        writer.writerow([*map(guarded, texts[: len(groups)]), *texts[len(groups) :]])


def _table(found: Sequence[Total], groups: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (*groups, "kind", "currency"):
        table.add_column(name, no_wrap=True)
    for name in ("refunds", "minor units", "amount"):
        table.add_column(name, justify="right", no_wrap=True)
    for total in found:
        major = in_major(total.signed, total.currency, group=",")
        table.add_row(
            *(plain(name or "-") for name in total.group),
            total.kind,
            (total.currency or "unknown").upper(),
            f"{total.refunds:,}",
            f"{total.signed:,}",
            major or "-",
        )
    return table


def _note_unknown(found: Sequence[Total]) -> None:
    if unknown := sum(total.unknown for total in found):
        note(f"the amount of {counted(unknown, 'refund')} was never shown: it counts as 0")


def _note_check(each: Compared) -> bool:
    """Print what a counter and the records say, and return whether they agree."""
    text = f"{each.name}: {each.counter:,} by the counter, {each.walked:,} in the records"
    if not each.agrees:
        note(f"error: {text}: they must be equal; this is a bug, please report it")
    elif each.counter != each.walked:
        note(f"{text}; records have expired since, which a counter does not notice")
    else:
        note(f"{text}: they agree")
    return each.agrees
