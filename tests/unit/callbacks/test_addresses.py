"""The guard against inner addresses: a listener on this machine that no hostile URL reaches."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from worker.callbacks.addresses import is_allowed
from worker.callbacks.endpoints import Endpoint
from worker.callbacks.guard import OwnThreadResolver
from worker.callbacks.posting import Poster, Reply

INNER = (
    "127.0.0.1",
    "127.8.9.1",
    "10.0.0.1",
    "172.16.5.5",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "0.0.0.0",  # noqa: S104 - an address that is to be refused
    "0.1.2.3",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "203.0.113.9",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    # Of networks that are not in use: the first two translate to an IPv4 address.
    "::ffff:0:7f00:1",
    "::5efe:7f00:1",
    "4000::1",
    "5f00::1",
)
PUBLIC = ("93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "::8.8.8.8")


@pytest.mark.parametrize("address", INNER)
def test_inner_address_is_refused(address: str) -> None:
    assert not is_allowed(address, private=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_allowed(address: str) -> None:
    assert is_allowed(address, private=False)
    assert is_allowed(address, private=True)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.0.0.1", True),
        ("::ffff:192.168.1.1", True),
        ("fd12::1", True),
        ("169.254.169.254", False),
        ("0.0.0.0", False),  # noqa: S104 - likewise
        ("::", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("fe80::1", False),
        ("64:ff9b::a00:1", False),
        # Where clouds keep credentials outside the link-local networks.
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("::ffff:168.63.129.16", False),
        ("fd00:ec2::254", False),
        ("fd00:ec2::23", False),
        ("::ffff:0:a9fe:a9fe", False),
        ("fd20:ce::254", False),
        ("fd00:c1::a9fe:a9fe", False),
        ("fd00:42::42", False),
        ("not an address", False),
    ],
)
def test_private_addresses_are_allowed_on_request_and_those_of_credentials_never(
    address: str, *, allowed: bool
) -> None:
    assert is_allowed(address, private=True) is allowed


class Answers(AbstractResolver):
    """A resolver that answers each look-up with the next answer, and then with the last one."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        del family
        addresses = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


