"""The one way to a connection of callbacks: a name's addresses and the socket's are checked."""

from __future__ import annotations

import socket
from typing import Any

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from worker.callbacks.addresses import is_allowed

AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]


class InnerAddressError(OSError):
    """An address that callbacks may not connect to. Nothing was sent."""


class Guard:
    """Resolves names and makes sockets for one endpoint, both for allowed addresses only."""

    def __init__(self, *, private: bool) -> None:
        self._private = private

    def require(self, address: str) -> None:
        """Raise `InnerAddressError` if a callback may not connect to an address."""
        if not is_allowed(address, private=self._private):
            raise InnerAddressError("the address is not a public one")

    def socket(self, info: AddressInfo) -> socket.socket:
        """Return a socket for an address; the one way to a connection, also without a name."""
        family, kind, protocol, _, address = info
        self.require(str(address[0]))
        return socket.socket(family, kind, protocol)


class GuardedResolver(AbstractResolver):
    """Resolves a name, and refuses it if any of its addresses is not allowed."""

    def __init__(self, guard: Guard, resolver: AbstractResolver | None = None) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises `InnerAddressError`, or `OSError` if none."""
        if self._resolver is None:
            # It needs the running loop.
            self._resolver = ThreadedResolver()
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            self._guard.require(each["host"])
        return found

    async def close(self) -> None:
        """Close the resolver underneath."""
        if self._resolver is not None:
            await self._resolver.close()
