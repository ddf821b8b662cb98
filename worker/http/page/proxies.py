"""Who a trusted proxy says that a person is: it has signed them in, and sends their name."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final

from aiohttp import web

from worker.http import problems
from worker.http.problems import Problem
from worker.model.callers import Caller, Scope, is_token_name
from worker.settings.lists import Network

READS: Final = frozenset({Scope.READ})
ACTS: Final = frozenset({Scope.READ, Scope.OPERATE, Scope.SUBMIT})


class TrustedProxy:
    """Reads the name of a person from a header, if a proxy of these networks sent the request.

    Without a header's name, or without networks, nothing is believed.
    """

    def __init__(
        self, header: str | None, networks: Collection[Network], operators: Collection[str]
    ) -> None:
        self._header, self._networks, self._operators = header, networks, operators

    def person(self, request: web.Request) -> Caller | None:
        """Return the person, None if no proxy names one. Raises `Problem` for a name not kept."""
        if self._header is None or not self._is_trusted(request.remote or ""):
            return None
        names = request.headers.getall(self._header, [])
        if not names:
            return None
        if len(names) > 1 or not is_token_name(names[0]):
            raise Problem(
                problems.FORBIDDEN,
                f"The proxy must send one name in {self._header}, of 1 to 100 of A-Z a-z 0-9 . _ :"
                " @ -.",
            )
        return Caller(name=names[0], scopes=ACTS if names[0] in self._operators else READS)

    def _is_trusted(self, remote: str) -> bool:
        try:
            address = ipaddress.ip_address(remote)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)
