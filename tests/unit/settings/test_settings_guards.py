"""The guards before a key is used: real money, plain HTTP, and a key that would break a header."""

from __future__ import annotations

import pytest

from tests.unit.settings.loading import SECRET, loaded
from worker.errors import GuardRefused, SettingsError
from worker.settings import Settings


def test_provider_without_a_key_says_how_to_give_one() -> None:
    with pytest.raises(SettingsError, match=r"REFUNDS_API_KEY is not set.*refunds_api_key"):
        Settings.load().require_provider()


LIVE = [
    {"API_KEY": f"sk_live_{SECRET}"},
    {"API_KEY": f"rk_live_{SECRET}"},
    {"API_KEY": f"sk_test_{SECRET}", "API_URL": "https://api.wooshpay.com"},
    {"API_KEY": f"sk_test_{SECRET}", "API_URL": "https://API.WooshPay.com:443/"},
    {"API_KEY": f"sk_test_{SECRET}", "API_URL": "https://api.wooshpay.com./x"},
    {"API_KEY": f"sk_test_{SECRET}", "API_URL": "https://api.wooshpay.com:8443"},
    {"API_KEY": f"sk_test_{SECRET}", "API_URL": "http://api.wooshpay.com"},
]


@pytest.mark.parametrize(
    "variables", LIVE, ids=lambda variables: variables.get("API_URL", "live key")
)
def test_live_key_or_address_is_refused_by_a_guard_unless_live_is_meant(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    settings = loaded(monkeypatch, **variables)
    assert (settings.is_live, settings.mode) == (True, "live")
    with pytest.raises(GuardRefused, match="REFUNDS_LIVE=true") as caught:
        settings.require_provider()
    assert SECRET not in str(caught.value)
    meant = loaded(monkeypatch, LIVE="true", ALLOW_HTTP="true")
    assert meant.require_provider() == variables["API_KEY"]


def test_test_key_needs_no_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, API_KEY="sk_test_x")
    assert (settings.require_provider(), settings.mode, settings.provider_host) == (
        "sk_test_x",
        "test",
        "apitest.wooshpay.com",
    )


@pytest.mark.parametrize("host", ["127.0.0.1:8085", "127.9.9.9", "[::1]:8085", "localhost:8085"])
def test_plain_http_to_this_machine_is_allowed(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert (
        loaded(monkeypatch, API_KEY="sk_test_x", API_URL=f"http://{host}").require_provider()
        == "sk_test_x"
    )


@pytest.mark.parametrize(
    "host",
    ["provider.test", "10.0.0.1", "localhost.example.com", "0.0.0.0", "127.0.0.1.nip.io"],  # noqa: S104 - an address to be refused
)
def test_plain_http_to_elsewhere_is_refused_by_a_guard(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    settings = loaded(monkeypatch, API_KEY=f"sk_test_{SECRET}", API_URL=f"http://{host}")
    with pytest.raises(GuardRefused, match="REFUNDS_ALLOW_HTTP=true") as caught:
        settings.require_provider()
    assert SECRET not in str(caught.value)
    assert loaded(monkeypatch, ALLOW_HTTP="true").require_provider() == f"sk_test_{SECRET}"


@pytest.mark.parametrize(
    "key",
    [
        f"sk_test_{SECRET}\r\nX: y",
        f"sk_test_{SECRET} ",
        f"user:{SECRET}",
        f"sk_{SECRET}é",
        f'"sk_test_{SECRET}"',
    ],
)
def test_key_that_would_break_a_header_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    with pytest.raises(SettingsError, match="REFUNDS_API_KEY") as caught:
        loaded(monkeypatch, API_KEY=key).require_provider()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Provider.Test/", "provider.test"),
        ("https://provider.test:443", "provider.test"),
        ("https://provider.test:8443", "provider.test:8443"),
        ("http://127.0.0.1:8085", "127.0.0.1:8085"),
        ("http://[::1]/x", "::1"),
        ("https://refund-provider.internal_net/", "refund-provider.internal_net"),
    ],
)
def test_provider_host_is_one_name_for_one_provider(
    monkeypatch: pytest.MonkeyPatch, url: str, host: str
) -> None:
    assert loaded(monkeypatch, API_URL=url).provider_host == host
