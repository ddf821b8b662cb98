"""What leaves for the provider, byte by byte, and by which way."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import httpx
import pytest

from tests.factories import a_refund, a_request, refund_payload
from tests.unit.provider.byte_provider import (
    BODY,
    DONE,
    KEY,
    LEASE,
    Peer,
    Script,
    answering,
    byte_provider,
    error,
    gateway_to,
    no_time,
    refuse,
    reply,
    sent,
    settings_for,
)
from worker.errors import GuardRefused, SettingsError
from worker.model.answers import TryVerdict
from worker.model.request import request_body
from worker.provider.transport import build_client, proxy_for

BASIC = "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def test_a_refund_is_posted_as_the_endpoint_wants_it() -> None:
    refund = a_refund()
    body = request_body(a_request(), refund.generation)
    async with byte_provider(answering(DONE)) as provider, gateway_to(provider.url) as gateway:
        await gateway.send(refund, body, lease_left=LEASE)
        (request,) = provider.requests
    assert request.line == "POST /v1/refunds HTTP/1.1"
    assert request.body == body
    assert json.loads(request.body)["amount"] == "500"
    assert request.headers == {
        "host": provider.url.removeprefix("http://"),
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": BASIC,
        "connection": "keep-alive",
        "content-length": str(len(body)),
        "content-type": "application/json",
        "idempotency-key": refund.idempotency_key,
        "user-agent": "refund-worker",
    }


async def test_the_stored_bytes_leave_as_they_are_even_if_they_would_be_written_otherwise_now() -> (
    None
):
    stored = b'{ "amount" : "500",\n "payment_intent":"pi_\\u0031" }\x20'
    async with byte_provider(answering(DONE)) as provider, gateway_to(provider.url) as gateway:
        await gateway.send(a_refund(), stored, lease_left=LEASE)
        assert [request.body for request in provider.requests] == [stored]


async def test_a_path_in_the_providers_address_is_kept() -> None:
    async with byte_provider(answering(DONE)) as provider:
        await sent(f"{provider.url}/prefix", a_refund())
        assert provider.requests[0].line == "POST /prefix/v1/refunds HTTP/1.1"


async def test_an_address_leaves_as_it_was_encoded() -> None:
    target = "/v1/a%2Fb%7E?created%5Bgte%5D=1&text=a%20b%2Bc%27"
    async with byte_provider(answering(DONE)) as provider:
        async with build_client(settings_for(provider.url)) as client:
            await client.get(f"{provider.url}{target}")
        (request,) = provider.requests
    assert request.line == f"GET {target} HTTP/1.1"


async def test_cookies_are_neither_kept_nor_sent_back() -> None:
    cookie = reply(200, refund_payload(), Set_Cookie="session=1; Path=/")
    async with byte_provider(answering(cookie)) as provider, gateway_to(provider.url) as gateway:
        await gateway.send(a_refund(), BODY, lease_left=LEASE)
        await gateway.send(a_refund(), BODY, lease_left=LEASE)
        assert ["cookie" in request.headers for request in provider.requests] == [False, False]


async def test_calls_one_after_the_other_share_a_connection() -> None:
    async with byte_provider(answering(DONE)) as provider, gateway_to(provider.url) as gateway:
        for _ in range(3):
            await gateway.send(a_refund(), BODY, lease_left=LEASE)
        assert (provider.connections, provider.posts) == (1, 3)


async def test_as_many_calls_as_the_settings_allow_are_in_flight_at_once() -> None:
    everybody = asyncio.Barrier(3)

    async def meet(peer: Peer) -> None:
        await peer.read()
        await everybody.wait()
        await peer.send(DONE)

    settings = {"concurrency": 3}
    async with byte_provider(meet) as provider, gateway_to(provider.url, settings) as gateway:
        calls = [gateway.send(a_refund(), BODY, lease_left=LEASE) for _ in range(3)]
        assert [outcome.verdict for outcome in await asyncio.gather(*calls)] == [
            TryVerdict.DONE
        ] * 3


async def test_nothing_told_of_a_failure_holds_the_key_or_the_body() -> None:
    async def break_off(peer: Peer) -> None:
        await peer.read()
        peer.reset()

    for script in (break_off, answering(reply(401, error(f"no {KEY}")))):
        async with byte_provider(script) as provider:
            told = repr(await sent(provider.url, a_refund()))
            assert KEY not in told
            assert BASIC not in told
            assert "pi_1787730829493927936" not in told


async def test_a_client_connects_to_nothing_before_its_first_call() -> None:
    async with byte_provider(answering(DONE)) as provider:
        client = build_client(settings_for(provider.url))
        await client.aclose()
        assert provider.connections == 0


def test_a_client_can_be_built_before_there_is_a_loop() -> None:
    client = build_client(settings_for("https://provider.invalid"))
    assert client.base_url == httpx.URL("https://provider.invalid")
    assert KEY not in repr(vars(client))


def test_a_client_needs_a_key_and_respects_the_guards() -> None:
    with pytest.raises(SettingsError, match="REFUNDS_API_KEY"):
        build_client(settings_for("https://provider.invalid", api_key=None))
    with pytest.raises(GuardRefused, match="plain http"):
        build_client(settings_for("http://provider.invalid"))


# The proxy's credentials are passed in a way that aiohttp 3 takes and aiohttp 4 will not.
@pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The 'proxy_auth' parameter is deprecated:DeprecationWarning")
async def test_a_proxy_of_the_environment_carries_the_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with byte_provider(answering(DONE)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", "http://me:secret@"))
        outcome = await sent("http://provider.invalid", a_refund(), {"allow_http": True})
        assert outcome.verdict is TryVerdict.DONE
        (request,) = proxy.requests
        assert request.line == "POST http://provider.invalid/v1/refunds HTTP/1.1"
        assert (
            request.headers["proxy-authorization"]
            == "Basic " + base64.b64encode(b"me:secret").decode()
        )
        assert request.headers["authorization"] == BASIC


async def test_a_tunnel_that_the_proxy_refuses_was_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with byte_provider(answering(reply(502, {}))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with gateway_to("https://provider.invalid", sleep=no_time) as gateway:
            outcome = await gateway.send(a_refund(), BODY, lease_left=LEASE, may_go_on=refuse)
        assert (outcome.verdict, outcome.message) == (
            TryVerdict.NOT_SENT,
            "the proxy refused the tunnel to the provider",
        )
        assert [request.line for request in proxy.requests] == [
            "CONNECT provider.invalid:443 HTTP/1.1"
        ]
        assert "authorization" not in proxy.requests[0].headers


async def close(peer: Peer) -> None:
    await peer.read()


async def reset(peer: Peer) -> None:
    await peer.read()
    peer.reset()


async def babble(peer: Peer) -> None:
    await peer.read()
    await peer.send(b"what?\r\n\r\n")


@pytest.mark.parametrize("script", [close, reset, babble])
async def test_a_tunnel_that_the_proxy_breaks_off_was_not_sent(
    monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    async with byte_provider(script) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with gateway_to("https://provider.invalid", sleep=no_time) as gateway:
            outcome = await gateway.send(a_refund(), BODY, lease_left=LEASE, may_go_on=refuse)
        assert (outcome.verdict, outcome.doubt, outcome.message) == (
            TryVerdict.NOT_SENT,
            False,
            "the proxy broke off the tunnel to the provider",
        )
        assert [request.line for request in proxy.requests] == [
            "CONNECT provider.invalid:443 HTTP/1.1"
        ]


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, "https://provider.invalid", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://provider.invalid", "http://proxy:3128"),
        ({"HTTPS_PROXY": "proxy:3128"}, "https://provider.invalid", "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, "https://provider.invalid", None),
        ({"ALL_PROXY": "http://proxy:3128"}, "https://provider.invalid", "http://proxy:3128"),
        (
            {"ALL_PROXY": "http://proxy:3128", "NO_PROXY": ".invalid"},
            "https://provider.invalid",
            None,
        ),
        ({"ALL_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "https://provider.invalid", None),
        ({"ALL_PROXY": "http://proxy:3128"}, "http://127.0.0.1:8080", None),
        ({"ALL_PROXY": "http://proxy:3128"}, "http://localhost:8080", None),
        ({"ALL_PROXY": "http://proxy:3128"}, "http://[::1]:8080", None),
    ],
)
def test_the_environment_names_the_proxy(
    environment: dict[str, str], url: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxy = proxy_for(url)
    assert (None if proxy is None else str(proxy.url)) == expected


def test_a_proxy_of_another_kind_is_refused_without_echoing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@proxy:1080")
    with pytest.raises(SettingsError, match="http://") as caught:
        proxy_for("https://provider.invalid")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://me:secret@proxy:port", "http://proxy:99999", "http://[proxy", "http://"]
)
def test_a_proxy_with_an_address_that_cannot_be_used_is_refused_before_anything_is_claimed(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(SettingsError, match="HTTPS_PROXY") as caught:
        build_client(settings_for("https://provider.invalid"))
    assert "secret" not in str(caught.value)


def test_certificates_of_the_environment_that_cannot_be_read_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = tmp_path / "roots.pem"
    empty.touch()
    for file in (empty, tmp_path / "missing.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with pytest.raises(SettingsError, match=f"SSL_CERT_FILE={file} "):
            build_client(settings_for("https://provider.invalid"))
