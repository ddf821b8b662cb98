"""Sends one callback: a POST to an allowed address, without redirects, proxies or cookies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

import aiohttp
from aiohttp.abc import AbstractResolver

from worker.callbacks.endpoints import Endpoint
from worker.callbacks.guard import Guard, GuardedResolver, InnerAddressError
from worker.callbacks.retries import retry_after
from worker.callbacks.signing import headers

MOST_READ: Final = 1024
"""Bytes of a reply that are kept for a person."""
_GONE: Final = 410
_OK: Final = range(200, 300)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What became of a POST: a status, or the kind of error. `reply` is the reply's beginning."""

    result: Literal["delivered", "failed", "refused"]
    status: int | None = None
    error: str = ""
    reply: str = ""
    retry_after: timedelta | None = None
    seconds: float = 0.0


class Poster:
    """The connections to one endpoint. Use it in one event loop, and close it at the end."""

    def __init__(self, endpoint: Endpoint, *, resolver: AbstractResolver | None = None) -> None:
        self.endpoint = endpoint
        self._guard = Guard(private=endpoint.allow_private)
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    resolver=GuardedResolver(self._guard, self._resolver),
                    use_dns_cache=False,
                    socket_factory=self._guard.socket,
                ),
                timeout=aiohttp.ClientTimeout(total=self.endpoint.timeout_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    async def post(self, identity: str, seconds: int, body: bytes) -> Reply:
        """Send a callback; return what became of it. `seconds` is the time of this try."""
        began = time.monotonic()
        fields = {
            "content-type": "application/json",
            "user-agent": "refund-worker",
            "accept-encoding": "identity",
            **headers(self.endpoint.keys, identity, seconds, body),
        }
        try:
            reply = await self._post(fields, body)
        except TimeoutError:
            limit = self.endpoint.timeout_seconds
            reply = Reply(result="failed", error=f"no answer within {limit:g} s")
        except Exception as error:  # noqa: BLE001 - else it would be sent for ever, since no try counts
            reply = Reply(result="failed", error=_kind(error))
        return Reply(
            result=reply.result,
            status=reply.status,
            error=reply.error,
            reply=reply.reply,
            retry_after=reply.retry_after,
            seconds=time.monotonic() - began,
        )

    async def _post(self, fields: Mapping[str, str], body: bytes) -> Reply:
        session = self._opened()
        async with session.post(
            self.endpoint.url, data=body, headers=fields, allow_redirects=False
        ) as response:
            status = response.status
            text = await _beginning(response)
            if status in _OK:
                return Reply(result="delivered", status=status, reply=text)
            return Reply(
                result="refused" if status == _GONE else "failed",
                status=status,
                reply=text,
                retry_after=retry_after(response.headers.get("Retry-After")),
            )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """Return the beginning of a reply's body, as far as it arrives: the status is what counts."""
    parts = b""
    try:
        # To read no more bytes gives none at once.
        while part := await response.content.read(MOST_READ - len(parts)):
            parts += part
    except Exception:  # noqa: BLE001, S110 - whatever it is, the receiver has the callback
        pass
    return parts.decode("utf-8", "replace")


_WORDS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientConnectorDNSError, "the host name cannot be resolved"),
    (aiohttp.ClientConnectorCertificateError, "the certificate is not valid"),
    (aiohttp.ClientConnectorSSLError, "the TLS handshake failed"),
    (aiohttp.ClientConnectorError, "no connection can be made"),
    (aiohttp.ServerDisconnectedError, "the connection ended before an answer"),
    (ConnectionResetError, "the connection ended before an answer"),
    (aiohttp.ClientResponseError, "the answer is not HTTP"),
)
"""The first row whose error matches counts."""


def _kind(error: Exception) -> str:
    """Return what kind of error it is: its text may repeat the address."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, InnerAddressError):
            return str(inner)
        inner = inner.__cause__
    known = (words for kind, words in _WORDS if isinstance(error, kind))
    return next(known, type(error).__name__)
