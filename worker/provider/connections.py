"""httpx's transport over aiohttp's connections, which take half the time of httpx's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Any, Final

import aiohttp
import httpx
from yarl import URL

_CHUNK: Final = 1 << 14


class Connections(httpx.AsyncBaseTransport):
    """Sends requests whose content is bytes over a session that is made at the first one.

    Errors are aiohttp's own, since httpx's classes do not say whether a request may have been sent.
    Redirects, cookies and encodings are left to the caller.
    """

    def __init__(
        self, session: Callable[[], aiohttp.ClientSession], *, proxy: httpx.Proxy | None = None
    ) -> None:
        self._make = session
        self._session: aiohttp.ClientSession | None = None
        self._through: dict[str, Any] = {}
        if proxy is not None:
            self._through = {
                "proxy": str(proxy.url),
                "proxy_auth": aiohttp.BasicAuth(*proxy.auth) if proxy.auth else None,
                "proxy_headers": proxy.headers,
            }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the reply once its head was read."""
        if self._session is None:
            self._session = self._make()
        limits = request.extensions["timeout"]
        reply = await self._session.request(
            request.method,
            # As httpx encoded it: yarl would write some characters in another way.
            URL(str(request.url), encoded=True),
            headers=[(name.decode(), value.decode()) for name, value in request.headers.raw],
            data=request.content or None,
            allow_redirects=False,
            auto_decompress=False,
            timeout=_time_limits(limits["pool"], limits["connect"], limits["read"]),
            **self._through,
        )
        return httpx.Response(reply.status, headers=reply.raw_headers, stream=_Body(reply))

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


class _Body(httpx.AsyncByteStream):
    """A reply's body, in pieces as they come."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._reply.content.iter_chunked(_CHUNK):
            yield piece

    async def aclose(self) -> None:
        self._reply.release()
        await self._reply.wait_for_close()


@lru_cache
def _time_limits(
    pool: float | None, connect: float | None, read: float | None
) -> aiohttp.ClientTimeout:
    """Return httpx's time limits as aiohttp's."""
    return aiohttp.ClientTimeout(connect=pool, sock_connect=connect, sock_read=read)
