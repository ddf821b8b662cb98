"""The server's health checks, and how it ends."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from worker.errors import StoreUnavailable
from worker.http import app
from worker.http.app import Readiness, listening, serve

HOST = "127.0.0.1"
PEM = Path(__file__).parents[2] / "support/loopback.pem"


async def fine() -> None:
    return None


async def away() -> None:
    raise StoreUnavailable("Redis cannot be reached")


async def silent() -> None:
    await asyncio.sleep(60)


@dataclass
class Slow:
    """A part whose one request waits."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    ended: int = 0
    closed: int = 0

    def add(self, application: web.Application) -> None:
        async def wait(_request: web.Request) -> web.Response:
            self.begun.set()
            await self.release.wait()
            return web.Response(text="answered")

        application.router.add_get("/slow", wait)

    def end(self) -> None:
        self.ended += 1

    async def close(self) -> None:
        self.closed += 1


async def status_of(port: int, path: str) -> int:
    async with aiohttp.ClientSession() as client, client.get(f"http://{HOST}:{port}{path}") as got:
        await got.read()
        return got.status


@pytest.mark.parametrize(("check", "status"), [(fine, 200), (away, 503), (silent, 503)])
async def test_it_is_ready_while_redis_answers_and_healthy_in_any_case(
    monkeypatch: pytest.MonkeyPatch, check: object, status: int
) -> None:
    monkeypatch.setattr(app, "READY_SECONDS", 0.1)
    ready = Readiness(check)  # type: ignore[arg-type]
    async with listening(app.build([], ready), host=HOST, port=0) as port:
        assert await status_of(port, "/ready") == status
        assert await status_of(port, "/health") == 200
        ready.ending = True
        assert await status_of(port, "/ready") == 503
        assert await status_of(port, "/health") == 200


async def test_at_the_end_it_serves_the_grace_period_unready_and_finishes_what_is_in_flight() -> (
    None
):
    part, stop, said = Slow(), asyncio.Event(), asyncio.Queue[str]()
    serving = asyncio.create_task(
        serve(
            [part],
            ready=Readiness(fine),
            host=HOST,
            port=0,
            stop=stop,
            grace_seconds=0.5,
            say=said.put_nowait,
        )
    )
    port = int((await said.get()).rpartition(":")[2])
    in_flight = asyncio.create_task(status_of(port, "/slow"))
    await part.begun.wait()
    assert await status_of(port, "/ready") == 200
    stop.set()
    assert await said.get() == "ending in 0.5 seconds: /ready answers 503"
    assert await status_of(port, "/ready") == 503
    assert await status_of(port, "/health") == 200
    part.release.set()
    assert await in_flight == 200
    await serving
    assert (part.ended, part.closed) == (1, 1)
    with pytest.raises(aiohttp.ClientConnectorError):
        await status_of(port, "/health")


@pytest.mark.parametrize("speaks_tls", [False, True])
async def test_a_silent_connection_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch, *, speaks_tls: bool
) -> None:
    monkeypatch.setattr(app, "IDLE_SECONDS", 0.2)
    tls = None
    if speaks_tls:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(PEM)
    built = app.build([], Readiness(fine))
    async with listening(built, host=HOST, port=0, tls=tls) as port:
        reader, writer = await asyncio.open_connection(HOST, port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await writer.wait_closed()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux can tell")
async def test_a_connection_whose_client_reads_no_answer_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "UNREAD_SECONDS", 0.3)
    asked: list[web.Request] = []

    async def long(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(body=bytes(16 * 2**20))

    application = web.Application()
    application.router.add_get("/long", long)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with listening(application, host=HOST, port=0) as port:
            client.connect((HOST, port))
            client.sendall(b"GET /long HTTP/1.1\r\nHost: door\r\n\r\n")
            for _ in range(200):
                if asked and asked[0].transport is None:
                    return
                await asyncio.sleep(0.05)
    pytest.fail("the connection has not ended")


async def test_a_connection_beyond_the_most_is_closed_and_the_others_are_served() -> None:
    async with listening(app.build([], Readiness(fine)), host=HOST, port=0, most=2) as port:
        first = [await asyncio.open_connection(HOST, port) for _ in range(2)]
        reader, writer = await asyncio.open_connection(HOST, port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        for reader, writer in first:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200")
            writer.close()
        # Those that have ended count no more.
        assert await status_of(port, "/health") == 200


@pytest.mark.parametrize(
    ("limits", "raised", "fit"),
    [
        ((1024, 524_288), 8704, 8192),
        ((1024, 4096), 4096, 3584),
        ((1024, 1024), 1024, 512),
        ((100, 100), 100, 50),
        ((1_000_000, 1_000_000), 1_000_000, 8192),
    ],
)
def test_as_many_connections_fit_as_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised: int, fit: int
) -> None:
    now = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: now.append(wanted))
    assert app.most_connections() == fit
    assert now[-1] == (raised, limits[1])


async def test_a_taken_port_is_an_os_error_and_the_parts_are_closed() -> None:
    part = Slow()
    ready, stop = Readiness(fine), asyncio.Event()
    with (
        socket.create_server((HOST, 0)) as taken,
        pytest.raises(OSError, match="address already in use"),
    ):
        await serve([part], ready=ready, host=HOST, port=taken.getsockname()[1], stop=stop)
    assert part.closed == 1
