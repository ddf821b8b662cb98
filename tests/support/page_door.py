"""The operator's page on the real server, within the test's own event loop."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import TYPE_CHECKING, Any

import aiohttp
import aiohttp.web
import redis.asyncio

from tests.support.cli_runner import Records
from worker.client import Refunds
from worker.http import app
from worker.http.app import Readiness
from worker.http.running import page_part, uploads_part
from worker.model.callers import Scope
from worker.settings import Settings
from worker.store import tokens
from worker.store.async_store import AsyncStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from worker.http.uploads import Uploads
    from worker.store.scripts import Due

_FORM_TOKEN = re.compile(
    r'action="([^"]+)"[^>]*>\s*<input type="hidden" name="form_token" value="(\w+)"'
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An answer of the page."""

    status: int
    headers: Mapping[str, str]
    html: str

    @property
    def text(self) -> str:
        """What a person reads, with single spaces."""
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", self.html)).split())

    @property
    def location(self) -> str:
        return self.headers["Location"]

    @property
    def form_tokens(self) -> dict[str, str]:
        """The token of each form, by the address that it is sent to."""
        return {unescape(action): token for action, token in _FORM_TOKEN.findall(self.html)}


@dataclass
class PageDoor:
    """A browser without scripts, as far as the tests need one."""

    port: int
    refunds: Refunds
    client: aiohttp.ClientSession
    nudged: list[str]
    uploads: Uploads
    cookies: dict[str, str] = field(default_factory=dict)
    views: tuple[str, ...] = ()
    """The addresses that answer a person with a page."""

    @property
    def records(self) -> Records:
        return Records(store=self.refunds.store)

    def a_token(self, name: str, *scopes: str, ids: str = "") -> str:
        return tokens.create(
            self.refunds.store,
            name,
            scopes=frozenset(map(Scope, scopes)),
            ids_prefix=ids,
            expires_at=None,
            by="the test",
        )

    async def ask(self, method: str, path: str, data: Any = None, /, **headers: str) -> Shown:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.client.request(
            method, url, data=data, headers=sent, allow_redirects=False
        ) as response:
            for name, morsel in response.cookies.items():
                self.cookies[name] = morsel.value
            return Shown(
                status=response.status, headers=response.headers, html=await response.text()
            )

    async def get(self, path: str, **headers: str) -> Shown:
        return await self.ask("GET", path, **headers)

    async def post(self, path: str, data: Any, **headers: str) -> Shown:
        """Send a form as a browser does from a page of this server."""
        return await self.ask("POST", path, data, **{"Sec_Fetch_Site": "same-origin", **headers})

    async def sign_in(self, *scopes: str, name: str = "ann") -> str:
        """Sign in with a new token of these scopes, and return it."""
        token = self.a_token(name, *(scopes or ("read",)))
        assert (await self.post("/page/sign-in", {"token": token})).status == 303
        return token


@asynccontextmanager
async def a_page(url: str, *, port: int = 0, **changes: Any) -> AsyncIterator[PageDoor]:
    settings = Settings.load(redis_url=url, **changes)
    client = redis.asyncio.Redis.from_url(url, decode_responses=True, socket_timeout=10)
    store = AsyncStore(client, durable=False)
    nudged: list[str] = []
    with Refunds(settings=settings) as refunds:
        uploads = uploads_part(settings, refunds)

        def nudge(dues: Iterable[Due]) -> None:
            nudged.extend(due.refund_id for due in dues)

        part = page_part(settings, store, refunds, nudge, uploads)
        built = app.build([part, uploads], Readiness(lambda: store.meta("paused")))
        try:
            async with (
                app.listening(built, host="127.0.0.1", port=port) as bound,
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
            ):
                yield PageDoor(bound, refunds, session, nudged, uploads, views=_views(built))
        finally:
            await part.close()
            await uploads.close()
            await store.close()


def _views(application: aiohttp.web.Application) -> tuple[str, ...]:
    addresses = {
        route.resource.canonical
        for route in application.router.routes()
        if route.method == "GET" and route.resource is not None
    }
    return tuple(
        sorted(
            address
            for address in addresses
            if address.startswith("/page") and not address.startswith("/page/static/")
        )
    )
