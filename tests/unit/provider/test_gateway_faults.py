"""Every way in which one try can end, on real sockets.

What it says of the refund, and how often money could move.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from typing import Any

import pytest

from tests.factories import a_refund, refund_payload
from tests.unit.provider.byte_provider import (
    BODY,
    DONE,
    LEASE,
    SHORT,
    Peer,
    Script,
    answering,
    byte_provider,
    close_after_reading,
    error,
    gateway_to,
    reply,
    sent,
)
from worker.model.answers import TryVerdict
from worker.provider import transport


def raw(data: bytes) -> Script:
    """Answer with these bytes, then close."""

    async def script(peer: Peer) -> None:
        await peer.read()
        await peer.send(data)

    return script


async def reset_before_reading(peer: Peer) -> None:
    peer.reset()


async def close_before_reading(peer: Peer) -> None:
    del peer


async def reset_after_reading(peer: Peer) -> None:
    await peer.read()
    peer.reset()


async def reset_within_body(peer: Peer) -> None:
    await peer.read()
    await peer.send(DONE[:-20])
    peer.reset()


async def never_answer(peer: Peer) -> None:
    await peer.read()
    await peer.read_to_end()


async def drip(peer: Peer) -> None:
    """Send the reply byte by byte, each well within any limit on a single read, for ever."""
    await peer.read()
    for byte in b"HTTP/1.1 200 Words\r\nX-Pad: " + b"x" * 10_000:
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.005)


async def flood(peer: Peer) -> None:
    """Send a body without an end."""
    await peer.read()
    await peer.send(b"HTTP/1.1 200 Words\r\n\r\n{")
    while True:
        await peer.send(b" " * 65536)


@pytest.mark.parametrize(
    ("script", "posts", "said"),
    [
        (reset_before_reading, 0, "the connection broke"),
        (close_before_reading, 0, "the connection"),
        (reset_after_reading, 1, "the connection broke"),
        (close_after_reading, 1, "the connection was closed before the reply"),
        (raw(b"HTTP/1.1 200 Words\r\nContent-Le"), 1, "the connection was closed before the reply"),
        (raw(b"220 mail.example ESMTP\r\n\r\n"), 1, "the reply was not valid HTTP"),
        (raw(b"HTTP/1.1 200 Words\r\nX-Long: " + b"x" * 70_000), 1, "the reply was not valid HTTP"),
        (raw(DONE[:-1]), 1, "the reply's body was incomplete"),
        (reset_within_body, 1, "the reply's body was incomplete"),
        (
            raw(b"HTTP/1.1 200 Words\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"),
            1,
            "the reply's body was incomplete",
        ),
        (raw(b"HTTP/1.1 200 Words\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"), 1, "the reply"),
        (flood, 1, "the reply is over 1 MB"),
        (raw(reply(body=b" " * (transport.MAX_BODY + 1))), 1, "the reply is over 1 MB"),
        (
            raw(reply(body=gzip.compress(bytes(100_000_000), 1), Content_Encoding="gzip")),
            1,
            "the reply is over 1 MB",
        ),
        (
            raw(reply(body=b"no gzip", Content_Encoding="gzip")),
            1,
            "the reply's compression is broken",
        ),
        (
            raw(reply(body=gzip.compress(DONE)[:-9], Content_Encoding="gzip")),
            1,
            "the reply's compression is broken",
        ),
        (
            raw(reply(body=b"x", Content_Encoding="br")),
            1,
            "the reply has an encoding that was not requested",
        ),
        (
            raw(reply(body=gzip.compress(DONE), Content_Encoding="gzip", content_encoding="gzip")),
            1,
            "the reply has an encoding that was not requested",
        ),
    ],
    ids=[
        "reset before reading",
        "close before reading",
        "reset after reading",
        "close after reading",
        "half the head",
        "not HTTP",
        "endless head",
        "body one byte short",
        "reset within the body",
        "chunk cut",
        "chunk garbled",
        "endless body",
        "body over the cap",
        "gzip bomb",
        "no gzip at all",
        "gzip cut",
        "unknown encoding",
        "two encodings",
    ],
)
async def test_a_broken_reply_may_have_happened_and_is_not_sent_again(
    script: Script, posts: int, said: str
) -> None:
    async with byte_provider(script) as provider:
        outcome = await sent(provider.url, a_refund())
        assert (outcome.verdict, outcome.code, outcome.doubt) == (
            TryVerdict.MAYBE,
            "no_reply",
            True,
        )
        assert (outcome.message or "").startswith(said)
        assert (provider.connections, provider.posts) == (1, posts)


@pytest.mark.parametrize("script", [never_answer, drip], ids=["silence", "slow drip"])
async def test_a_reply_that_is_not_whole_in_time_may_have_happened(script: Script) -> None:
    async with byte_provider(script) as provider:
        outcome = await sent(provider.url, a_refund(), SHORT)
        assert (outcome.verdict, outcome.message) == (
            TryVerdict.MAYBE,
            "no complete reply within 0.3 s",
        )
        assert (provider.connections, provider.posts) == (1, 1)


@pytest.mark.parametrize(
    ("status", "payload", "seen", "code"),
    [
        (200, refund_payload(), TryVerdict.DONE, "done"),
        (201, refund_payload(status="pending"), TryVerdict.DONE, "done"),
        (200, {}, TryVerdict.MAYBE, "unreadable_success"),
        (200, [refund_payload()], TryVerdict.MAYBE, "unreadable_success"),
        (204, None, TryVerdict.MAYBE, "unreadable_success"),
        (200, refund_payload(status="wonderful"), TryVerdict.MAYBE, "unknown_status"),
        (200, refund_payload(amount=501), TryVerdict.MAYBE, "contradictory_reply"),
        (200, refund_payload(payment_intent="pi_other"), TryVerdict.MAYBE, "contradictory_reply"),
        (302, error("moved"), TryVerdict.MAYBE, "moved"),
        (400, error("amount_too_large"), TryVerdict.REFUSED, "amount_too_large"),
        (400, {"type": "invalid_request_error", "code": "flat"}, TryVerdict.REFUSED, "flat"),
        (400, error("keys", "idempotency_error"), TryVerdict.MISMATCH, "idempotency_error"),
        (400, {"no": "error"}, TryVerdict.MAYBE, "http_400"),
        (401, error("bad_key"), TryVerdict.NOT_DONE, "credentials_refused"),
        (402, error("card_declined", "card_error"), TryVerdict.REFUSED, "card_declined"),
        (404, error("resource_missing"), TryVerdict.REFUSED, "resource_missing"),
        (408, error("slow"), TryVerdict.MAYBE, "slow"),
        (409, error("in_flight"), TryVerdict.MAYBE, "in_flight"),
        (422, error("odd"), TryVerdict.REFUSED, "odd"),
        (429, error("rate"), TryVerdict.NOT_DONE, "rate_limited"),
        (500, error("boom", "api_error"), TryVerdict.MAYBE, "boom"),
        (503, error("away", "api_error"), TryVerdict.MAYBE, "away"),
    ],
)
async def test_a_whole_reply_is_sent_once_and_means_what_the_table_says(
    status: int, payload: object, seen: TryVerdict, code: str
) -> None:
    body = b"" if status == 204 else None
    async with byte_provider(answering(reply(status, payload, body=body))) as provider:
        outcome = await sent(provider.url, a_refund())
        assert (outcome.verdict, outcome.code, outcome.http_status) == (seen, code, status)
        assert provider.posts == 1


async def test_an_html_error_page_may_have_happened() -> None:
    page = reply(502, body=b"<html>Bad Gateway</html>", Content_Type="text/html")
    async with byte_provider(answering(page)) as provider:
        outcome = await sent(provider.url, a_refund())
        assert (outcome.verdict, outcome.code, outcome.server_errors) == (
            TryVerdict.MAYBE,
            "http_502",
            1,
        )


async def test_a_compressed_reply_that_was_not_asked_for_is_read() -> None:
    packed = gzip.compress(json.dumps(refund_payload()).encode())
    async with byte_provider(answering(reply(body=packed, Content_Encoding="gzip"))) as provider:
        assert (await sent(provider.url, a_refund())).verdict is TryVerdict.DONE
        assert provider.requests[0].headers["accept-encoding"] == "identity"


async def test_a_redirect_is_not_followed() -> None:
    async with byte_provider(answering(reply(307, {}, Location="/v1/refunds"))) as provider:
        assert (await sent(provider.url, a_refund())).verdict is TryVerdict.MAYBE
        assert len(provider.requests) == 1


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "close"])
async def test_a_reused_connection_that_breaks_after_the_request_has_left_may_have_happened(
    reset: bool,  # noqa: FBT001 - a parameter of the case
) -> None:
    async def answer_then_break(peer: Peer) -> None:
        await peer.read()
        await peer.send(DONE)
        await peer.read()
        if reset:
            peer.reset()

    async with byte_provider(answer_then_break) as provider, gateway_to(provider.url) as gateway:
        first = await gateway.send(a_refund(), BODY, lease_left=LEASE)
        second = await gateway.send(a_refund(), BODY, lease_left=LEASE)
        assert (first.verdict, second.verdict) == (TryVerdict.DONE, TryVerdict.MAYBE)
        assert (provider.connections, provider.posts) == (1, 2)


async def test_a_second_reply_to_the_last_request_is_not_taken_for_the_next_ones() -> None:
    said_twice = asyncio.Event()

    async def say_it_twice(peer: Peer) -> None:
        await peer.read()
        await peer.send(DONE)
        await said_twice.wait()
        await peer.send(DONE)
        await peer.read()

    async with byte_provider(say_it_twice) as provider, gateway_to(provider.url) as gateway:
        first = await gateway.send(a_refund(), BODY, lease_left=LEASE)
        said_twice.set()
        for _ in range(20):  # until the stale bytes are in
            await asyncio.sleep(0)
        second = await gateway.send(a_refund(), BODY, lease_left=LEASE)
        assert (first.verdict, second.verdict, second.code) == (
            TryVerdict.DONE,
            TryVerdict.MAYBE,
            "no_reply",
        )


async def test_a_machine_that_was_suspended_while_it_connected_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect: Any = transport._Connector._create_connection
    clock, suspended = time.clock_gettime, 0.0

    async def connected(*arguments: Any) -> Any:
        nonlocal suspended
        made = await connect(*arguments)
        suspended = 3600.0
        return made

    monkeypatch.setattr(transport._Connector, "_create_connection", connected)
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock(which) + suspended)
    async with byte_provider(answering(DONE)) as provider, gateway_to(provider.url) as gateway:
        outcome = await gateway.send(a_refund(), BODY, lease_left=LEASE)
        assert (outcome.verdict, provider.posts) == (TryVerdict.MAYBE, 0)


async def test_a_connection_idle_for_four_seconds_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with byte_provider(answering(DONE)) as provider, gateway_to(provider.url) as gateway:
        await gateway.send(a_refund(), BODY, lease_left=LEASE)
        later = asyncio.get_running_loop().time() + 4.1
        monkeypatch.setattr("aiohttp.connector.monotonic", lambda: later)
        await gateway.send(a_refund(), BODY, lease_left=LEASE)
        assert (provider.connections, provider.posts) == (2, 2)
