"""Prints refunds: blocks, tables and histories for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, TextIO

import click
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from worker.cli import reasons
from worker.model.answers import TryVerdict
from worker.model.refund import Refund, Stage
from worker.model.times import from_ms, rfc3339

_UNBOUND: Final = 10_000
"""The width without a terminal: a pipe gets whole lines."""
_STYLES: Final = {
    "succeeded": "green",
    "failed": "red",
    "canceled": "dim",
    "review": "bold magenta",
    "in_doubt": "yellow",
    "pending": "cyan",
}
_OWN_WORDS: Final = frozenset(
    {"version", "at", "from", "to", "status", "label", "attempt", "by", "note", "source"}
)
_SEEN: Final = {
    TryVerdict.DONE.value: "the provider made it",
    TryVerdict.MAYBE.value: "it may have happened",
    TryVerdict.NOT_SENT.value: "nothing was sent",
    TryVerdict.NOT_DONE.value: "provably not done",
    TryVerdict.MISMATCH.value: "the key was used with other contents",
    "lease_lapsed": "its worker stopped before it saved a result",
    "http_200": "read at the provider",
}
"""The words for what a history entry saw; any other value is shown by its name."""
_SOURCES: Final = {
    "list": "the payment's list",
    "totals": "the payment's totals",
    "lookup": "the refund itself",
}
"""The words for what was read, by the source of a history entry."""
_DECIDED: Final = {
    "operator_says_failed": "decided as failed",
    "operator_says_absent": "decided to send it again",
    "operator_says_succeeded": "decided which provider refund it is",
    "contradicted": "the provider shows otherwise",
}
_UNITS: Final = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000))


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
    """Write to stdout or another stream; without a terminal, lines have no trailing blanks.

    An id is never wrapped, so that it can be copied: a table wider than the terminal is wrapped by
    the terminal itself.
    """
    target = stream or sys.stdout
    out = console(target)
    if out.is_terminal:
        width = out.width
        for thing in things:
            if isinstance(thing, Table):
                out.width = max(width, _least_width(out, thing))
                out.print(thing)
                out.width = width
            else:
                out.print(thing, soft_wrap=True)
        return
    with out.capture() as captured:
        for thing in things:
            out.print(thing)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), file=target)


def _least_width(out: Console, table: Table) -> int:
    """Return the least width of a table that wraps no word and no cell of a `no_wrap` column."""
    padding = table.padding[1] + table.padding[3]
    width = 0
    for column in table.columns:
        cells = [
            Measurement.get(out, out.options.update(width=_UNBOUND), cell)
            for cell in (column.header, *column.cells)
        ]
        width += padding + max(cell.maximum if column.no_wrap else cell.minimum for cell in cells)
    return width


def heading(text: str) -> Text:
    """Return a line that names what follows."""
    return Text(text, style="bold")


def as_json(value: Mapping[str, Any]) -> None:
    """Write one object on one line, in ASCII, so that every reader and terminal accepts it."""
    click.echo(json.dumps(value, separators=(", ", ": ")))


def plain(value: object) -> str:
    """Return a value as text safe for a terminal: control characters are shown as escapes."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def state_of(refund: Refund) -> Text:
    """Return the status and, until the refund is settled, the stage."""
    word = refund.status.value if refund.settled else refund.stage.value
    style = _STYLES.get(word) or _STYLES[refund.status.value]
    label = (
        refund.status.value if refund.settled else f"{refund.status.value} · {refund.stage.value}"
    )
    return Text(label, style=style)


def amount_of(refund: Refund) -> str:
    """Return the amount in minor units with its currency, or `all that is left` if it is None."""
    if refund.amount is None:
        return "all that is left"
    return f"{refund.amount} {plain(refund.currency)}" if refund.currency else str(refund.amount)


