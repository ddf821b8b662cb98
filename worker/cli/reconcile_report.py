"""What `refunds reconcile` prints and writes: classes, balances, and every difference."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import islice
from typing import IO, Any, Final

from rich.table import Table

from worker.cli import render
from worker.cli.outputs import Kind
from worker.cli.session import note
from worker.importer.cells import guarded
from worker.model.times import from_ms, rfc3339, to_ms
from worker.reconcile.books import Books, Item
from worker.reconcile.comparing import CLASSES, Balance, Outcome
from worker.reconcile.export import Export
from worker.reconcile.window import Window
from worker.wording.values import plain

_SHOWN: Final = 20
COLUMNS: Final = (
    "class",
    "refund_id",
    "provider_refund_id",
    "payment_intent",
    "our_amount",
    "their_amount",
    "our_currency",
    "their_currency",
    "our_status",
    "their_status",
    "our_time",
    "their_time",
    "line",
    "reason",
)
DIFFERENCES: Final = Kind("a file of differences", lambda names: tuple(names) == COLUMNS)


def as_ms(window: Window) -> tuple[int, int]:
    """Return a window in epoch ms."""
    return to_ms(window.start), to_ms(window.end)


def sentence(balance: Balance) -> str:
    """Return the line of a currency: theirs = ours + what the classes explain."""
    terms = [
        f" {'-' if amount < 0 else '+'} {name} {abs(amount):,}"
        for name, amount in balance.explained.items()
    ]
    sign = "=" if balance.holds else "is not"
    name = balance.currency.upper() or "unknown currency"
    return f"{name}: theirs {balance.theirs:,} {sign} ours {balance.ours:,}{''.join(terms)}"


def put(sides: Books, outcome: Outcome, *, listed: bool) -> None:
    """Print the classes, a line for each currency, and the first differences."""
    render.put(_classes(outcome), "")
    for balance in outcome.balances:
        render.put(plain(sentence(balance)))
    items = list(islice(sides.items(), _SHOWN + 1)) if listed else []
    if items:
        render.put("", _differences(items[:_SHOWN]))
    if len(items) > _SHOWN:
        note(f"only the first {_SHOWN} differences are shown: write all with --output")


def _classes(outcome: Outcome) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("class", "currency"):
        table.add_column(name, no_wrap=True)
    for name in ("refunds", "ours", "theirs"):
        table.add_column(name, justify="right", no_wrap=True)
    for (kind, currency), total in sorted(outcome.sums.items(), key=_place):
        table.add_row(
            kind,
            plain(currency.upper() or "unknown"),
            f"{total.refunds:,}",
            f"{total.ours:,}",
            f"{total.theirs:,}",
        )
    return table


def _place(entry: tuple[tuple[str, str], Any]) -> tuple[int, str]:
    (kind, currency), _ = entry
    return CLASSES.index(kind), currency


def _differences(items: Iterable[Item]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("class", "line", "refund", "provider's refund"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold")
    for item in items:
        facts = _facts(item)
        table.add_row(
            item.kind,
            str(facts["line"] or "-"),
            plain(facts["refund_id"] or "-"),
            plain(facts["provider_refund_id"] or "-"),
            plain(item.reason),
        )
    return table


def _facts(item: Item) -> dict[str, Any]:
    theirs = None if item.row is None else item.row.theirs
    ours = item.ours
    provider_id = theirs.id if theirs is not None else None
    refund_id = theirs.named if theirs is not None else None
    created = None if theirs is None or theirs.created is None else theirs.created
    return {
        "class": item.kind,
        "refund_id": ours.refund_id if ours is not None else refund_id,
        "provider_refund_id": provider_id or (ours.provider_id if ours is not None else None),
        "payment_intent": ours.payment if ours is not None else theirs and theirs.payment,
        "our_amount": ours and ours.amount,
        "their_amount": theirs and theirs.amount,
        "our_currency": ours and ours.currency,
        "their_currency": theirs and theirs.currency,
        "our_status": ours and ours.status,
        "their_status": theirs and theirs.status,
        "our_time": ours and rfc3339(from_ms(ours.at)),
        "their_time": None if created is None else rfc3339(from_ms(created)),
        "line": theirs and theirs.line,
        "reason": item.reason,
    }


def write_csv(items: Iterable[Item], out: IO[str]) -> int:
    """Write every difference, the worst first, and return their number."""
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    count = 0
    for count, item in enumerate(items, 1):  # noqa: B007 - read after the loop
        facts = _facts(item)
        values = (facts[name] for name in COLUMNS)
        writer.writerow([guarded(v) if isinstance(v, str) else v for v in values])
    return count


def put_json(export: Export, window: Window, outcome: Outcome, looked: int | None) -> None:
    """Print the whole result as one object."""
    facts: dict[str, Any] = {
        "file": export.source.name,
        "from": rfc3339(window.start),
        "to": rfc3339(window.end),
        "differs": outcome.differs,
        "classes": outcome.counts(),
        "sums": [
            {
                "class": kind,
                "currency": currency or None,
                "refunds": total.refunds,
                "ours": total.ours,
                "theirs": total.theirs,
            }
            for (kind, currency), total in sorted(outcome.sums.items(), key=_place)
        ],
        "balance": [
            {
                "currency": each.currency or None,
                "theirs": each.theirs,
                "ours": each.ours,
                "explained": each.explained,
                "holds": each.holds,
            }
            for each in outcome.balances
        ],
    }
    render.as_json(facts if looked is None else facts | {"looked_at": looked})
