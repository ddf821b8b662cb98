"""The table: a row for each server, mode, protocol and user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ops.lab.servers.found import Server
from ops.lab.tables import aligned

HEAD: Final = ("server", "from", "appendfsync", "protocol", "user", "result")
BEGIN: Final = "<!-- begin: ./ops/dev servers --write -->"
END: Final = "<!-- end -->"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing tried; `trace` is what was said when it failed."""

    server: str
    source: str
    mode: str
    protocol: str
    user: str
    passed: bool
    result: str
    trace: str = ""

    @classmethod
    def of(
        cls,
        server: Server,
        mode: str,
        protocol: str,
        user: str,
        *,
        passed: bool,
        result: str,
        trace: str = "",
    ) -> Row:
        """Build the row of a server."""
        return cls(
            server=server.name,
            source=server.source,
            mode=mode,
            protocol=protocol,
            user=user,
            passed=passed,
            result=result,
            trace=trace,
        )


def render(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown that reads as text."""
    cells = [HEAD] + [
        (
            row.server,
            row.source,
            row.mode,
            row.protocol,
            row.user,
            ("" if row.passed else "FAILED: ") + row.result,
        )
        for row in rows
    ]
    return aligned(cells)


def into(page: str, rows: Sequence[Row]) -> str:
    """Return the page with its table replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render(rows)}\n\n{END}{after}"