class Listener:
    """Counts the connections to this machine."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()

    async def accept(reader: Any, writer: Any) -> None:
        del reader
        listener.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    # Both families at one port: an IPv6 socket that takes IPv4 too.
    both = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    server = await asyncio.start_server(accept, sock=both)
    listener.port = both.getsockname()[1]
    async with server:
        yield listener


async def sent(
    url: str, resolver: AbstractResolver | None = None, *, private: bool = False
) -> Reply:
    endpoint = Endpoint(
        name="shop", url=url, keys=(b"k" * 32,), timeout_seconds=2, allow_private=private
    )
    poster = Poster(endpoint, resolver=resolver)
    try:
        return await poster.post("msg_1", 1, b"{}")
    finally:
        await poster.close()


URLS = (
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.1:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://127.8.8.8:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://localhost:{port}/",
    "http://localhost.:{port}/",
    "http://LOCALHOST:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://user@127.0.0.1:{port}/",
    "http://\uff11\uff12\uff17.0.0.1:{port}/",
    "http://127\u30020\u30020\u30021:{port}/",
)
DNS = (
    ["127.0.0.1"],
    ["::1"],
    ["::ffff:127.0.0.1"],
    ["0.0.0.0"],  # noqa: S104 - likewise
    ["127.0.0.53", "127.0.0.1"],
    ["93.184.215.14", "127.0.0.1"],
    ["127.0.0.1", "93.184.215.14"],
    ["2606:4700::1111", "::1"],
    ["10.0.0.1"],
    ["169.254.169.254"],
    ["64:ff9b::7f00:1"],
)


@pytest.mark.parametrize("url", URLS)
async def test_hostile_url_reaches_no_inner_listener(url: str) -> None:
    async with listening() as inside:
        reply = await sent(url.format(port=inside.port))
        assert (reply.result, reply.status) == ("failed", None)
        assert inside.connections == 0


@pytest.mark.parametrize("answer", DNS)
async def test_hostile_dns_answer_reaches_no_inner_listener(answer: list[str]) -> None:
    async with listening() as inside:
        reply = await sent(f"http://shop.example.com:{inside.port}/", Answers(answer))
        assert (reply.result, reply.error) == ("failed", "the address is not a public one")
        assert inside.connections == 0


async def test_name_that_changes_between_two_look_ups_is_resolved_once_and_checked() -> None:
    async with listening() as inside:
        # What is connected to is the checked answer: a second look-up would be refused here.
        rebinding = Answers(["127.0.0.1"], ["169.254.169.254"])
        url = f"http://shop.example.com:{inside.port}/"
        assert (await sent(url, rebinding, private=True)).result == "delivered"
        assert (rebinding.asked, inside.connections) == (1, 1)
        turned = Answers(["169.254.169.254"], ["127.0.0.1"])
        assert (await sent(url, turned, private=True)).result == "failed"
        assert (turned.asked, inside.connections) == (1, 1)


async def test_listener_is_reached_with_allow_private_so_the_other_tests_can_fail() -> None:
    async with listening() as inside:
        for url in (f"http://127.0.0.1:{inside.port}/", f"http://localhost:{inside.port}/"):
            assert (await sent(url, private=True)).result == "delivered"
        assert inside.connections == 2


async def test_names_that_are_not_answered_hold_no_thread_that_refunds_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    freed = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        freed.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    posts = [asyncio.create_task(sent("http://shop.example.com/")) for _ in range(50)]
    try:
        async with asyncio.timeout(1.5):
            # As the sweep of the refunds does.
            await asyncio.to_thread(lambda: None)
        replies = await asyncio.gather(*posts)
    finally:
        freed.set()
    assert {reply.error for reply in replies} == {"no answer within 2 s"}


async def test_answer_that_comes_too_late_is_dropped_and_its_thread_holds_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, asked, freed = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    threads: list[threading.Thread] = []
    troubles: list[dict[str, Any]] = []

    def hang(*_: object, **__: object) -> list[Any]:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(asked.set)
        freed.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    loop.set_exception_handler(lambda _, trouble: troubles.append(trouble))
    try:
        looking = asyncio.create_task(OwnThreadResolver().resolve("shop.example.com"))
        await asked.wait()
        looking.cancel()
        await asyncio.wait([looking])
    finally:
        freed.set()
    (thread,) = threads
    assert thread.daemon
    thread.join()
    # What the thread left for the loop runs.
    await asyncio.sleep(0)
    assert troubles == []


async def test_look_up_returns_each_address_once_as_a_connection_needs_it() -> None:
    assert await OwnThreadResolver().resolve("127.0.0.1", 80) == [
        ResolveResult(
            hostname="127.0.0.1",
            host="127.0.0.1",
            port=80,
            family=socket.AF_INET,
            proto=socket.IPPROTO_TCP,
            flags=socket.AI_NUMERICHOST,
        )
    ]
    with pytest.raises(socket.gaierror):
        await OwnThreadResolver().resolve("::1", 80, socket.AF_INET)


async def test_text_that_no_name_may_be_has_no_address() -> None:
    with pytest.raises(socket.gaierror, match="not a name"):
        await OwnThreadResolver().resolve("shop..example.com")


async def test_name_that_does_not_exist_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    reply = await sent("http://shop.example.com/")
    assert (reply.result, reply.error) == ("failed", "the host name cannot be resolved")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the connection ended before an answer"),
        (b"hello\r\n\r\n", "the answer is not HTTP"),
    ],
)
async def test_an_endpoint_that_does_not_answer_is_a_failure_in_plain_words(
    answer: bytes, words: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reply = await sent(f"http://127.0.0.1:{port}/", private=True)
    assert (reply.result, reply.error) == ("failed", words)
    reply = await sent(f"http://127.0.0.1:{port}/", private=True)
    assert (reply.result, reply.error) == ("failed", "no connection can be made")


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as inside:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
        await sent("http://shop.example.com/", Answers(["127.0.0.1"]))
        assert inside.connections == 0
        async with listening() as shop:
            url = f"http://shop.example.com:{shop.port}/"
            assert (await sent(url, Answers(["127.0.0.1"]), private=True)).result == "delivered"
        assert (shop.connections, inside.connections) == (1, 0)
