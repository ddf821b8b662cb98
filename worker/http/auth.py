"""Checks the tokens of the API: who calls, and how often."""

from __future__ import annotations

import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from worker.errors import RefundError
from worker.http import problems
from worker.http.problems import Problem
from worker.model.callers import Caller, Scope, digest, token_id
from worker.settings import is_loopback

log = structlog.get_logger(__name__)

CACHE_SECONDS: Final = 5.0
"""How long a token that was valid is not read again: so long it may outlive its revocation."""
WRONG_IN_A_MINUTE: Final = 10
"""The wrong tokens of an address that are answered with 401; further ones are answered with 429."""
_MINUTE: Final = 60.0
_MOST_CACHED: Final = 1000
_MOST_ADDRESSES: Final = 10_000
_SCHEME: Final = "bearer"
_DUMMY: Final = digest("")

CALLER: Final = web.RequestKey("caller", Caller)
ANYONE: Final = Caller(name="http", scopes=frozenset(Scope))
"""The caller of every request if REFUNDS_HTTP_AUTH is off."""


class Token(Protocol):
    """A token as it is stored."""

    @property
    def caller(self) -> Caller:
        """Return who calls with it."""
        ...

    def is_valid(self, now: datetime) -> bool:
        """Return whether it is neither expired nor revoked."""
        ...


class Auth(Protocol):
    """Finds out who calls."""

    async def caller(self, request: web.Request) -> Caller:
        """Return who calls. Raises `Problem`, `StoreUnavailable`."""
        ...


class NoTokens:
    """No tokens: every program of this machine is allowed everything, and no page of a browser."""

    async def caller(self, request: web.Request) -> Caller:
        """Return the one caller. Raises `Problem`."""
        # A page of any site can send a request here, and a name of its own can lead here. It
        # cannot leave out these headers.
        is_foreign = "Origin" in request.headers or "Sec-Fetch-Site" in request.headers
        if is_foreign or not is_loopback(host_name(request.host)):
            raise Problem(
                problems.FORBIDDEN,
                "Without tokens (REFUNDS_HTTP_AUTH) only programs of this machine are answered,"
                " under the name localhost or a loopback address.",
            )
        return ANYONE


def host_name(host: str) -> str:
    """Return the name or address in a header Host, '' if it has none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Tokens:
    """Bearer tokens. For one event loop.

    `digest_of` returns the stored digest of a token by its id. `read` returns the token, and `used`
    notes that it was used.
    """

    def __init__(
        self,
        digest_of: Callable[[str], Awaitable[str | None]],
        read: Callable[[str], Awaitable[Token | None]],
        *,
        used: Callable[[Any, datetime], Awaitable[None]],
        wall: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digest_of, self._read, self._used = digest_of, read, used
        self._wall, self._clock = wall, clock
        # By the digest of the whole token, so that a wrong token never answers faster because its
        # id exists.
        self._valid: OrderedDict[str, tuple[float, Caller]] = OrderedDict()
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def caller(self, request: web.Request) -> Caller:
        """Return the token's caller. Raises `Problem`, `StoreUnavailable`."""
        values = request.headers.getall("Authorization", [])
        if not values:
            # Not a guess, so it is not counted.
            raise _unauthorized()
        return await self.caller_of(_bearer(values), request.remote or "")

    async def caller_of(self, token: str, address: str) -> Caller:
        """Return the caller of a token that an address sent.

        Raises `Problem`, `StoreUnavailable`.
        """
        found = digest(token)
        cached = self._valid.get(found)
        if cached is not None and self._clock() - cached[0] < CACHE_SECONDS:
            return cached[1]
        self._valid.pop(found, None)
        # The same work for every wrong token: one read of one field, one comparison. The rest of a
        # token is read after that, since it would take longer if the id exists.
        named = token_id(token)
        kept = await self._digest_of(named or "")
        is_equal = hmac.compare_digest(found, _DUMMY if kept is None else kept)
        if named is None or kept is None or not is_equal:
            raise self._refused(address)
        stored = await self._read(named)
        if stored is None or not stored.is_valid(self._wall()):
            raise self._refused(address)
        try:
            await self._used(stored, self._wall())
        except RefundError as error:
            # A full server refuses to note it, and the stop button must work there.
            log.warning("token_use_not_noted", token=named, error=str(error))
        self._valid[found] = (self._clock(), stored.caller)
        if len(self._valid) > _MOST_CACHED:
            self._valid.popitem(last=False)
        return stored.caller

    def _refused(self, address: str) -> Problem:
        """Count a wrong token, and return its answer.

        A right token of the same address is still accepted: behind a proxy all clients share one.
        """
        now = self._clock()
        begun, count = self._wrong.pop(address, (now, 0))
        if now - begun >= _MINUTE:
            begun, count = now, 0
        self._wrong[address] = (begun, count + 1)
        if len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        if count == WRONG_IN_A_MINUTE:
            log.warning("wrong_tokens", address=address, count=count)
        if count >= WRONG_IN_A_MINUTE:
            wait = math.ceil(_MINUTE - (now - begun))
            return Problem(
                problems.TOO_MANY, "This address sent too many wrong tokens.", retry_after=wait
            )
        return _unauthorized()


def _unauthorized() -> Problem:
    return Problem(problems.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})


def _bearer(values: list[str]) -> str:
    """Return the token in the header Authorization, '' if it holds none or is given twice."""
    scheme, _, token = (values[0] if len(values) == 1 else "").partition(" ")
    return token.strip() if scheme.lower() == _SCHEME else ""


class Rates:
    """Limits how often each caller may call this process. For one event loop."""

    def __init__(self, a_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = a_second, clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> None:
        """Count a request of a caller. Raises `Problem` if it calls too often."""
        if not self._rate:
            return
        burst = max(1.0, self._rate)
        now = self._clock()
        at, left = self._left.get(name, (now, burst))
        left = min(burst, left + (now - at) * self._rate)
        if left < 1:
            raise Problem(
                problems.TOO_MANY,
                f"This token may send {self._rate:g} requests a second (REFUNDS_HTTP_RATE).",
                retry_after=math.ceil((1 - left) / self._rate),
            )
        self._left[name] = (now, left - 1)
