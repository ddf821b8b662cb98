"""Who uses the page: a session is opened with a token and ends with it, or a proxy signs in.

The server keeps no state of its own: a session is in Redis, and the token of a form is computed
from the session's secret. So a form that was shown before a restart can be sent after it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from worker.http import problems
from worker.http.auth import Tokens, host_name
from worker.http.page.proxies import TrustedProxy
from worker.http.problems import Problem
from worker.model.callers import Caller, Scope, token_id
from worker.settings import is_loopback
from worker.store import sessions, tokens
from worker.store.async_store import AsyncStore

IDLE: Final = timedelta(minutes=30)
"""A session that is not used for so long ends."""
LONGEST: Final = timedelta(hours=8)
SECURE_COOKIE: Final = "__Host-refunds"
LOCAL_COOKIE: Final = "refunds-local"
"""The cookie over plain HTTP on a loopback address, which a browser refuses the other one."""
LIVE: Final = "X-Live"
"""The header of a request that a script made, which does not count as use by a person."""
_LONGEST_COOKIE: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Session:
    """A person's session. It has no `repr`, because it holds a secret."""

    caller: Caller
    secret: str
    is_proxied: bool = False
    """Whether a proxy signs the person in, and out."""

    @property
    def may_act(self) -> bool:
        """Return whether the person may change anything."""
        return Scope.OPERATE in self.caller.scopes

    @property
    def may_import(self) -> bool:
        """Return whether the person may import files."""
        return Scope.SUBMIT in self.caller.scopes

    def form_token(self, path: str) -> str:
        """Return what a form that is sent to a path must hold."""
        return hmac.new(self.secret.encode(), path.encode(), hashlib.sha256).hexdigest()


class Sessions:
    """Opens, finds and ends sessions. For one event loop."""

    def __init__(self, store: AsyncStore, auth: Tokens, proxy: TrustedProxy) -> None:
        self._store, self._auth, self._proxy = store, auth, proxy

    async def open(self, request: web.Request, token: str, response: web.Response) -> None:
        """Open a session with a token, and set its cookie. Raises `Problem`, `StoreUnavailable`."""
        caller = await self._auth.caller_of(token, request.remote or "")
        require_suitable(caller)
        secret = secrets.token_urlsafe(32)
        await sessions.open_session(
            self._store, _sha256(secret), token_id(token) or "", now=datetime.now(UTC), idle=IDLE
        )
        name, is_secure = _cookie(request)
        response.set_cookie(
            name, secret, path="/", secure=is_secure, httponly=True, samesite="Strict"
        )

    async def find(self, request: web.Request) -> Session | None:
        """Return the session of a request, None without a valid one.

        Whom a proxy names needs no cookie. Raises `Problem`, `StoreUnavailable`.
        """
        person = self._proxy.person(request)
        if person is not None:
            secret = await sessions.secret_of_person(
                self._store, _sha256(person.name), secrets.token_urlsafe(32), longest=LONGEST
            )
            return Session(caller=person, secret=secret, is_proxied=True)
        secret = request.cookies.get(_cookie(request)[0], "")
        if not 0 < len(secret) <= _LONGEST_COOKIE:
            return None
        stored = await sessions.read_session(self._store, _sha256(secret))
        now = datetime.now(UTC)
        if stored is None or now - stored.opened_at >= LONGEST:
            return None
        token = await tokens.read(self._store, stored.token_id)
        if token is None or not token.is_valid(now):
            return None
        if LIVE not in request.headers:
            await sessions.prolong_session(self._store, _sha256(secret), idle=IDLE)
        return Session(caller=token.caller, secret=secret)

    async def end(self, request: web.Request, session: Session, response: web.Response) -> None:
        """End a session. Raises `StoreUnavailable`."""
        if session.is_proxied:
            await sessions.forget_person(self._store, _sha256(session.caller.name))
            return
        await sessions.end_session(self._store, _sha256(session.secret))
        name, is_secure = _cookie(request)
        response.del_cookie(name, path="/", secure=is_secure, httponly=True, samesite="Strict")


def require_suitable(caller: Caller) -> None:
    """Raise `Problem` if a token may not see the page."""
    if Scope.READ not in caller.scopes:
        raise Problem(problems.FORBIDDEN, "The page needs a token with the scope read.")
    if caller.ids_prefix:
        raise Problem(
            problems.FORBIDDEN, "The page shows all refunds, and this token is for some ids only."
        )


def require_own(request: web.Request) -> None:
    """Raise `Problem` unless a form was sent by a page of this server."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    is_own = site == "same-origin" if site is not None else _host_of(origin) == request.host
    if not is_own:
        raise Problem(
            problems.FORBIDDEN, "This form was sent by a page of another site: nothing was changed."
        )


def require_form_token(request: web.Request, session: Session, given: str) -> None:
    """Raise `Problem` unless a form holds the token of its session and path."""
    if not hmac.compare_digest(session.form_token(request.path).encode(), given.encode()):
        raise Problem(
            problems.FORBIDDEN,
            "This form belongs to another session: nothing was changed. Open its page again.",
        )


def _host_of(origin: str | None) -> str | None:
    try:
        return urlsplit(origin or "").netloc or None
    except ValueError:
        return None


def _cookie(request: web.Request) -> tuple[str, bool]:
    """Return the name of the cookie, and whether it is sent over TLS only."""
    if not request.secure and is_loopback(host_name(request.host)):
        return LOCAL_COOKIE, False
    return SECURE_COOKIE, True


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
