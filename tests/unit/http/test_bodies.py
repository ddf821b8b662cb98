"""Bodies of requests, without a server: how much is read, for how long, and what is said."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from aiohttp import ClientPayloadError, StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from worker.errors import InvalidRequest
from worker.http import problems
from worker.http.bodies import JsonReader, Reader, Unreadable, named, parsed
from worker.http.problems import Problem

if TYPE_CHECKING:
    from aiohttp import web

TYPE = "application/json"


def a_stream() -> StreamReader:
    """A body of which nothing came yet."""
    return StreamReader(Mock(BaseProtocol), 2**16, loop=asyncio.get_running_loop())


def sent(*chunks: bytes) -> StreamReader:
    """A body that came with the head of its request."""
    stream = a_stream()
    for chunk in chunks:
        stream.feed_data(chunk)
    stream.feed_eof()
    return stream


def broken() -> StreamReader:
    """A body whose client broke off."""
    stream = a_stream()
    stream.set_exception(ClientPayloadError("its lengths are wrong"))
    return stream


def a_request(body: StreamReader, **headers: str) -> web.Request:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request("POST", "/v1/refunds", given, payload=body)


async def status_of(reader: Reader, request: web.Request) -> HTTPStatus:
    """Return why a body is not read; the request must not wait for more of it."""
    with pytest.raises(Unreadable) as refused:
        await asyncio.wait_for(reader.read(request), 5)
    return refused.value.status


async def problem_of(reader: JsonReader, request: web.Request) -> Problem:
    with pytest.raises(Problem) as refused:
        await asyncio.wait_for(reader.read(request, optional=False), 5)
    return refused.value


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The times that were allowed for bodies; each ends at once."""
    given: list[float | None] = []
    plain = asyncio.timeout

    def timeout(delay: float | None) -> asyncio.Timeout:
        given.append(delay)
        return plain(0)

    monkeypatch.setattr("worker.http.bodies.asyncio.timeout", timeout)
    return given


@pytest.mark.parametrize("limit", [0, 5])
async def test_a_body_is_read_up_to_its_limit_whatever_length_was_stated(limit: int) -> None:
    reader = Reader(limit=limit, most=1)
    body, more = b"x" * limit, b"x" * (limit + 1)
    assert await reader.read(a_request(sent(body))) == body
    assert await reader.read(a_request(sent(body), Content_Length=str(limit))) == body
    assert await status_of(reader, a_request(sent(more))) == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_a_body_in_pieces_is_refused_at_the_piece_that_is_too_much() -> None:
    stream = a_stream()
    reading = asyncio.create_task(status_of(Reader(limit=5, most=1), a_request(stream)))
    for chunk in (b"12345", b"6"):
        await asyncio.sleep(0)
        assert not reading.done()
        stream.feed_data(chunk)
    assert await reading == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_a_length_over_the_limit_is_refused_before_the_body_comes() -> None:
    request = a_request(a_stream(), Content_Length="6")
    assert await status_of(Reader(limit=5, most=1), request) == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_so_many_bodies_are_read_at_once_and_no_more() -> None:
    reader = Reader(limit=5, most=2)

    async def two_are_read_and_no_third() -> None:
        streams = [a_stream(), a_stream()]
        reading = [asyncio.create_task(reader.read(a_request(stream))) for stream in streams]
        await asyncio.sleep(0)
        for _ in range(3):
            third = a_request(sent(b"3"))
            assert await status_of(reader, third) == HTTPStatus.SERVICE_UNAVAILABLE
        for stream in streams:
            stream.feed_data(b"12")
            stream.feed_eof()
        assert await asyncio.gather(*reading) == [b"12"] * 2

    await two_are_read_and_no_third()
    for _ in range(3):
        assert await reader.read(a_request(sent(b"3"))) == b"3"
        assert await status_of(reader, a_request(broken())) == HTTPStatus.BAD_REQUEST
    await two_are_read_and_no_third()


@pytest.mark.parametrize(
    ("transport", "gone"),
    [
        (None, True),
        (Mock(is_closing=lambda: True), True),
        (Mock(is_closing=lambda: False), False),
    ],
)
async def test_a_broken_body_says_whether_its_client_has_gone(
    transport: Any, *, gone: bool
) -> None:
    request = a_request(broken())
    request.protocol.transport = transport
    with pytest.raises(Unreadable) as refused:
        await Reader(limit=5, most=1).read(request)
    assert (refused.value.status, refused.value.gone) == (HTTPStatus.BAD_REQUEST, gone)


async def test_a_body_may_take_ten_seconds_or_what_is_set(timeouts: list[float | None]) -> None:
    slow = [Reader(limit=5, most=1), Reader(limit=5, most=1, seconds=3)]
    for reader in slow:
        assert await status_of(reader, a_request(a_stream())) == HTTPStatus.REQUEST_TIMEOUT
    for json_reader in (JsonReader(most=1), JsonReader(most=1, seconds=3)):
        refused = await problem_of(json_reader, a_request(a_stream(), Content_Type=TYPE))
        assert (refused.kind, refused.ends) == (problems.TIMEOUT, True)
    assert timeouts == [10, 3, 10, 3]


async def test_json_that_is_one_too_many_at_once_can_be_sent_again() -> None:
    refused = await problem_of(JsonReader(most=0), a_request(sent(b"{}"), Content_Type=TYPE))
    assert (refused.kind, refused.ends) == (problems.UNAVAILABLE, True)


async def test_a_broken_body_is_not_complete_and_ends_its_connection() -> None:
    refused = await problem_of(JsonReader(most=1), a_request(broken(), Content_Type=TYPE))
    assert (refused.kind, refused.ends) == (problems.BAD_REQUEST, True)
    assert refused.detail == "The body is not complete."


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", "; charset=UTF8"])
async def test_json_is_read_in_utf8_under_both_of_its_names(charset: str) -> None:
    request = a_request(sent('{"é":1}'.encode()), Content_Type=TYPE + charset)
    assert await JsonReader(most=1).read(request, optional=False) == {"é": 1}


async def test_an_empty_body_is_an_empty_object_only_where_it_is_optional() -> None:
    reader = JsonReader(most=1)
    assert await reader.read(a_request(sent(), Content_Type=TYPE), optional=True) == {}
    assert (await problem_of(reader, a_request(sent(), Content_Type=TYPE))).ends is False


def test_each_name_that_is_given_twice_is_named_once_and_no_other() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parsed(b'{"a":1,"b":2,"a":3,"c":{"d":1,"d":2,"e":0},"f":{"a":1,"a":1,"a":1}}')
    assert [(each.field, each.code, each.value) for each in refused.value.errors] == [
        ("d", "given_twice", ""),
        ("a", "given_twice", ""),
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x" * 40, "x" * 40),
        ("x" * 41, repr("x" * 41)),
        ("é", "'é'"),
        ("a\nb", "'a\\nb'"),
        ("rfw_01234567_abcdef", "***"),
    ],
)
def test_a_foreign_name_is_shown_as_it_is_only_if_it_is_short_and_plain(
    name: str, shown: str
) -> None:
    assert named(name) == shown
