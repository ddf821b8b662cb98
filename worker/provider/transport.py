"""Makes one HTTP call and reports what is known after it.

A complete reply, provably nothing sent, or neither.

Uses `httpx` over `aiohttp`, whose errors the table below classifies. The class of an httpx error is
not reliable: other transports raise `httpx.ConnectTimeout` for a reset after the request was sent.
So an httpx error is classified by its cause.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import ssl
import struct
import urllib.request
import zlib
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import MappingProxyType
from typing import Any, Final, cast
from urllib.parse import urlsplit

import aiohttp
import httpx

from worker.errors import SettingsError
from worker.model.answers import Answer, NoReply, NotSent, Reply
from worker.model.redaction import holds_key, remember_address
from worker.provider.connections import Connections
from worker.provider.lease_clock import since_boot
from worker.rules import payloads
from worker.settings import Settings, is_loopback

MAX_BODY: Final = 1 << 20
MAX_RETRY_AFTER: Final = timedelta(hours=1)
KEEPALIVE_SECONDS: Final = 4.0
"""Connections that were idle for longer are not reused.

Servers commonly close theirs after five seconds.
"""
SPARE_CONNECTIONS: Final = 8
"""Connections beyond the calls in flight, for probes and for sockets that are still closing."""
CONNECT_SECONDS: Final = 10.0


class TunnelError(aiohttp.ClientConnectionError):
    """The proxy broke off while it was asked for a tunnel to the provider."""


CAUSES: Final[Mapping[type[BaseException], NotSent | NoReply]] = MappingProxyType(
    {
        # Raised only while a connection is being made, so the request cannot have been sent.
        aiohttp.ConnectionTimeoutError: NotSent(
            reason="no connection to the provider within the time limit"
        ),
        aiohttp.ClientConnectorDNSError: NotSent(
            reason="the provider's host name could not be resolved"
        ),
        aiohttp.ClientConnectorCertificateError: NotSent(
            reason="the provider's certificate is not trusted"
        ),
        aiohttp.ClientConnectorSSLError: NotSent(
            reason="the TLS handshake with the provider failed"
        ),
        aiohttp.ClientProxyConnectionError: NotSent(reason="the proxy could not be reached"),
        aiohttp.ClientHttpProxyError: NotSent(
            reason="the proxy refused the tunnel to the provider"
        ),
        TunnelError: NotSent(reason="the proxy broke off the tunnel to the provider"),
        aiohttp.ClientConnectorError: NotSent(reason="the provider could not be reached"),
        # Raised later, so the request may have been sent. Listed for their texts; unlisted errors
        # are treated the same.
        aiohttp.ServerDisconnectedError: NoReply(
            reason="the connection was closed before the reply"
        ),
        aiohttp.SocketTimeoutError: NoReply(reason="the reply did not come in time"),
        aiohttp.ClientPayloadError: NoReply(reason="the reply's body was incomplete"),
        aiohttp.ClientResponseError: NoReply(reason="the reply was not valid HTTP"),
        aiohttp.ClientConnectionError: NoReply(reason="the connection broke"),
    }
)
"""What is known after a foreign error, by the nearest listed class of its cause.

Unlisted ones may have happened.
"""

_FOREIGN: Final = (
    httpx.HTTPError,
    httpx.StreamError,
    httpx.InvalidURL,
    aiohttp.ClientError,
    OSError,
    ValueError,
)
_ZLIB_ENCODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_write_until: ContextVar[float | None] = ContextVar("write_until", default=None)
_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]*)?")


def answer_to(error: BaseException) -> NotSent | NoReply:
    """Return what is known after a foreign error, judged by the cause behind httpx's error."""
    cause = (
        error.__cause__
        if isinstance(error, httpx.HTTPError) and error.__cause__ is not None
        else error
    )
    for kind in type(cause).__mro__:
        if kind in CAUSES:
            return CAUSES[kind]
    return NoReply(reason=f"unexpected {type(cause).__name__}")


