"""Chromium, as the tests of the operator's page and its screenshots drive it."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright

MISSING: Final = "Chromium is not installed here: 'apt-get install chromium' brings it"
Scheme = Literal["light", "dark"]
SCHEMES: Final[dict[Scheme, int]] = {"light": 1200, "dark": 360}
"""The width in pixels at which each color scheme is looked at."""
HEIGHT: Final = 800
_ARGUMENTS: Final = (
    # Root, as in a container, can have no sandbox. Only pages of our own server are opened.
    "--no-sandbox",
    # Chromium's own services ask for names of its maker, whatever page is open.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_TELL_BLOCKED: Final = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`the policy blocked ${event.blockedURI} by ${event.violatedDirective}`);
});
"""

_NOT_DONE: Final = re.compile(
    "Failed to load resource: the server responded with a status of (404|409|422)"
)


class BrowserMissingError(RuntimeError):
    """No Chromium is installed; the text says how to get it."""


def program() -> Path:
    """Return Chromium. Raises `BrowserMissingError`."""
    found = shutil.which("chromium")
    if found is None:
        raise BrowserMissingError(MISSING)
    return Path(found)


@asynccontextmanager
async def running_chromium() -> AsyncIterator[Browser]:
    """A browser without a window. Raises `BrowserMissingError`.

    It is the installed one: Playwright downloads nothing.
    """
    path = program()
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Tab:
    """A tab that is signed in, and everything that was wrong on the pages it showed."""

    page: Page
    origin: str
    wrong: list[str] = field(default_factory=list)

    async def open(self, view: str) -> None:
        """Show a view; only the answer 404 of the view itself is not held against it."""
        await self.page.goto(self.origin + view)

    async def show_in(self, scheme: Scheme, width: int) -> None:
        """Show everything from now on in a color scheme, in a window of so many pixels."""
        await self.page.emulate_media(color_scheme=scheme)
        await self.page.set_viewport_size({"width": width, "height": HEIGHT})

    async def look(self, scheme: Scheme, width: int) -> list[str]:
        """Return what is wrong with the view in one color scheme at one width in pixels."""
        found = [*await self.too_wide(scheme, width), *await self.inaccessible()]
        return [f"{self._view} in {scheme} at {width}: {each}" for each in found]

    async def too_wide(self, scheme: Scheme, width: int) -> list[str]:
        """Return by how much the view is wider than a window of so many pixels, if it is."""
        await self.show_in(scheme, width)
        wider = await self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return [f"is wider than the window by {wider}"] if wider > 0 else []

    async def inaccessible(self) -> list[str]:
        """Return each rule of axe that the view breaks, with the first element that does."""
        broken = (await Axe().run(self.page)).response["violations"]
        return [f"{each['id']}: {each['nodes'][0]['html']}" for each in broken]

    @property
    def _view(self) -> str:
        return self.page.url.removeprefix(self.origin)

    def hear(self) -> None:
        """Keep what the console says, what fails, and who else is asked for anything."""
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("dialog", lambda dialog: self._note(f"a dialog: {dialog.message}"))
        self.page.on("request", self._look_at)

    def _hear(self, message: ConsoleMessage) -> None:
        # The console names the answer of a view that does not exist, or of a form that is refused.
        is_view = message.location["url"] == self.page.url
        if not (is_view and _NOT_DONE.match(message.text)):
            self._note(message.text)

    def _look_at(self, request: Request) -> None:
        if not request.url.startswith((f"{self.origin}/", "data:")):
            self._note(f"asks for {request.url}")

    def _note(self, text: str) -> None:
        self.wrong.append(f"{self._view}: {text}")


@asynccontextmanager
async def opened(browser: Browser, origin: str, **how: Any) -> AsyncIterator[Tab]:
    """A tab of a session of its own, which shows nothing yet."""
    context = await browser.new_context(**how)
    try:
        await context.add_init_script(_TELL_BLOCKED)
        tab = Tab(await context.new_page(), origin)
        tab.hear()
        yield tab
    finally:
        await context.close()


@asynccontextmanager
async def signed_in(browser: Browser, origin: str, token: str, **how: Any) -> AsyncIterator[Tab]:
    """A tab of a session of its own, in which a person has signed in by keyboard alone."""
    async with opened(browser, origin, **how) as tab:
        await tab.open("/")
        await tab.page.keyboard.press("Tab")
        await tab.page.keyboard.press("Tab")
        await tab.page.keyboard.type(token)
        await tab.page.keyboard.press("Enter")
        await tab.page.wait_for_url("**/page")
        yield tab
