"""What a server that is gone, full, read-only or of a wrong address is called, and that no password
is shown.
"""

from __future__ import annotations

import pytest

from tests.unit.store.faulty_servers import (
    accept,
    client_of,
)
from worker.errors import SettingsError, StoreRefused, StoreUnavailable
from worker.sandbox.redis_server import running_server
from worker.store import connection
from worker.store.async_store import AsyncStore
from worker.store.store import Store

PASSWORD = "hunter2-do-not-print"


@pytest.mark.parametrize(
    ("trouble", "told"),
    [("full", "from 90 % on no new refund is accepted"), ("read-only", "refuses commands now")],
)
def test_server_that_is_full_or_read_only_is_away(trouble: str, told: str) -> None:
    with running_server() as server, connection.connect(server.url) as client:
        store = Store(client)
        store.run(accept())
        if trouble == "full":
            client.config_set("maxmemory", "1")
        else:
            client.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match=told):
            store.run(accept("b"))


UNREADABLE = [f"redis://user:sec/{PASSWORD}@host/0", f"redis://:p[{PASSWORD}]s@host/0"]


@pytest.mark.parametrize("url", UNREADABLE, ids=["slash", "brackets"])
def test_address_whose_password_was_not_encoded_is_refused_without_showing_any_of_it(
    url: str,
) -> None:
    for connect in (connection.connect, connection.connect_async):
        with pytest.raises(SettingsError, match="percent-encoded") as caught:
            connect(url)
        assert PASSWORD not in str(caught.value)
        assert "sec" not in str(caught.value)
    assert connection.address_of(url) == "REFUNDS_REDIS_URL"


def test_server_that_is_gone_is_named_without_its_password() -> None:
    with running_server() as server:
        url = server.url.replace("redis://", f"redis://:{PASSWORD}@")
        place = connection.address_of(url)
        port = server.port
    store = Store(connection.connect(url), address=place)
    for ask in (
        lambda: store.run(accept()),
        lambda: store.get("a"),
        lambda: list(store.ids_in(["queued"])),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            ask()
        assert f"127.0.0.1:{port}" in str(caught.value)
        assert PASSWORD not in str(caught.value)
    store.redis.close()


async def test_server_that_is_gone_is_named_without_its_password_on_the_loop_too() -> None:
    with running_server() as server:
        url = server.url.replace("redis://", f"redis://:{PASSWORD}@")
    store = AsyncStore(connection.connect_async(url), address=connection.address_of(url))
    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        await store.run(accept())
    assert PASSWORD not in str(caught.value)
    await store.close()


def test_server_that_refuses_the_password_says_so_without_showing_it() -> None:
    with running_server() as server, client_of(server) as client:
        url = server.url.replace("redis://", f"redis://:{PASSWORD}@")
        client.config_set("requirepass", "another-one")
        store = Store(connection.connect(url), address=connection.address_of(url))
        with pytest.raises(StoreRefused, match="refuses the credentials") as caught:
            store.get("a")
        assert PASSWORD not in str(caught.value)
        store.redis.close()
