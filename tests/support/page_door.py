"""The operator's page on the real server, within the test's own event loop."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import TYPE_CHECKING, Any

import aiohttp
import aiohttp.web

from tests.support.http_door import HttpDoor, served
from worker.http.running import page_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from worker.client import Refunds
    from worker.http.app import Part
    from worker.http.uploads import Uploads
    from worker.settings import Settings
    from worker.store.async_store import AsyncStore
    from worker.store.sweeps import Due

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
class PageDoor(HttpDoor):
    """A browser without scripts, as far as the tests need one."""

    nudged: list[str]
    uploads: Uploads
    cookies: dict[str, str] = field(default_factory=dict)
    views: tuple[str, ...] = ()
    """The addresses that answer a person with a page."""

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
    nudged: list[str] = []

    def nudge(dues: Iterable[Due]) -> None:
        nudged.extend(due.refund_id for due in dues)

    def part_of(settings: Settings, store: AsyncStore, refunds: Refunds, uploads: Uploads) -> Part:
        return page_part(settings, store, refunds, nudge, uploads)

    async with (
        served(url, part_of, port=port, **changes) as here,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        views = _views(here.application)
        yield PageDoor(here.port, here.refunds, session, nudged, here.uploads, views=views)


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
