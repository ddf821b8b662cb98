"""Addresses of Sentinels: taken apart, with TLS and credentials of their own, and handed to both
clients alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.broker.queues import make_celery
from worker.errors import SettingsError
from worker.settings import Settings
from worker.store.connection import connect, connect_async
from worker.store.sentinels import SentinelAddress, is_sentinel

CA = str(Path(__file__).parents[2] / "support" / "loopback.pem")
PLAIN = "sentinel://user:p%40ss@one:1,two/3?master=refunds"
TLS = (
    "sentinels://user:p%40ss@one:1,two/3?master=refunds&sentinel_username=watch&sentinel_password=w%26pw"
    f"&ssl_ca_certs={CA}&ssl_check_hostname=false"
)
SERVER = {"db": 3, "username": "user", "password": "p@ss"}
OF_TLS = {"ssl": True, "ssl_ca_certs": CA, "ssl_check_hostname": False}


def test_address_is_taken_apart() -> None:
    address = SentinelAddress.parse(PLAIN)
    assert (address.hosts, address.master, address.database) == (
        (("one", 1), ("two", 26379)),
        "refunds",
        3,
    )
    assert address.to_server == SERVER
    assert address.to_sentinels == {}


def test_with_tls_both_are_spoken_to_under_it_and_sentinels_have_credentials_of_their_own() -> None:
    address = SentinelAddress.parse(TLS)
    assert address.to_server == SERVER | OF_TLS
    assert address.to_sentinels == {"username": "watch", "password": "w&pw"} | OF_TLS


def test_tls_without_options_trusts_what_the_machine_trusts() -> None:
    address = SentinelAddress.parse("sentinels://one/0?master=m&protocol=2")
    assert address.to_sentinels == {"ssl": True, "protocol": 2}
    assert address.to_server == {"db": 0, "ssl": True, "protocol": 2}


@pytest.mark.parametrize(
    ("url", "named"), [(PLAIN, True), (TLS, True), ("redis://sentinel://", False)]
)
def test_scheme_tells_sentinels_from_servers(url: str, *, named: bool) -> None:
    assert is_sentinel(url) is named


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sentinel://one/0", "sentinel:// address needs the master's name: add \\?master=NAME"),
        ("sentinels://one/0?master=", "sentinels:// address needs the master's name"),
        (
            "sentinels://one:x/0?master=m",
            "must read sentinels://host:port,host:port/db\\?master=NAME",
        ),
        ("sentinel://one/db?master=m", "must read sentinel://host:port,host:port/db\\?master=NAME"),
        ("sentinel://?master=m", "must read sentinel://host:port,host:port/db\\?master=NAME"),
        ("sentinel://one/0?master=m&ssl_ca_certs=/ca", "has ssl_ca_certs: use sentinels://"),
        (
            "sentinel://one/0?master=m&pasword=secret",
            "unknown option, pasword: the options are master, ",
        ),
    ],
)
def test_address_that_cannot_be_right_is_refused_without_showing_a_secret(
    url: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        SentinelAddress.parse(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", [PLAIN, TLS])
async def test_both_stores_and_the_broker_are_given_the_same(url: str) -> None:
    address = SentinelAddress.parse(url)
    own = {"socket_timeout": 5, **address.to_sentinels}
    servers = {name: value for name, value in address.to_server.items() if name != "ssl"}
    for client in (connect(url), connect_async(url)):
        pool: Any = client.connection_pool
        assert pool.sentinel_manager.sentinel_kwargs == own
        assert servers.items() <= pool.connection_kwargs.items()
        assert ("SSL" in pool.connection_class.__name__) is bool(address.tls)
    app = make_celery(Settings.load(redis_url=url))
    assert app.conf.broker_transport_options["sentinel_kwargs"] == own
    assert (
        app.conf.broker_url == "sentinel://user:p%40ss@one:1/3;sentinel://user:p%40ss@two:26379/3"
    )
    of_tls = {name: value for name, value in address.tls.items() if name != "ssl"}
    assert bool(app.conf.broker_use_ssl) is bool(address.tls)
    assert of_tls.items() <= (app.conf.broker_use_ssl or {}).items()
