"""A provider made of bytes: what each connection does is a script, and every request that arrived
whole is kept.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tests.factories import refund_payload
from tests.support.described import broken_by_request
from worker.provider.gateway import Gateway
from worker.provider.transport import build_client
from worker.settings import Settings

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from worker.model.answers import Outcome
    from worker.model.refund import Refund

KEY = "sk_test_planted"
BODY = (
    b'{"payment_intent":"pi_1787730829493927936","amount":"500",'
    b'"metadata":{"refund_id":"order-1001-1"}}'
)
LEASE = timedelta(seconds=30)


@dataclass(frozen=True, kw_only=True)
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """The provider's end of one connection."""

    def __init__(
        self,
        provider: ByteProvider,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.provider = provider
        self.number = number
        self.reader = reader
        self.writer = writer

    async def read(self) -> Request:
        """One whole request, kept by the provider."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        line, *rest = head.strip().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (text.partition(":") for text in rest)
        }
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(line=line, headers=headers, body=body)
        self.provider.requests.append(request)
        if line.startswith("POST /v1/refunds "):
            assert broken_by_request(headers, request.body) == []
        return request

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Send RST at once."""
        end = self.writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def read_to_end(self) -> bytes:
        """All that still arrives, until the client is gone."""
        received = bytearray()
        try:
            while chunk := await self.reader.read(1 << 16):
                received += chunk
        except ConnectionResetError:
            pass
        self.provider.gone.set()
        return bytes(received)


def bound_socket() -> socket.socket:
    """A port of our own that refuses connections until somebody listens there."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


Script = Callable[[Peer], Awaitable[None]]


@dataclass(kw_only=True)
class ByteProvider:
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a script that reads to the end saw the client go away."""

    @property
    def posts(self) -> int:
        """How many requests to move money arrived whole: each of them may have moved it."""
        return sum(request.line.startswith("POST ") for request in self.requests)


@asynccontextmanager
async def byte_provider(
    *scripts: Script,
    receive_buffer: int | None = None,
    tls: ssl.SSLContext | None = None,
    bound: socket.socket | None = None,
) -> AsyncIterator[ByteProvider]:
    """Serve on a free port, or at a bound socket.

    The n-th connection follows the n-th script, later ones the last.
    """
    provider = ByteProvider()
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = scripts[min(provider.connections, len(scripts) - 1)]
        provider.connections += 1
        try:
            await script(Peer(provider, provider.connections, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as it may
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(serve(reader, writer)))

    listening = bound or bound_socket()
    if receive_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server = await asyncio.start_server(accept, sock=listening, ssl=tls)
    provider.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{listening.getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


def reply(
    status: int = 200, payload: object = None, body: bytes | None = None, **headers: str
) -> bytes:
    """The bytes of a reply; header names take `_` for `-`."""
    content = json.dumps(payload).encode() if body is None else body
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def error(code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"type": kind, "code": code, "message": f"no: {code}"}}


def answering(*replies: bytes) -> Script:
    """Answer the requests of one connection in turn, the last reply to all further ones."""

    async def script(peer: Peer) -> None:
        turn = 0
        while True:
            await peer.read()
            await peer.send(replies[min(turn, len(replies) - 1)])
            turn += 1

    return script


def by_path(**replies: bytes) -> Script:
    """Answer by the last part of the URL's path; `_` stands for any other."""

    async def script(peer: Peer) -> None:
        while True:
            path = (await peer.read()).line.split(" ")[1].partition("?")[0]
            await peer.send(replies.get(path.rpartition("/")[2], replies["_"]))

    return script


def settings_for(url: str, **values: Any) -> Settings:
    return Settings.load(
        **({"api_url": url, "api_key": KEY, "request_timeout_seconds": 5} | values)
    )


@asynccontextmanager
async def gateway_to(
    url: str, settings: dict[str, Any] | None = None, **collaborators: Any
) -> AsyncIterator[Gateway]:
    """A gateway over the product's own client; `settings` by field name."""
    chosen = settings_for(url, **(settings or {}))
    client = build_client(chosen)
    try:
        yield Gateway(client, chosen.rules, **collaborators)
    finally:
        await client.aclose()


async def sent(
    url: str, refund: Refund, settings: dict[str, Any] | None = None, **arguments: Any
) -> Outcome:
    """The outcome of one attempt by a gateway of its own."""
    async with gateway_to(url, settings) as gateway:
        return await gateway.send(refund, BODY, **({"lease_left": LEASE} | arguments))


async def no_time(_: float) -> None:
    """A sleep that takes none."""


async def refuse() -> bool:
    """A permit that is never given."""
    return False


class HandClock:
    """A clock that only sleeping moves; it keeps the sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


DONE = reply(200, refund_payload())
SHORT = {"request_timeout_seconds": 0.3}


async def close_after_reading(peer: Peer) -> None:
    await peer.read()
