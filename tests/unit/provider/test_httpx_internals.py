"""The private part of httpx that the worker calls: it may change in any release of httpx.

If this fails, read httpx's change beside `worker/provider/transport.py`.
"""

from __future__ import annotations

import inspect

import httpx
import pytest


class Transport(httpx.AsyncBaseTransport):
    """A transport that sends nothing."""


@pytest.mark.parametrize("url", ["https://api.provider.test/v1/refunds", "http://127.0.0.1:1/x"])
async def test_a_client_hands_every_address_to_its_transport(url: str) -> None:
    transport = Transport()
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        assert client._transport_for_url(httpx.URL(url)) is transport


def test_a_clients_way_to_its_transport_takes_an_address_and_nothing_else() -> None:
    assert [*inspect.signature(httpx.AsyncClient._transport_for_url).parameters] == ["self", "url"]
