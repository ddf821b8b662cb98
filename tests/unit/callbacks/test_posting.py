"""One POST as the receiver sees it: its fields, its connections, and what is read of the answer."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.http_exceptions import TransferEncodingError

from tests.unit.callbacks.test_addresses import Answers
from worker.callbacks.endpoints import Endpoint
from worker.callbacks.posting import MOST_READ, Poster, _beginning

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SOON = 10
"""Seconds. aiohttp itself ends a connection that was idle for 15."""


class Receiver:
    """Keeps the fields of each request, and gives each the same answer on an open connection."""

    def __init__(self) -> None:
        self.answer = OK
        self.before: Callable[[], Awaitable[object]] | None = None
        """Awaited before each answer."""
        self.fields: list[dict[str, str]] = []
        self.connections = 0
        self.ended = asyncio.Semaphore(0)
        """Released at the end of each connection."""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                await reader.readexactly(int(fields["content-length"]))
                self.fields.append(fields)
                if self.before is not None:
                    await self.before()
                writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()
            self.ended.release()

    def endpoint(self, host: str = "127.0.0.1") -> Endpoint:
        return Endpoint(
            name="shop",
            url=f"http://{host}:{self.port}/",
            keys=(b"k" * 32,),
            timeout_seconds=20,
            allow_private=True,
        )


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with await asyncio.start_server(receiver.serve, "127.0.0.1", 0, backlog=200) as server:
        receiver.port = server.sockets[0].getsockname()[1]
        yield receiver


async def test_post_ends_with_the_time_of_its_endpoint() -> None:
    freed = asyncio.Event()
    async with receiving() as shop, asyncio.timeout(SOON):
        shop.before = freed.wait
        poster = Poster(replace(shop.endpoint(), timeout_seconds=0.05))
        reply = await poster.post("msg_1", 1, b"{}")
        freed.set()
        await poster.close()
    assert (reply.result, reply.error) == ("failed", "no answer within 0.05 s")


async def test_post_names_the_worker_and_asks_for_no_compression() -> None:
    async with receiving() as shop:
        poster = Poster(shop.endpoint())
        await poster.post("msg_1", 1, b"{}")
        await poster.close()
    (fields,) = shop.fields
    assert (fields["user-agent"], fields["accept-encoding"]) == ("refund-worker", "identity")


async def test_posts_share_a_connection_that_ends_with_the_poster() -> None:
    async with receiving() as shop, asyncio.timeout(SOON):
        poster = Poster(shop.endpoint())
        for _ in range(2):
            assert (await poster.post("msg_1", 1, b"{}")).reply == "ok"
        assert shop.connections == 1
        await poster.close()
        await shop.ended.acquire()


async def test_connection_with_an_answer_that_is_not_read_to_its_end_is_not_used_again() -> None:
    async with receiving() as shop, asyncio.timeout(SOON):
        shop.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 2000
        poster = Poster(shop.endpoint())
        for count in (1, 2):
            reply = await poster.post("msg_1", 1, b"{}")
            assert (reply.result, len(reply.reply)) == ("delivered", MOST_READ)
            await shop.ended.acquire()
            assert shop.connections == count
        await poster.close()


async def test_only_the_slots_limit_the_connections() -> None:
    count = 101  # one more than aiohttp makes unless told otherwise
    everyone = asyncio.Event()

    async def wait_for_all() -> None:
        if len(shop.fields) == count:
            everyone.set()
        await everyone.wait()

    async with receiving() as shop:
        shop.before = wait_for_all
        poster = Poster(shop.endpoint())
        replies = await asyncio.gather(*(poster.post("m", 1, b"{}") for _ in range(count)))
        await poster.close()
    assert {reply.result for reply in replies} == {"delivered"}


async def test_name_is_looked_up_for_each_connection() -> None:
    async with receiving() as shop:
        shop.answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        resolver = Answers(["127.0.0.1"])
        poster = Poster(shop.endpoint("shop.example.com"), resolver=resolver)
        for _ in range(2):
            assert (await poster.post("msg_1", 1, b"{}")).result == "delivered"
        await poster.close()
    assert resolver.asked == 2


async def test_cookie_is_not_sent_back() -> None:
    async with receiving() as shop:
        shop.answer = OK.replace(b"content-length", b"set-cookie: a=1\r\ncontent-length")
        poster = Poster(shop.endpoint("shop.example.com"), resolver=Answers(["127.0.0.1"]))
        for _ in range(2):
            assert (await poster.post("msg_1", 1, b"{}")).result == "delivered"
        await poster.close()
    assert ["cookie" in fields for fields in shop.fields] == [False, False]


async def test_compressed_answer_is_kept_as_it_arrives() -> None:
    packed = gzip.compress(b"ok")
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n"
    async with receiving() as shop:
        shop.answer = head.encode() + packed
        poster = Poster(shop.endpoint())
        reply = await poster.post("msg_1", 1, b"{}")
        await poster.close()
    assert reply.reply == packed.decode("utf-8", "replace")


async def test_answer_in_pieces_is_read_up_to_a_kibibyte() -> None:
    pieces = [b"a" * (MOST_READ - 1), b"b" * MOST_READ]

    async def read(most: int) -> bytes:
        return pieces.pop(0)[:most] if most else b""

    response: Any = SimpleNamespace(content=SimpleNamespace(read=read))
    assert await _beginning(response) == "a" * (MOST_READ - 1) + "b"


async def test_reply_says_how_long_the_post_took(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((100.0, 101.5))
    clock = SimpleNamespace(monotonic=lambda: next(moments))
    monkeypatch.setattr("worker.callbacks.posting.time", clock)
    async with receiving() as shop:
        poster = Poster(shop.endpoint())
        reply = await poster.post("msg_1", 1, b"{}")
        await poster.close()
    assert (reply.result, reply.status, reply.seconds) == ("delivered", 200, 1.5)


async def test_inner_address_in_the_url_is_named_as_the_error() -> None:
    async with receiving() as shop:
        usual = shop.endpoint()
        poster = Poster(Endpoint(name="shop", url=usual.url, keys=usual.keys))
        reply = await poster.post("msg_1", 1, b"{}")
        await poster.close()
    assert (reply.result, reply.error) == ("failed", "the address is not a public one")
    assert shop.connections == 0


@pytest.mark.parametrize(
    ("status", "result"),
    [(200, "delivered"), (299, "delivered"), (300, "failed"), (410, "refused")],
)
async def test_status_says_what_became_of_a_post(status: int, result: str) -> None:
    async with receiving() as receiver:
        receiver.answer = b"HTTP/1.1 %d Word\r\ncontent-length: 2\r\n\r\nok" % status
        poster = Poster(receiver.endpoint())
        reply = await poster.post("msg_1", 1, b"{}")
        assert (reply.status, reply.result) == (status, result)
        await poster.close()


async def test_error_while_the_rest_of_an_answer_is_read_leaves_its_status() -> None:
    async def read(_most: int) -> bytes:
        # So does aiohttp without its C extension, if a chunk of the body has no length.
        raise TransferEncodingError("zz")

    response: Any = SimpleNamespace(content=SimpleNamespace(read=read))
    assert await _beginning(response) == ""


async def test_unforeseen_error_is_a_failed_post(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("canary-7f3a")

    poster = Poster(Receiver().endpoint())
    monkeypatch.setattr(poster, "_post", fail)
    reply = await poster.post("msg_1", 1, b"{}")
    assert (reply.result, reply.error) == ("failed", "RuntimeError")
