"""`./ops/dev servers`: the store's tests and one refund from end to end on every server that is
found, as a table.
"""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path
from typing import Final

import click

from ops.lab.servers import found, refund, storetests, table
from ops.lab.servers.found import Server

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "servers.md"
LEAST: Final = 3
"""With fewer servers the answer says too little: the run fails, and says how to get the others."""
FAILED: Final = 1


@click.command()
@click.option(
    "--only", metavar="TEXT", default="", help="Only servers whose name and version hold this."
)
@click.option("--least", default=LEAST, show_default=True, help="How many servers must be found.")
@click.option("--write", is_flag=True, help="Write the table into ops/docs/servers.md.")
def main(*, only: str, least: int, write: bool) -> None:
    """Try every server that a wheel or the PATH holds.

    Exit 1 if anything failed or too few were found.
    """
    servers = [server for server in found.every() if only in server.name]
    for server in servers:
        say(f"found {server.name} ({server.source}: {server.path})")
    rows = [row for server in servers for row in _on(server)]
    click.echo(table.render(rows))
    missing = found.missing(servers)
    for wanted in missing:
        say(f"not found: {wanted.name}: {wanted.how_to_get}")
    if write:
        PAGE.write_text(table.into(PAGE.read_text("utf-8"), rows), encoding="utf-8")
    wrong = [row for row in rows if not row.passed]
    if len(servers) < least:
        say(f"{len(servers)} servers were found, and {least} are needed")
    if wrong:
        say(f"{len(wrong)} of {len(rows)} rows failed")
    sys.exit(FAILED if wrong or len(servers) < least else 0)


def _on(server: Server) -> list[table.Row]:
    rows = []
    for row in chain([storetests.run(server)], refund.every(server)):
        say(f"{row.server} · {row.mode} · {row.protocol} · {row.user}: {row.result}")
        if not row.passed:
            say(row.trace)
        rows.append(row)
    return rows


def say(text: str) -> None:
    """Report progress beside the table."""
    click.echo(text, err=True)
