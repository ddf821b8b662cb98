"""Calls of scripts are packed in C, to the same bytes as in Python."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio.connection import AbstractConnection

from worker.store.connection import connect_async
from worker.store.packing import packing

PLAIN = redis.asyncio.Connection
URLS = {
    "tcp": ("redis://127.0.0.1:1/0", PLAIN),
    "tls": ("rediss://127.0.0.1:1/0", redis.asyncio.SSLConnection),
    "unix": ("unix:///nowhere.sock", redis.asyncio.UnixDomainSocketConnection),
    "sentinel": ("sentinel://one/0?master=m", redis.asyncio.sentinel.SentinelManagedConnection),
}


def bytes_of(kind: type[AbstractConnection], *args: Any) -> bytes:
    return b"".join(kind().pack_command(*args))


@settings(deadline=None, max_examples=200)
@given(
    arguments=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]))
        | st.binary()
        | st.integers()
        | st.floats(allow_nan=False)
    )
)
def test_call_of_a_script_is_packed_to_the_same_bytes(arguments: list[Any]) -> None:
    call = ("EVALSHA", "0" * 40, 0, *arguments)
    assert bytes_of(packing(PLAIN), *call) == bytes_of(PLAIN, *call)


@pytest.mark.parametrize("command", [("PING",), ("CONFIG GET", "maxmemory"), ("GET", "é")])
def test_every_other_command_is_packed_as_it_was(command: tuple[str, ...]) -> None:
    assert bytes_of(packing(PLAIN), *command) == bytes_of(PLAIN, *command)


def test_what_no_command_can_hold_is_refused_before_a_byte_is_sent() -> None:
    with pytest.raises(TypeError):
        bytes_of(packing(PLAIN), "EVALSHA", "0" * 40, 0, None)
    with pytest.raises(UnicodeEncodeError):
        bytes_of(packing(PLAIN), "EVALSHA", "0" * 40, 0, "\ud800")


@pytest.mark.parametrize(("url", "kind"), URLS.values(), ids=URLS)
async def test_each_kind_of_address_has_such_connections(
    url: str, kind: type[AbstractConnection]
) -> None:
    pool: Any = connect_async(url).connection_pool
    assert issubclass(pool.connection_class, kind)
    assert pool.connection_class.__name__ == f"Packing{kind.__name__}"
    assert isinstance(pool.make_connection(), kind)
