"""Calls that get no connection, TLS, and what a cut or canceled call leaves on its connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.factories import a_refund
from tests.unit.provider.byte_provider import (
    BODY,
    DONE,
    LEASE,
    SHORT,
    Peer,
    answering,
    bound_socket,
    byte_provider,
    close_after_reading,
    gateway_to,
    no_time,
    refuse,
)
from worker.model.answers import TryVerdict
from worker.provider import transport

if TYPE_CHECKING:
    from collections.abc import Iterator


LOOPBACK_CERTIFICATE = Path(__file__).parents[2] / "support" / "loopback.pem"


@pytest.fixture
def held_port() -> Iterator[int]:
    """A port that is bound and refuses connections."""
    with bound_socket() as bound:
        yield bound.getsockname()[1]


async def not_sent(url: str, settings: dict[str, Any] | None = None) -> str:
    """The reason of an attempt that must not have been sent; further tries are refused."""
    async with gateway_to(url, settings, sleep=no_time) as gateway:
        outcome = await gateway.send(a_refund(), BODY, lease_left=LEASE, may_go_on=refuse)
    assert (outcome.verdict, outcome.code, outcome.doubt, outcome.tries) == (
        TryVerdict.NOT_SENT,
        "not_sent",
        False,
        1,
    )
    return outcome.message or ""


async def test_a_refused_connection_was_not_sent(held_port: int) -> None:
    assert await not_sent(f"http://127.0.0.1:{held_port}") == "the provider could not be reached"


async def test_an_unknown_host_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert (
        await not_sent("https://provider.invalid")
        == "the provider's host name could not be resolved"
    )


async def test_a_failed_tls_handshake_was_not_sent() -> None:
    async def speak_plainly(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.send(b"HTTP/1.1 400 Words\r\nContent-Length: 0\r\n\r\n")

    async with byte_provider(speak_plainly) as provider:
        reason = await not_sent(provider.url.replace("http:", "https:"))
        assert (reason, provider.requests) == ("the TLS handshake with the provider failed", [])


@pytest.fixture
def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(LOOPBACK_CERTIFICATE)
    return context


async def test_an_untrusted_certificate_was_not_sent(server_tls: ssl.SSLContext) -> None:
    async with byte_provider(answering(DONE), tls=server_tls) as provider:
        assert await not_sent(provider.url) == "the provider's certificate is not trusted"
        assert provider.requests == []


async def test_tls_with_a_trusted_certificate_works_and_a_break_after_sending_may_have_happened(
    server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(LOOPBACK_CERTIFICATE))

    async def answer_then_reset(peer: Peer) -> None:
        await peer.read()
        await peer.send(DONE)
        await peer.read()
        peer.reset()

    async with (
        byte_provider(answer_then_reset, tls=server_tls) as provider,
        gateway_to(provider.url) as gateway,
    ):
        assert (await gateway.send(a_refund(), BODY, lease_left=LEASE)).verdict is TryVerdict.DONE
        assert (await gateway.send(a_refund(), BODY, lease_left=LEASE)).verdict is TryVerdict.MAYBE
        assert provider.posts == 2


async def test_a_connection_that_is_never_accepted_was_not_sent() -> None:
    with bound_socket() as listening:
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:  # fill the backlog: further handshakes get no answer
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert await not_sent(url, SHORT) == "no connection to the provider within the time limit"
        for one in waiting:
            one.close()


async def test_a_call_that_gets_no_connection_of_the_pool_was_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "SPARE_CONNECTIONS", 0)
    arrived = asyncio.Event()

    async def hold(peer: Peer) -> None:
        await peer.read()
        arrived.set()
        await peer.read_to_end()

    settings = {"concurrency": 1, "request_timeout_seconds": 0.4}
    async with (
        byte_provider(hold) as provider,
        gateway_to(provider.url, settings, sleep=no_time) as gateway,
    ):
        holder = asyncio.create_task(gateway.send(a_refund(), BODY, lease_left=LEASE))
        await arrived.wait()
        outcome = await gateway.send(a_refund(), BODY, lease_left=LEASE, may_go_on=refuse)
        assert (outcome.verdict, provider.posts) == (TryVerdict.NOT_SENT, 1)
        assert (await holder).verdict is TryVerdict.MAYBE


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("early", [b"", DONE[:-1]], ids=["silence", "cut reply"])
async def test_a_try_without_a_whole_reply_leaves_nothing_that_could_still_arrive(
    early: bytes, scheme: str, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(LOOPBACK_CERTIFICATE))
    large = BODY.ljust(16 << 20)  # more than the kernel takes: the rest waits in the process
    returned = asyncio.Event()
    late: list[bytes] = []

    async def stall(peer: Peer) -> None:
        await peer.send(early)
        await returned.wait()
        late.append(await peer.read_to_end())

    tls = server_tls if scheme == "https" else None
    async with (
        byte_provider(stall, receive_buffer=4096, tls=tls) as provider,
        gateway_to(provider.url, SHORT) as gateway,
    ):
        outcome = await gateway.send(a_refund(), large, lease_left=LEASE)
        returned.set()
        await provider.gone.wait()
        assert (outcome.verdict, outcome.code) == (TryVerdict.MAYBE, "no_reply")
        # What had reached the other side, and not what this side's kernel or process still held.
        assert len(late[0]) < 1 << 20


async def test_a_canceled_call_is_canceled_and_its_connection_cut() -> None:
    arrived = asyncio.Event()

    async def hold(peer: Peer) -> None:
        await peer.read()
        arrived.set()
        await peer.read_to_end()

    async with byte_provider(hold) as provider, gateway_to(provider.url) as gateway:
        call = asyncio.create_task(gateway.send(a_refund(), BODY, lease_left=LEASE))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await provider.gone.wait()
        assert provider.posts == 1


async def test_a_canceled_second_try_is_canceled_too() -> None:
    arrived = asyncio.Event()

    async def hold(peer: Peer) -> None:
        await peer.read()
        arrived.set()
        await peer.read_to_end()

    async with (
        byte_provider(close_after_reading, hold) as provider,
        gateway_to(provider.url, {"idempotency": "trust"}, sleep=no_time) as gateway,
    ):
        call = asyncio.create_task(gateway.send(a_refund(), BODY, lease_left=LEASE))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await provider.gone.wait()
        assert provider.posts == 2
