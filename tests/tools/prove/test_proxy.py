"""The fault proxy does to a connection what it is told, and lets everything else pass."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ops.lab.prove.proxy import FaultProxy

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"
ASK = b"POST /v1/refunds HTTP/1.1\r\n\r\n"


class _Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        # The proxy is told to break connections; a broken one is the end of this handler and no
        # more.
        with suppress(ConnectionError):
            while self.request.recv(1000):
                self.request.sendall(REPLY)


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A proxy before a server that answers each piece of data with the same reply."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Answer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with FaultProxy(server.server_address[1]) as made:
                yield made
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    """A connection through the proxy that has had one good answer."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as made:
        assert asked(made) == REPLY
        yield made


def asked(client: socket.socket) -> bytes:
    client.sendall(ASK)
    return client.recv(1000)


def send_on(client: socket.socket) -> None:
    """Send until it fails: what one call hands to the kernel may all be taken before a reset comes
    back.
    """
    for _ in range(10_000):
        client.sendall(ASK * 1_000)


def test_what_passes_is_counted_by_its_first_line(proxy: FaultProxy, client: socket.socket) -> None:
    asked(client)
    assert [(seen.method, seen.path) for seen in proxy.requests] == [("POST", "/v1/refunds")] * 2


def test_a_cut_ends_the_connection_in_good_order(proxy: FaultProxy, client: socket.socket) -> None:
    assert proxy.cut() == 1
    assert client.recv(10) == b""


def test_a_reset_breaks_the_connection(proxy: FaultProxy, client: socket.socket) -> None:
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(10)


def test_a_reply_is_cut_after_so_many_bytes(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.cut_replies(7)
    client.sendall(ASK)
    # What arrived before a reset may be lost with it, as on any network.
    with suppress(ConnectionResetError):
        assert REPLY[:7].startswith(client.recv(1000))
    with pytest.raises(ConnectionError):
        send_on(client)
    assert proxy.fired["reply_cut"] == 1


def test_a_silenced_reply_never_comes_and_the_request_still_arrives(
    proxy: FaultProxy, client: socket.socket
) -> None:
    proxy.silence("replies")
    client.sendall(ASK)
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(10)
    assert proxy.fired["swallowed"] == 1
    proxy.silence("none")
    client.settimeout(5)
    with pytest.raises(ConnectionResetError):
        client.recv(10)


def test_a_silenced_request_never_arrives(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.silence("requests")
    client.sendall(ASK)
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(10)
    assert proxy.fired["swallowed"] == 1


def test_only_the_named_sources_are_silenced(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.silence("both", "127.0.0.9")
    with socket.create_connection(
        ("127.0.0.1", proxy.port), timeout=0.2, source_address=("127.0.0.9", 0)
    ) as other:
        other.sendall(ASK)
        with pytest.raises(TimeoutError):
            other.recv(10)
    assert asked(client) == REPLY


def test_a_delay_holds_each_way_back(proxy: FaultProxy, client: socket.socket) -> None:
    proxy.delay = 0.1
    began = time.monotonic()
    assert asked(client) == REPLY
    assert time.monotonic() - began >= 0.2


def test_a_refusing_proxy_is_back_on_the_same_port(proxy: FaultProxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    proxy.open()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        assert asked(client) == REPLY
