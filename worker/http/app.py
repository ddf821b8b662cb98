"""The application of `refunds serve`: its parts, two health checks, and how it starts and ends.

Each connection is on its own: a client that is slow, breaks off or sends wrong lengths ends its own
connection only.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Final, Protocol

from aiohttp import web

from worker.errors import RefundError

GRACE_SECONDS: Final = 5.0
"""How long requests are still served after SIGTERM, so that a proxy notices `/ready` first."""
IDLE_SECONDS: Final = 15.0
"""How long a connection may have no complete request head: at its start, and between requests.

A TLS handshake may take as long.
"""
LINGER_SECONDS: Final = 2.0
"""How long the rest of a refused body is read, so that the client sees the answer."""
UNREAD_SECONDS: Final = 60.0
"""How long a client may read nothing of an answer, where the system can tell, as Linux can."""
END_SECONDS: Final = 5.0
"""How long a request in flight may take at the end."""
READY_SECONDS: Final = 2.0
MOST_CONNECTIONS: Final = 8192
"""Connections at once, of which 2,000 may wait for a result; further ones are closed."""
SPARE_FILES: Final = 512
"""Open files for all else, such as the connections to Redis, and those not counted yet."""
_MOST_HEADERS: Final = 64

_NAME: Final = "refunds"
"""The `Server` header: aiohttp's own names its version."""

# aiohttp logs a request that it cannot parse, and that line repeats parts of it.
_QUIET: Final = logging.getLogger("worker.http.protocol")
_QUIET.disabled = True


class _Connection(web.RequestHandler):
    """A connection that answers what it cannot parse with an empty body; aiohttp repeats it."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,  # noqa: ARG002 - aiohttp's signature
        message: str | None = None,  # noqa: ARG002 - likewise
    ) -> web.StreamResponse:
        """Return the answer to a request that cannot be parsed, or whose handler failed."""
        if request.writer.output_size > 0:
            raise ConnectionError
        response = web.Response(status=status, headers={"Server": _NAME})
        response.force_close()
        return response


class _Server(web.Server):
    """A server of `_Connection`s; one beyond the most is closed at once."""

    most = MOST_CONNECTIONS

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a new connection, or close it."""
        super().connection_made(handler, transport)
        # aiohttp waits for good until an answer is read, and holds it and the connection.
        if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
            with suppress(OSError):
                milliseconds = round(UNREAD_SECONDS * 1000)
                transport.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, option, milliseconds
                )
        if len(self._connections) > self.most:
            transport.abort()

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    """A runner of a `_Server`."""

    most = MOST_CONNECTIONS

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        server = _Server(
            made.request_handler,
            request_factory=made.request_factory,
            **made._kwargs,  # noqa: SLF001 - aiohttp has no other way to a protocol of one's own
        )
        server.most = self.most
        return server


def most_connections() -> int:
    """Raise this process's limit of open files, and return how many connections fit under it."""
    files, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + SPARE_FILES
    if files < wanted:
        # The usual limit is 1024, and programs may raise it up to the highest one.
        files = min(wanted, highest)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, highest))
    files = min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return files - min(SPARE_FILES, files // 2)


def _protocol_of(runner: web.AppRunner) -> web.Server:
    """Return what makes the protocol of each connection."""
    if runner.server is None:
        raise RuntimeError("the runner is not set up")
    return runner.server


async def _unnamed(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = _NAME


class Part(Protocol):
    """A part of the server, such as the webhooks: its routes, and its work at the end."""

    def add(self, application: web.Application) -> None:
        """Add the routes of this part, and its middleware if it has one."""
        ...

    def end(self) -> None:
        """Answer what waits as it is now: the server ends."""
        ...

    async def close(self) -> None:
        """Finish the work of requests that were answered."""
        ...


class Readiness:
    """Whether a proxy should send requests here: not while ending, nor while Redis is away."""

    def __init__(self, check: Callable[[], Awaitable[object]]) -> None:
        self._check = check
        self.ending = False

    async def __call__(self) -> bool:
        """Return whether requests can be served now."""
        if self.ending:
            return False
        try:
            await asyncio.wait_for(self._check(), READY_SECONDS)
        except (RefundError, TimeoutError):
            return False
        return True


def build(parts: Iterable[Part], ready: Readiness) -> web.Application:
    """Return the application with these parts, and with `/health` and `/ready`."""

    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readiness(_request: web.Request) -> web.Response:
        if await ready():
            return web.json_response({"status": "ready"})
        return web.json_response(
            {"status": "not ready"}, status=HTTPStatus.SERVICE_UNAVAILABLE.value
        )

    application = web.Application()
    application.on_response_prepare.append(_unnamed)
    application.add_routes([web.get("/health", health), web.get("/ready", readiness)])
    for part in parts:
        part.add(application)
    return application


@asynccontextmanager
async def listening(
    application: web.Application,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    most: int = MOST_CONNECTIONS,
) -> AsyncIterator[int]:
    """Serve until the end of the block, and yield the port; port 0 picks a free one.

    Raises `OSError` if the port is taken.
    """
    runner = _Runner(
        application,
        access_log=None,
        logger=_QUIET,
        # A signature covers the body as it was sent.
        auto_decompress=False,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGER_SECONDS,
        max_headers=_MOST_HEADERS,
        shutdown_timeout=END_SECONDS,
    )
    runner.most = most
    await runner.setup()
    try:
        # aiohttp's own site lets a client take a minute for the handshake, uncounted.
        server = await asyncio.get_running_loop().create_server(
            _protocol_of(runner),
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=IDLE_SECONDS if tls else None,
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
    finally:
        await runner.cleanup()


async def serve(
    parts: Iterable[Part],
    *,
    ready: Readiness,
    host: str,
    port: int,
    stop: asyncio.Event,
    tls: ssl.SSLContext | None = None,
    grace_seconds: float = GRACE_SECONDS,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the parts until `stop` is set, and for the grace period after it.

    `say` receives the address. Raises `OSError` if the port is taken.
    """
    parts, most = list(parts), most_connections()
    try:
        async with listening(
            build(parts, ready), host=host, port=port, tls=tls, most=most
        ) as taken:
            shown = f"[{host}]" if ":" in host else host
            say(f"listening at {'https' if tls else 'http'}://{shown}:{taken}")
            await stop.wait()
            ready.ending = True
            say(f"ending in {grace_seconds:g} seconds: /ready answers 503")
            try:
                await asyncio.sleep(grace_seconds)
            finally:
                # A second signal ends the grace period: then too, what waits is answered.
                for part in parts:
                    part.end()
    finally:
        for part in parts:
            await part.close()
