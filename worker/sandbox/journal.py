"""The requests that the sandbox received, kept for tests to read. Credentials are never kept."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

# An allow-list: no other header, Authorization above all, is ever stored.
REMEMBERED_HEADERS = ("Idempotency-Key", "Accept", "Content-Type", "User-Agent")


@dataclass(kw_only=True)
class Journal:
    """The last `size` requests, oldest first; a size of 0 remembers none."""

    size: int
    received: int = 0

    def __post_init__(self) -> None:
        self._entries: deque[dict[str, Any]] = deque(maxlen=self.size)

    def note(
        self, request: web.Request, body: bytes = b"", schema_errors: Sequence[str] = ()
    ) -> dict[str, Any] | None:
        """Store a request and return its entry, to which the caller adds `fault` and `status`.

        None if none is kept.

        `status` stays null for a request that got no answer.
        """
        self.received += 1
        if not self.size:
            return None
        entry: dict[str, Any] = {
            "seq": self.received,
            "monotonic": time.monotonic(),
            "method": request.method,
            "path": request.path_qs,
            "headers": {
                name.lower(): request.headers[name]
                for name in REMEMBERED_HEADERS
                if name in request.headers
            },
            "body": body.decode("utf-8", "backslashreplace"),
            "schema_errors": list(schema_errors),
            "fault": None,
            "status": None,
        }
        self._entries.append(entry)
        return entry

    def clear(self) -> None:
        """Remove all requests; the numbering continues."""
        self._entries.clear()

    def entries(self) -> list[dict[str, Any]]:
        """Return the stored requests, oldest first."""
        return list(self._entries)
