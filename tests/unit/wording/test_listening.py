"""The error text of a server that cannot listen."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from worker.wording.listening import cannot_listen

NEXT = "choose another --host or --port"


async def test_a_port_in_use_is_in_the_systems_words_without_a_tuple() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="address") as raised:
            await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", port)
    assert cannot_listen("127.0.0.1", port, raised.value) == (
        f"cannot listen on 127.0.0.1:{port} (Address already in use): {NEXT}"
    )


def test_an_unknown_host_is_in_the_resolvers_words() -> None:
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert cannot_listen("nowhere", 80, error) == (
        f"cannot listen on nowhere:80 (Name or service not known): {NEXT}"
    )


def test_an_ipv6_address_is_in_brackets() -> None:
    error = OSError(errno.EACCES, "Permission denied")
    assert cannot_listen("::1", 80, error) == (
        f"cannot listen on [::1]:80 (Permission denied): {NEXT}"
    )
