"""The pictures of `ops/docs/page.md`: every view, light and wide, dark and narrow."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from playwright.async_api import Page

from ops.lab.page.browser import HEIGHT, SCHEMES, Scheme, Tab, running_chromium, signed_in
from ops.lab.page.season import Season

ROOT: Final = Path(__file__).resolve().parents[3]
FOLDER: Final = ROOT / "ops" / "docs" / "page"
VIEWS: Final = {
    "overview": "/page",
    "refunds": "/page/refunds",
    "refund": "/page/refunds/order-3001-1",
    "review": "/page/review",
    "batches": "/page/batches",
    "batch": "/page/batches/season",
    "reversed": "/page/reversed",
    "callbacks": "/page/callbacks",
    "sign_in": "/page/sign-in",
}
"""The address of each view by its template, with the refund or batch of the season to show."""
QUALITY: Final = 55


async def take(season: Season, folder: Path) -> AsyncIterator[Path]:
    """Write a picture of every view in both color schemes; yield the path of each.

    Raises `BrowserMissingError`.
    """
    origin = season.page.removesuffix("/page")
    async with (
        running_chromium() as browser,
        signed_in(browser, origin, season.actor_token) as tab,
    ):
        for name, address in VIEWS.items():
            for scheme, width in SCHEMES.items():
                path = folder / f"{name}-{scheme}.webp"
                path.write_bytes(await _picture(tab, address, scheme, width))
                yield path


async def _picture(tab: Tab, address: str, scheme: Scheme, width: int) -> bytes:
    await tab.show_in(scheme, width)
    await tab.open(address)
    return await webp(tab.page)


async def webp(page: Page) -> bytes:
    """Return a picture of the whole page; Playwright itself writes PNG and JPEG only."""
    session = await page.context.new_cdp_session(page)
    size = (await session.send("Page.getLayoutMetrics"))["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": max(size["height"], HEIGHT / 4)}
    shot = await session.send(
        "Page.captureScreenshot",
        {
            "format": "webp",
            "quality": QUALITY,
            "captureBeyondViewport": True,
            "clip": {**clip, "scale": 1},
        },
    )
    await session.detach()
    return base64.b64decode(shot["data"])
