"""The least client that speaks HTTP, so that a figure is the server's.

One request at a time on each connection, over connections that are kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_PATIENCE: Final = 600.0
_HEAD_ENDS: Final = b"\r\n\r\n"

Seen = Callable[[bytes, float], None]
"""Receives the body of a reply, and the time at which it came (Unix time in seconds)."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """A load that was answered: each reply's seconds, and how many had another status."""

    seconds: float
    waits: list[float]
    refused: int


def message(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a request as it is sent."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("ascii") + _HEAD_ENDS + body


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the reply to the last one is whole."""

    def __init__(
        self, messages: Iterator[bytes], status: int, seen: Seen | None, waits: list[float]
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refused = 0
        self._messages, self._seen, self._waits = messages, seen, waits
        self._begins = f"HTTP/1.1 {status} ".encode("ascii")
        self._buffer, self._sent = b"", 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            self._send()

    def data_received(self, data: bytes) -> None:
        """Count a whole reply, and send the next request."""
        self._buffer += data
        head, found, body = self._buffer.partition(_HEAD_ENDS)
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._buffer = body[length:]
        self.refused += not head.startswith(self._begins)
        self._waits.append(time.perf_counter() - self._sent)
        if self._seen is not None:
            self._seen(body[:length], time.time())
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the run if its work is not done."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed a connection"))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _send(self) -> None:
        following = next(self._messages, None)
        if following is None or self._transport is None:
            if not self.done.done():
                self.done.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(following)


async def posted(
    url: str,
    messages: Iterator[bytes],
    *,
    connections: int,
    status: int = 200,
    seen: Seen | None = None,
) -> Load:
    """Send all requests, as many at once as there are connections.

    Replies with another status than this one are counted. Raises `OSError` if a connection ends
    early.
    """
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    opened: list[_Connection] = []
    waits: list[float] = []
    started = time.perf_counter()
    try:
        for _ in range(connections):
            _, connection = await loop.create_connection(
                lambda: _Connection(messages, status, seen, waits),
                parts.hostname or "",
                parts.port or 0,
            )
            opened.append(connection)
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*(connection.done for connection in opened))
        seconds = time.perf_counter() - started
    finally:
        for connection in opened:
            connection.close()
    return Load(
        seconds=seconds, waits=waits, refused=sum(connection.refused for connection in opened)
    )