async def exchange(
    client: httpx.AsyncClient,
    request: httpx.Request,
    limit: float,
    *,
    hide: Collection[str] = (),
    numbers: bool = False,
) -> Answer:
    """Send one request and read its complete reply within `limit` seconds.

    The limit covers everything from connect to the last byte. `hide` holds the values of the
    caller's metadata, which no text of the reply may repeat; `numbers` is for probes. Without a
    complete reply, the connection and its buffers are dropped before this returns or is cancelled,
    so that nothing more can be sent.
    """
    request.extensions["timeout"] = _connection_limits(limit)
    _write_until.set(since_boot() + limit)
    try:
        async with asyncio.timeout(limit):
            response = await hand_on(client, request)
            headers = _headers_of(response)
            try:
                body = await _read(response, headers)
            finally:
                await response.aclose()
    except aiohttp.ClientError as error:
        # Before `TimeoutError`, which some of them are too.
        answer: Answer = answer_to(error)
    except TimeoutError:
        answer = NoReply(reason=f"no complete reply within {limit:g} s")
    except _FOREIGN as error:
        answer = answer_to(error)
    else:
        answer = (
            body
            if isinstance(body, NoReply)
            else _reply(response.status_code, headers, body, hide=hide, numbers=numbers)
        )
    if isinstance(answer, NoReply):
        # An aborted socket is closed in the next iteration of the event loop.
        await asyncio.sleep(0)
    return answer


