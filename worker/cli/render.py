"""Prints refunds: blocks, tables and histories for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TextIO

import click
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from worker.model.refund import Refund, Stage
from worker.wording import reasons, refunds
from worker.wording.history import clock, lasting, sentence
from worker.wording.refunds import facts_of, result_of
from worker.wording.values import amount_of, moment, plain

_PAGE: Final = 500
"""Refunds that are put out at once: a list of all begins soon, however long it is."""
_COLUMNS: Final = ("refund", "state", "payment", "amount", "changed", "result")
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


def state_of(refund: Refund) -> Text:
    """Return the status and, until the refund is settled, the stage."""
    word = refund.status.value if refund.settled else refund.stage.value
    style = _STYLES.get(word) or _STYLES[refund.status.value]
    return Text(refunds.state_of(refund), style=style)


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
    return facts([("state", state_of(refund)), *facts_of(refund, entries)])


def listing(listed: Iterable[Refund]) -> Table:
    """Return refunds as a table, one per row."""
    rows = [_row(refund) for refund in listed]
    return _table(rows, like=rows)


def listings(listed: Iterable[Refund]) -> Iterator[Table]:
    """Yield tables of refunds that look like one table, so that a list of any length begins soon.

    Only the first has a header. The others are as wide, or wider if a value needs that.
    """
    rest, first = iter(listed), list[list[Text]]()
    while page := [_row(refund) for refund in islice(rest, _PAGE)]:
        is_first = not first
        first = first or page
        yield _table(page, like=first, has_header=is_first)


def _table(
    rows: Sequence[list[Text]], *, like: Sequence[list[Text]], has_header: bool = True
) -> Table:
    """Return a table whose columns are at least as wide as those of the rows `like`."""
    table = Table(box=None, header_style="bold", pad_edge=False, show_header=has_header)
    for place, name in enumerate(_COLUMNS):
        table.add_column(
            name,
            no_wrap=True,
            justify="right" if name == "amount" else "left",
            min_width=max(len(name), *(row[place].cell_len for row in like)),
        )
    for row in rows:
        table.add_row(*row)
    return table


def _row(refund: Refund) -> list[Text]:
    return [
        Text(refund.refund_id),
        state_of(refund),
        Text(refund.payment_intent),
        Text(amount_of(refund)),
        Text(moment(refund.updated_at)),
        Text(plain(result_of(refund))),
    ]


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
        since = f"+{lasting(at - before)}" if isinstance(at, int) and before is not None else ""
        grid.add_row(
            f"  {clock(at)}",
            since,
            Text(plain(word), style=_STYLES.get(word, "")),
            plain(sentence(entry)),
        )
        before = at if isinstance(at, int) else None
    return grid


def timed(rows: Iterable[tuple[int | None, str]]) -> Table:
    """Return sentences beside their times, one per line."""
    return facts((clock(at), sentence) for at, sentence in rows)
