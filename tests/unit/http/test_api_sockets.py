"""The API against clients that are slow, break off, or send wrong lengths: each ends its own
connection and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.api_door import PAYMENT, Door, a_door
from worker.http import bodies
from worker.http.bodies import JsonReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = json.dumps({"refund_id": "order-raw", "payment_intent": PAYMENT}).encode()


@pytest.fixture
async def api(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.5)
    async with a_door(redis_url) as door:
        object.__setattr__(door.part.context, "bodies", JsonReader(most=8, seconds=0.5))
        yield door


def head(api: Door, *more: str, length: int | None = len(BODY)) -> bytes:
    lines = [
        "POST /v1/refunds HTTP/1.1",
        "Host: door",
        f"Authorization: Bearer {api.token}",
        "Content-Type: application/json",
        *more,
    ]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def answer_to(api: Door, sent: bytes) -> bytes:
    """Return all that is answered until the server closes the connection."""
    reader, writer = await api.raw(sent)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def is_alive(api: Door) -> bool:
    return (await api.create("order-after")).status == 202


def accepted(api: Door) -> list[str]:
    return [*api.refunds.store.ids_in(["queued"])]


@pytest.mark.parametrize("part", [b"", BODY[:10], BODY[:-1]])
async def test_half_a_body_ends_with_408_and_accepts_nothing(api: Door, part: bytes) -> None:
    answer = await answer_to(api, head(api) + part)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert accepted(api) == []
    assert await is_alive(api)


async def test_a_client_that_breaks_off_accepts_nothing(api: Door) -> None:
    _, writer = await api.raw(head(api) + BODY[:10])
    writer.transport.abort()
    assert await is_alive(api)
    assert accepted(api) == ["order-after"]


async def test_slow_clients_do_not_stop_another(api: Door) -> None:
    stalled = [await api.raw(head(api)[:-10]) for _ in range(50)]
    assert await is_alive(api)
    for _, writer in stalled:
        writer.close()


async def test_what_follows_a_body_is_not_part_of_it_and_ends_its_own_connection(
    api: Door,
) -> None:
    # The length is too short: the rest is read as the next request, and is not one.
    short = BODY[:-1]
    answer = await answer_to(api, head(api, length=len(short)) + BODY + b"\r\n\r\n")
    assert {*re.findall(rb"HTTP/1\.[01] (\d+)", answer)} == {b"400"}
    assert accepted(api) == []
    assert await is_alive(api)


SMUGGLED = b"POST /v1/pause HTTP/1.1\r\nHost: door\r\n\r\n"


@pytest.mark.parametrize(
    "more",
    [
        ["Transfer-Encoding: chunked"],
        ["Transfer-Encoding: identity, chunked"],
        ["Transfer-Encoding:\tchunked"],
        ["Transfer-Encoding: xchunked"],
        ["Content-Length: 0"],
        ["Content-Length: +5"],
    ],
)
async def test_two_lengths_are_refused_and_nothing_is_smuggled(api: Door, more: list[str]) -> None:
    answer = await answer_to(api, head(api, *more) + b"0\r\n\r\n" + SMUGGLED)
    codes = [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d+)", answer)]
    assert codes
    assert set(codes) <= {400, 408}
    assert accepted(api) == []
    assert await api.store.meta("paused") == [None]
    assert await is_alive(api)


async def test_a_body_in_chunks_is_read(api: Door) -> None:
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    reader, writer = await api.raw(head(api, "Transfer-Encoding: chunked", length=None) + chunk)
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 202 ")
    writer.close()
    assert accepted(api) == ["order-raw"]


async def test_a_hundred_megabytes_are_refused_without_reading_them(api: Door) -> None:
    reader, writer = await api.raw(head(api, length=100_000_000))
    answer = await asyncio.wait_for(reader.read(2000), 10)
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()
    assert await is_alive(api)


async def test_an_answer_is_given_before_the_body_to_who_has_no_token(api: Door) -> None:
    sent = head(api).replace(api.token.encode(), b"rfw_x")
    reader, writer = await api.raw(sent)
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 401 ")
    writer.close()