def moment(value: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M:%SZ")


def facts(rows: Iterable[tuple[str, object]]) -> Table:
    """Return named values, one per line, without absent ones."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=10)
    grid.add_column(overflow="fold")
    for name, value in rows:
        if isinstance(value, Text):
            grid.add_row(f"  {name}", value)
        elif value is not None and value != "":
            grid.add_row(f"  {name}", plain(value))
    return grid


def block(refund: Refund, entries: reasons.Entries = ()) -> Table:
    """Return a refund for a person; its history says why it is in review."""
    provider = refund.provider_refund_id
    if provider and refund.provider_status:
        provider = f"{provider} ({refund.provider_status})"
    error = refund.error_code
    if error and refund.error_message:
        error = f"{error}: {refund.error_message}"
    in_review = refund.stage is Stage.REVIEW
    why = reasons.review_reason(entries) if in_review else None
    rows: list[tuple[str, object]] = [
        ("state", state_of(refund)),
        ("why", ": ".join(why) if why else None),
        ("payment", refund.payment_intent),
        ("amount", amount_of(refund)),
        ("reason", refund.reason),
        ("metadata", _metadata(refund)),
        ("provider", provider),
        (
            "possibly",
            (
                f"{refund.possible_refund_id}, which agrees and names no refund of yours"
                if refund.possible_refund_id
                else None
            ),
        ),
        ("evidence", refund.evidence),
        (
            "reversed",
            f"seen {moment(refund.reversed_at)}, after it had succeeded"
            if refund.reversed_at
            else None,
        ),
        (
            "contradicted",
            (
                f"by {refund.contradicted_by}, which the provider shows"
                if refund.contradicted_by
                else None
            ),
        ),
        # In review the code is what the last attempt or read-back showed, which is often not the
        # reason for the review.
        ("last seen" if in_review else "error", error),
        ("retriable", refund.retriable if refund.settled else None),
        ("in doubt", f"since {moment(refund.doubt_since)}" if refund.doubt_since else None),
        (
            "in doubt before",
            reasons.in_words(reasons.earlier_doubts(entries)) if refund.doubt_since else None,
        ),
        (
            "named",
            (
                f"{' and '.join(refund.candidates)} by a webhook: read before anything is sent"
                if refund.candidates
                else None
            ),
        ),
        ("attempts", refund.attempts or None),
        ("generation", refund.generation if refund.generation > 1 else None),
        ("batch", refund.batch_id),
        ("accepted", moment(refund.created_at)),
        ("changed", moment(refund.updated_at)),
        (
            "next check",
            (
                moment(refund.next_check_at)
                if refund.stage is not Stage.REVIEW
                else "after its review"
            ),
        ),
    ]
    if refund.settled:
        rows.pop()
    return facts(rows)


def _metadata(refund: Refund) -> str:
    if refund.metadata_erased_at is not None:
        return f"erased {moment(refund.metadata_erased_at)}"
    return " ".join(f"{name}={value}" for name, value in refund.metadata.items())


def listing(refunds: Sequence[Refund]) -> Table:
    """Return refunds as a table, one per row."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("refund", "state", "payment"):
        table.add_column(name, no_wrap=True)
    table.add_column("amount", justify="right", no_wrap=True)
    table.add_column("changed", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for refund in refunds:
        result = refund.error_code if refund.error_code is not None else refund.provider_refund_id
        if refund.stage is Stage.REVIEW and refund.error_code is not None:
            result = f"after {refund.error_code}"
        if refund.reversed_at is not None:
            result = f"reversed: {result}"
        if refund.stage is Stage.REVIEW and refund.possible_refund_id is not None:
            result = f"possibly {refund.possible_refund_id}"
        if refund.contradicted_by is not None:
            result = f"contradicted by {refund.contradicted_by}"
        table.add_row(
            refund.refund_id,
            state_of(refund),
            refund.payment_intent,
            amount_of(refund),
            moment(refund.updated_at),
            plain(result or ""),
        )
    return table


def history(entries: Iterable[Mapping[str, Any]]) -> Table:
    """Return the moves of a refund, oldest first.

    When, how long after the previous one, the new stage, and why.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(no_wrap=True, style="dim", justify="right")
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    before: int | None = None
    for entry in entries:
        at, to = entry.get("at"), str(entry.get("to", ""))
        word = str(entry.get("status", "")) if to == Stage.SETTLED else to
        since = f"+{_lasting(at - before)}" if isinstance(at, int) and before is not None else ""
        grid.add_row(
            f"  {_clock(at)}",
            since,
            Text(plain(word), style=_STYLES.get(word, "")),
            plain(_sentence(entry)),
        )
        before = at if isinstance(at, int) else None
    return grid


def _clock(at: object) -> str:
    return rfc3339(from_ms(at)).replace("T", " ") if isinstance(at, int) else ""


def _lasting(ms: int) -> str:
    """Return a length of time in its one or two largest units."""
    if ms < _UNITS[-1][1]:
        return f"{ms} ms"
    for (unit, length), (smaller, part) in pairwise(_UNITS):
        if ms >= length:
            rest = ms % length // part
            return f"{ms // length} {unit} {rest} {smaller}" if rest else f"{ms // length} {unit}"
    return f"{ms / 1000:.1f} s"


def _sentence(entry: Mapping[str, Any]) -> str:
    """Return a move as a sentence: what was seen, what follows, and who decided it."""
    label, to = str(entry.get("label", "")), entry.get("to")
    shown = {
        name: value for name, value in entry.items() if name not in _OWN_WORDS and value is not None
    }
    if "left_out" in entry:
        return f"{entry['left_out']:,} moves are not shown here"
    if to == Stage.SENDING and "attempt" in entry:
        return f"attempt {entry['attempt']}{_again(entry)}"
    if label in _DECIDED and "look" not in shown:
        parts = [_DECIDED[label]]
    elif "seen" in shown:
        # An error code is shown unchanged, so that it can be searched for.
        seen = str(shown.pop("seen"))
        word = _SEEN.get(seen, seen.replace("_", " "))
        parts = [word if label in {seen, to, entry.get("status")} else f"{word}: {label}"]
    elif "look" in shown:
        parts = [_read_back(entry, str(shown.pop("look")).replace("_", " "))]
    else:
        parts = [label.replace("_", " ")]
    if (status := shown.pop("http_status", None)) is not None:
        parts.append(f"HTTP {status}")
    if (ms := shown.pop("ms", None)) is not None:
        parts.append(f"after {_lasting(ms)}" if isinstance(ms, int) else f"after {ms} ms")
    if (tries := shown.pop("tries", None)) is not None:
        parts.append(f"in {tries} tries")
    reason, alarm = shown.pop("reason", None), shown.pop("alarm", None)
    parts += [f"{name}={value}" for name, value in shown.items()]
    sentence = ", ".join(parts)
    sentence += f" ({reason})" if reason else ""
    if alarm:
        is_review = entry.get("to") == Stage.REVIEW
        sentence += f"; needs review: {alarm}" if is_review else f"; alarm: {alarm}"
    sentence += f", by {entry['by']}" if entry.get("by") else ""
    return f"{sentence} “{entry['note']}”" if entry.get("note") else sentence


def _read_back(entry: Mapping[str, Any], word: str) -> str:
    """Return what a read-back showed and what followed."""
    source = _SOURCES.get(str(entry.get("source")))
    shown = f"read {source}: {word}" if source else f"read back: {word}"
    label = str(entry.get("label", ""))
    move = _DECIDED.get(label, label.replace("_", " "))
    return (
        shown
        if label in {entry.get("to"), entry.get("status")} or move == word
        else f"{shown}, {move}"
    )


def _again(entry: Mapping[str, Any]) -> str:
    """Return why a refund was sent again: who decided it, or what was read."""
    match entry.get("label"), entry.get("source"):
        case "replay", _:
            return ", the same key and bytes again"
        case "resend", "operator":
            return f", because {entry.get('by') or 'a person'} said that it never happened"
        case "resend", str(source):
            return f", because {_SOURCES.get(source, source)} showed that it never happened"
        case "resend", _:
            return ", because it was considered absent"
    return ""


def sent(entries: Iterable[Mapping[str, Any]]) -> list[tuple[int | None, str]]:
    """Return when each attempt was sent and its result, in words.

    An attempt without a result is still in flight.
    """
    attempts: list[tuple[int | None, str]] = []
    for entry in entries:
        if entry.get("to") == Stage.SENDING:
            attempts.append((entry.get("at"), plain(_sentence(entry))))
        elif entry.get("from") == Stage.SENDING and attempts:
            at, words = attempts[-1]
            attempts[-1] = (at, f"{words}: {plain(_sentence(entry))}")
    return attempts


def read(entries: Iterable[Mapping[str, Any]]) -> list[tuple[int | None, str]]:
    """Return when the provider was read, with or without a result, and what it showed, in words."""
    return [
        (entry.get("at"), plain(_sentence(entry)))
        for entry in entries
        if "look" in entry or (entry.get("from") == Stage.PROCESSING and "seen" in entry)
    ]


def timed(rows: Iterable[tuple[int | None, str]]) -> Table:
    """Return sentences beside their times, one per line."""
    return facts((_clock(at), sentence) for at, sentence in rows)
