"""`python -m ops.lab.bench.sandbox`.

How many refunds a second the sandbox really makes on this machine.

The sandbox runs as a process of its own. The client, in this process, speaks the least HTTP it can
over keep-alive connections, one request at a time on each, so that the figure is the server's. The
run is bounded by its count, and it fails if the ledger does not hold exactly one effect for each
request.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from worker.ranges import Whole
from worker.sandbox.installation import sandbox_process

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTHORIZATION: Final = "Basic " + base64.b64encode(b"sk_test_bench:").decode()


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the reply to the last is whole."""

    def __init__(self, host: str, numbers: Iterator[int], done: asyncio.Future[None]) -> None:
        self._host = host
        self._numbers = numbers
        self._done = done
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts with the first request."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            self._send()

    def data_received(self, data: bytes) -> None:
        """Counts a whole reply and goes on."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._buffer = body[length:]
        self.refused += not head.startswith(b"HTTP/1.1 200")
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection that ends before its work is done fails the run."""
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the sandbox closed a connection"))

    def _send(self) -> None:
        number = next(self._numbers, None)
        if number is None or self._transport is None:
            if not self._done.done():
                self._done.set_result(None)
            return
        body = json.dumps(
            {
                "payment_intent": f"pi_bench{number}",
                "amount": "500",
                "metadata": {"refund_id": f"bench-{number}"},
            },
            separators=(",", ":"),
        )
        self._transport.write(
            (
                f"POST /v1/refunds HTTP/1.1\r\nHost: {self._host}\r\nAuthorization:"
                f" {AUTHORIZATION}\r\nAccept: application/json\r\nContent-Type:"
                f" application/json\r\nIdempotency-Key: bench-{number}\r\nContent-Length:"
                f" {len(body)}\r\n\r\n{body}"
            ).encode()
        )


async def _load(url: str, requests: int, connections: int) -> tuple[float, int]:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    numbers = iter(range(requests))
    finished: list[asyncio.Future[None]] = []
    opened: list[tuple[asyncio.Transport, _Connection]] = []
    started = time.perf_counter()
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        finished.append(done)
        opened.append(
            await loop.create_connection(
                lambda done=done: _Connection(parts.netloc, numbers, done),  # type: ignore[misc]  # a default
                parts.hostname or "",
                parts.port or 0,
            )
        )
    await asyncio.gather(*finished)
    seconds = time.perf_counter() - started
    for transport, _ in opened:
        transport.close()
    return seconds, sum(connection.refused for _, connection in opened)


@click.command()
@click.option("--requests", default=20_000, show_default=True, type=Whole(1, 500_000))
@click.option("--connections", default=32, show_default=True, type=Whole(1, 1_000))
@click.option(
    "--rounds", default=3, show_default=True, type=Whole(1, 20), help="Each with a fresh sandbox."
)
@click.option(
    "--log-requests", default=0, show_default=True, help="How many requests the sandbox remembers."
)
def main(*, requests: int, connections: int, rounds: int, log_requests: int) -> None:
    """Measure refunds a second against a sandbox in another process."""
    for place in range(1, rounds + 1):
        with sandbox_process("--log-requests", str(log_requests)) as provider:
            load = _load(provider.sandbox.url, requests, connections)
            seconds, refused = asyncio.run(load)
            summary = provider.sandbox.summary()
        if refused or summary["effects"] != requests or summary["repeated"]:
            raise click.ClickException(
                f"{refused} refused, {summary['effects']} effects of {requests} requests"
            )
        click.echo(
            f"round {place}: {requests} refunds in {seconds:.2f} s, {requests / seconds:.0f} a"
            " second"
        )


if __name__ == "__main__":
    main()