async def hand_on(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send a request, built by the client, over its transport.

    The caller reads and closes the response.

    `client.send` would add half the cost of the call, for authentication, redirects, cookies and
    hooks that this client does not use. Raises as the transport does.
    """
    return await client._transport_for_url(request.url).handle_async_request(request)  # noqa: SLF001 - see above


def _connection_limits(limit: float) -> dict[str, float | None]:
    """Return httpx's time limits for a call.

    The limit to connect, pool and TLS included, ends well before that of the call. So if the call's
    own limit is reached there was a connection, and a failure to connect can be recognised.
    """
    connected = min(CONNECT_SECONDS, limit / 2)
    return {"connect": connected, "pool": connected, "read": None, "write": None}


def _headers_of(response: httpx.Response) -> dict[str, str]:
    """Return a reply's headers by their names in small letters.

    httpx would first look for the encoding of all of them, and no other than ASCII means anything.
    """
    headers: dict[str, str] = {}
    for name, value in response.headers.raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


async def _read(response: httpx.Response, headers: Mapping[str, str]) -> bytes | NoReply:
    """Return the decoded body; never holds more in memory than the cap and one chunk."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in {"identity", "", *_ZLIB_ENCODINGS}:
        return NoReply(reason="the reply has an encoding that was not requested")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in _ZLIB_ENCODINGS else None
    body, received = bytearray(), 0
    # Its own stream: `aiter_raw` puts two more generators before it.
    async for chunk in cast("httpx.AsyncByteStream", response.stream):
        received += len(chunk)
        try:
            body += (
                chunk
                if unpacking is None
                else unpacking.decompress(chunk, MAX_BODY + 1 - len(body))
            )
        except zlib.error:
            return NoReply(reason="the reply's compression is broken")
        if max(received, len(body)) > MAX_BODY:
            return NoReply(reason="the reply is over 1 MB")
    if unpacking is not None and received and (not unpacking.eof or unpacking.unused_data):
        return NoReply(reason="the reply's compression is broken")
    return bytes(body)


def _reply(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    hide: Collection[str],
    numbers: bool,
) -> Reply:
    retry_after = headers.get("retry-after")
    request_id = headers.get("request-id") or headers.get("x-request-id")
    return Reply(
        http_status=status,
        payload=payloads.read(parse_json(body), hide, numbers=numbers),
        retry_after=(
            None if retry_after is None else read_retry_after(retry_after, headers.get("date"))
        ),
        request_id=request_id if _is_plain(request_id) else None,
    )


def _is_plain(request_id: str | None) -> bool:
    return (
        request_id is not None
        and payloads.CODE.fullmatch(request_id) is not None
        and not holds_key(request_id)
    )


def parse_json(body: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object in a body, None if there is none; never raises, whatever the body."""
    try:
        value = _JSON.decode(body.decode(json.detect_encoding(body), "surrogatepass"))
        if b"\\ud" in body.lower():
            # Half a surrogate pair passes as text until it is stored.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; one that names a field twice can be read in two ways, and is refused."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError
    return value


# `json.loads` would make a decoder for each reply.
_JSON: Final = json.JSONDecoder(object_pairs_hook=_named_once)


def read_retry_after(value: str, date: str | None) -> timedelta | None:
    """Return the delay of a `Retry-After`, given in seconds or as an HTTP date.

    0 to one hour, None if it is neither.

    A date counts from the reply's own `Date`, so that two clocks need not agree; without `Date`,
    from now.
    """
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return timedelta(seconds=min(float(text), MAX_RETRY_AFTER.total_seconds()))
    until = _http_date(text)
    if until is None:
        return None
    start = _http_date(date) if date is not None else None
    wait = until - (start or datetime.now(UTC))
    return min(max(wait, timedelta(0)), MAX_RETRY_AFTER)


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _cut(transport: asyncio.Transport | None) -> None:
    """Abort a connection and drop its unsent data, in this process and in the kernel."""
    if transport is None:
        return
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class _Connector(aiohttp.TCPConnector):
    """Makes connections; whatever goes wrong meanwhile, the request has not been sent.

    A proxy that closes, or does not speak HTTP, when it is asked for a tunnel raises the same
    errors as a provider does that has the request.
    """

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:  # noqa: ASYNC109 - aiohttp's own
        try:
            return await super()._create_connection(req, traces, timeout)
        except aiohttp.ClientError as error:
            if isinstance(answer_to(error), NotSent):
                raise
            raise TunnelError from error


class _DeadlineRequest(aiohttp.ClientRequest):
    """A request that is not written after its call's time limit.

    A process that was frozen, or a machine that was suspended, between the decision to send and the
    first byte may resume with the write before the time limit's own callback. By then another
    worker may hold the refund.
    """

    async def write_bytes(self, writer: Any, conn: Any, content_length: int | None = None) -> None:
        """Write the request, head and body together, or abort the connection."""
        until = _write_until.get()
        if until is not None and since_boot() >= until:
            _cut(conn.transport)
            return
        await super().write_bytes(writer, conn, content_length)


class _AbortUnlessComplete(aiohttp.ClientResponse):
    """A response whose connection is aborted unless its reply was read to the end.

    A plain close would still send buffered data, but the worker counts quiet time from the end of a
    call.
    """

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Read the reply's head.

        Bytes that arrived before the request belong to another request's reply.
        """
        if connection.protocol.should_close:
            _cut(connection.transport)
            raise aiohttp.ClientConnectionError("unexpected bytes on the connection")
        return await super().start(connection)

    def release(self) -> Any:
        """Return the connection to the pool if the reply is complete, else abort it."""
        self._cut_unless_whole()
        return super().release()

    def close(self) -> None:
        """Close the response; the connection is aborted if the reply is not complete."""
        self._cut_unless_whole()
        super().close()

    def _cut_unless_whole(self) -> None:
        if not self.closed and self.connection is not None:
            _cut(self.connection.transport)


def build_client(settings: Settings) -> httpx.AsyncClient:
    """Return the HTTP client for the provider: one per event loop, not connected yet.

    Close it with `aclose`.

    Raises as `Settings.require_provider` does, and `SettingsError` for a proxy of another kind than
    HTTP, or with an address that cannot be read, and for certificates that cannot be read.
    """
    key = settings.require_provider()
    context = _trusted()

    def session() -> aiohttp.ClientSession:
        # Created on the loop, at the first request. No netrc and no proxy lookup per request: both
        # are decided here.
        connector = _Connector(
            limit=settings.concurrency + SPARE_CONNECTIONS,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=context,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=_DeadlineRequest,
            response_class=_AbortUnlessComplete,
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )

    return httpx.AsyncClient(
        base_url=settings.api_url,
        transport=Connections(session, proxy=proxy_for(settings.api_url)),
        # The key is a header, not httpx's `auth`, which would write the same one for each request.
        headers={
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Authorization": f"Basic {base64.b64encode(f'{key}:'.encode()).decode()}",
            "User-Agent": "refund-worker",
        },
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        trust_env=False,
    )


def _trusted() -> ssl.SSLContext:
    """Return the TLS context with the certificates to trust: certifi's, or the environment's."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        file = os.environ.get("SSL_CERT_FILE", "")
        why = (
            "holds no certificate in PEM"
            if isinstance(error, ssl.SSLError)
            else f"cannot be read ({error.strerror})"
        )
        raise SettingsError(
            f"SSL_CERT_FILE={file} {why}: name a file of PEM that this user may read, or unset it"
        ) from None


def proxy_for(url: str) -> httpx.Proxy | None:
    """Return the proxy that the environment names for a URL.

    The variables are `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`. This machine itself
    is never reached through a proxy.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all")
    if not address or is_loopback(host) or urllib.request.proxy_bypass(parts.netloc):
        return None
    address = address if "://" in address else f"http://{address}"
    remember_address(address)
    try:
        named = urlsplit(address)
        if named.scheme in {"http", "https"} and named.hostname and named.port != 0:
            return httpx.Proxy(address)
    except (ValueError, httpx.InvalidURL):
        pass
    # Not at the first call: whether that was sent would be unknown.
    raise SettingsError(
        f"the proxy that {parts.scheme.upper()}_PROXY or ALL_PROXY names must be an http:// or"
        " https:// address, such as http://proxy:3128"
    )
