"""Words for an imported file: its state, and how far its refunds have come."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final

from worker.batches import Batch, BatchProgress
from worker.file_import import UNSTATED, unit_of
from worker.model.currencies import AmountUnit
from worker.model.words import counted, money, verb
from worker.wording import held
from worker.wording.values import moment, plain

Rows = list[tuple[str, object]]
"""Labels and values, one pair per line."""
_MINUTE: Final = 60
_DAY: Final = 24
"""Hours in one."""
STILL: Final = "few or no refunds have settled in the last minute"
"""What a pace of 0 says: of all refunds that settled, only the latest are sampled."""
SETTLED_STATUSES: Final = ("succeeded", "failed", "canceled")
_COUNTS: Final = {
    "invalid": "invalid",
    "duplicates": "duplicates",
    "known": "accepted before",
    "conflicting": "taken meanwhile",
}


def state_of_batch(each: Batch) -> str:
    """Return the state of a batch in one word."""
    if each.state != "running":
        return each.state
    if each.imported_at is None:
        return "incomplete"
    return "finished" if each.finished else "running"


def facts_of_batch(seen: BatchProgress, unit: AmountUnit | None = None) -> Rows:
    """Return the named facts of a batch without its state; None means that there is none.

    Sums are in `unit`, or in the one of the batch's file.
    """
    each = seen.batch
    is_later = each.not_before is not None and each.not_before > seen.now
    waiting = is_later and each.state != "canceled"
    rows: list[tuple[str, object]] = [
        ("file", each.file),
        ("started", moment(each.created_at)),
        ("imported", _imported(each)),
        ("held until", moment(each.not_before) if waiting else None),
        ("paused", held.paused(each) if each.state == "paused" else None),
        (
            "canceled",
            (f"{moment(each.canceled_at)} by {each.canceled_by}" if each.canceled_at else None),
        ),
        ("rows", f"{each.rows:,}"),
    ]
    unit = unit or unit_of(each.options)
    rows += [
        (label, f"{count:,}") for name, label in _COUNTS.items() if (count := getattr(each, name))
    ]
    rows += total_rows(dict(sorted(each.totals.items())), {}, unit)
    if each.all_remaining:
        rows.append(("no amount", f"{counted(each.all_remaining, 'refund')} of all that is left"))
    rows.append(("refunds", f"{each.accepted:,}"))
    rows += [
        (name, f"{each.statuses[name]:,}") for name in SETTLED_STATUSES if each.statuses.get(name)
    ]
    rows += [
        (name, f"{count:,}") for name, count in sorted(each.stages.items()) if name != "settled"
    ]
    rows += amount_rows(each.amounts, unit)
    if each.moving:
        rows.append(("pace", f"{seen.rate:,.1f} refunds a second" if seen.rate else STILL))
    if seen.eta is not None:
        rows.append(
            (
                "left",
                f"{span((seen.eta - seen.now).total_seconds())}, until {moment(seen.eta)}",
            )
        )
    return rows


def _imported(each: Batch) -> str:
    if each.imported_at is not None:
        return moment(each.imported_at)
    if each.state == "canceled":
        return "incomplete: the batch was canceled"
    return "incomplete: import the file again"


def progress_of_import(each: Batch) -> str:
    """Return how far an interrupted import has come."""
    accepted = f"{each.accepted:,} of its {counted(each.rows, 'row')}"
    return f"{accepted} {verb(each.accepted, 'was', 'were')} accepted, and none for 2 minutes"


def command_to_continue(each: Batch) -> str:
    """Return the command that continues an interrupted import."""
    file = "-" if each.file == "stdin" else shlex.quote(each.file)
    return f"refunds import {plain(file)}"


def total_rows(
    totals: Mapping[str, int], counts: Mapping[str, Mapping[str, int]], unit: AmountUnit
) -> Rows:
    """Return a line for each currency's total; `counts` add the number of refunds, if known."""
    rows: Rows = []
    for currency, amount in totals.items():
        text = money(amount, currency, unit)
        if currency in counts:
            open_rows = counts[currency]["all_remaining"]
            text += f" in {counted(counts[currency]['rows'] - open_rows, 'refund')}"
            text += f", and {counted(open_rows, 'refund')} of all that is left" if open_rows else ""
        rows.append(("total, no currency" if currency == UNSTATED else f"total {currency}", text))
    return rows


def amount_rows(amounts: Mapping[str, int], unit: AmountUnit) -> Rows:
    """Return a line for each total that is stored as `status:currency`."""
    rows: Rows = []
    for name, amount in sorted(amounts.items()):
        status, _, currency = name.partition(":")
        label = f"{status}, no currency" if currency == "unknown" else f"{status} {currency}"
        rows.append((label, money(amount, currency, unit)))
    return rows


def span(seconds: float) -> str:
    """Return a length of time for a person.

    `about 40 s`, `about 12 min`, `about 3 h 20 min`, `about 2 d 4 h`.
    """
    whole = max(1, round(seconds))
    if whole < _MINUTE:
        return f"about {whole} s"
    minutes = round(seconds / _MINUTE)
    if minutes < _MINUTE:
        return f"about {minutes} min"
    hours, minutes = divmod(minutes, _MINUTE)
    if hours < _DAY:
        return f"about {hours} h {minutes} min"
    return f"about {hours // _DAY} d {hours % _DAY} h"
