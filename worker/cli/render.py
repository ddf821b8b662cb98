"""How refunds look: blocks, tables and histories for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TextIO

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from worker.model import Refund, Stage, from_ms, rfc3339

_UNBOUND: Final = 10_000
"""The width of what no terminal shows: a pipe gets whole lines."""
_STYLES: Final = {
    "succeeded": "green",
    "failed": "red",
    "canceled": "dim",
    "review": "bold magenta",
    "in_doubt": "yellow",
    "pending": "cyan",
}
_TOLD: Final = frozenset({"version", "at", "from", "to", "status", "label", "attempt", "by", "note"})


def console(stream: TextIO) -> Console:
    """Return a console on a stream; without a terminal, or with NO_COLOR, it writes plain text."""
    return Console(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        no_color=True if os.environ.get("NO_COLOR") else None,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        width=None if stream.isatty() else _UNBOUND,
    )


def put(*things: RenderableType, stream: TextIO | None = None) -> None:
    """Write to stdout, or another stream; lines that go to no terminal end where their text does."""
    target = stream or sys.stdout
    out = console(target)
    if out.is_terminal:
        for thing in things:
            out.print(thing)
        return
    with out.capture() as captured:
        for thing in things:
            out.print(thing)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), file=target)


def heading(text: str) -> Text:
    """Return a line that names what follows."""
    return Text(text, style="bold")


def as_json(value: Mapping[str, Any]) -> None:
    """Write one object on one line; ASCII, so that any reader and any terminal takes it."""
    click.echo(json.dumps(value, separators=(", ", ": ")))


def plain(value: object) -> str:
    """Return a value fit for a terminal: what could move its cursor is shown as an escape."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def state_of(refund: Refund) -> Text:
    """Return status and, while it is on its way, stage."""
    word = refund.status.value if refund.settled else refund.stage.value
    style = _STYLES.get(word) or _STYLES[refund.status.value]
    label = refund.status.value if refund.settled else f"{refund.status.value} · {refund.stage.value}"
    return Text(label, style=style)


def amount_of(refund: Refund) -> str:
    """Return the amount in minor units with its currency, or what stands in its place."""
    if refund.amount is None:
        return "all that is left"
    return f"{refund.amount} {plain(refund.currency)}" if refund.currency else str(refund.amount)


def moment(value: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M:%SZ")


def facts(rows: Iterable[tuple[str, object]]) -> Table:
    """Return named values, one a line; absent ones left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=10)
    grid.add_column(overflow="fold")
    for name, value in rows:
        if isinstance(value, Text):
            grid.add_row(f"  {name}", value)
        elif value is not None and value != "":
            grid.add_row(f"  {name}", plain(value))
    return grid


def block(refund: Refund) -> Table:
    """Return a refund for a person."""
    provider = refund.provider_refund_id
    if provider and refund.provider_status:
        provider = f"{provider} ({refund.provider_status})"
    error = refund.error_code
    if error and refund.error_message:
        error = f"{error}: {refund.error_message}"
    rows: list[tuple[str, object]] = [
        ("state", state_of(refund)),
        ("payment", refund.payment_intent),
        ("amount", amount_of(refund)),
        ("reason", refund.reason),
        ("metadata", " ".join(f"{name}={value}" for name, value in refund.metadata.items())),
        ("provider", provider),
        ("evidence", refund.evidence),
        ("error", error),
        ("retriable", refund.retriable),
        ("in doubt", f"since {moment(refund.doubt_since)}" if refund.doubt_since else None),
        ("attempts", refund.attempts or None),
        ("generation", refund.generation if refund.generation > 1 else None),
        ("batch", refund.batch_id),
        ("accepted", moment(refund.created_at)),
        ("changed", moment(refund.updated_at)),
        ("next look", moment(refund.next_check_at) if refund.stage is not Stage.REVIEW else "when a person decides"),
    ]
    if refund.settled:
        rows.pop()
    return facts(rows)


def listing(refunds: Sequence[Refund]) -> Table:
    """Return refunds as a table, one a row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("refund", "state", "payment"):
        table.add_column(name, overflow="fold")
    table.add_column("amount", justify="right")
    table.add_column("changed", no_wrap=True)
    table.add_column("what", overflow="fold")
    for refund in refunds:
        what = refund.error_code if refund.error_code is not None else refund.provider_refund_id
        table.add_row(
            refund.refund_id,
            state_of(refund),
            refund.payment_intent,
            amount_of(refund),
            moment(refund.updated_at),
            plain(what or ""),
        )
    return table


def history(entries: Iterable[Mapping[str, Any]]) -> Table:
    """Return the moves of a refund, oldest first: when, from where to where, what was seen, by whom."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for entry in entries:
        to = str(entry.get("to", ""))
        word = str(entry.get("status", "")) if to == "settled" else to
        move = Text(f"{entry.get('from') or 'new'} → ").append(word, style=_STYLES.get(word, ""))
        grid.add_row(f"  {_clock(entry.get('at'))}", move, plain(_told(entry)))
    return grid


def _clock(at: object) -> str:
    return rfc3339(from_ms(at)).replace("T", " ") if isinstance(at, int) else ""


def _told(entry: Mapping[str, Any]) -> str:
    parts = [str(entry.get("label", "")).replace("_", " ")]
    if "attempt" in entry:
        parts.append(f"attempt {entry['attempt']}")
    parts += [f"{name}={value}" for name, value in entry.items() if name not in _TOLD and value is not None]
    if entry.get("by"):
        parts.append(f"by {entry['by']}")
    if entry.get("note"):
        parts.append(f"“{entry['note']}”")
    return "  ".join(parts)


def history_as_json(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the moves with their times as RFC 3339 UTC."""
    return [{**entry, "at": rfc3339(from_ms(entry["at"]))} for entry in entries]
