"""Long answers to clients that do not read them."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from worker.http import streams
from worker.http.app import listening
from worker.http.context import REQUEST_ID
from worker.http.streams import streamed

HOST = "127.0.0.1"


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([300_000], id="in the middle"),
        # The second part only fills the buffer: it is the end that waits for the client.
        pytest.param([65_537, 60_000], id="at the end"),
    ],
)
async def test_an_answer_that_nobody_reads_is_cut(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    monkeypatch.setattr(streams, "SLOW_SECONDS", 0.2)
    parts = iter([*(bytes(size) for size in sizes), None])
    ended = asyncio.Event()

    async def read() -> bytes | None:
        return next(parts)

    async def answer(request: web.Request) -> web.StreamResponse:
        request[REQUEST_ID] = "slow"
        assert request.transport is not None
        its = request.transport.get_extra_info("socket")
        its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        try:
            return await streamed(request, "text/plain", read)
        finally:
            ended.set()

    application = web.Application()
    application.router.add_get("/", answer)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with listening(application, host=HOST, port=0) as port:
            client.connect((HOST, port))
            client.sendall(b"GET / HTTP/1.1\r\nHost: door\r\n\r\n")
            await asyncio.wait_for(ended.wait(), 5)
