"""The one way to a connection of callbacks: a name's addresses and the socket's are checked."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

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


class OwnThreadResolver(AbstractResolver):
    """Looks each name up in a thread of its own.

    The loop's own threads are few, and refunds need them: a name server that does not answer for a
    shop would hold them all.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises `OSError` if there is none."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def settle(found: Any, error: OSError | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)

        def look_up() -> None:
            found, failure = None, None
            try:
                found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
            except OSError as error:
                failure = error
            except UnicodeError:
                failure = socket.gaierror(socket.EAI_NONAME, "not a name")
            with suppress(RuntimeError):
                # The loop may have ended meanwhile.
                loop.call_soon_threadsafe(settle, found, failure)

        threading.Thread(target=look_up, name="callbacks-name", daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, address in await answer
        ]

    async def close(self) -> None:
        """Do nothing: a thread ends with its look-up."""


class GuardedResolver(AbstractResolver):
    """Resolves a name, and refuses it if any of its addresses is not allowed."""

    def __init__(self, guard: Guard, resolver: AbstractResolver | None = None) -> None:
        self._guard = guard
        self._resolver = resolver or OwnThreadResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises `InnerAddressError`, or `OSError` if none."""
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            self._guard.require(each["host"])
        return found

    async def close(self) -> None:
        """Do nothing: aiohttp closes no resolver that it was given."""
