"""The pictures of `ops/docs/page.md`: every view, light and wide, dark and narrow."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from playwright.async_api import Page

from ops.lab.page.browser import SCHEMES, Scheme, Tab, running_chromium, signed_in
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
    "import": "/page/import",
    "checked": "",
    "reversed": "/page/reversed",
    "callbacks": "/page/callbacks",
    "audit": "/page/audit",
    "sign_in": "/page/sign-in",
}
"""The address of each view by its template, with the refund or batch of the season to show.

That of a checked file is known once one was uploaded.
"""
QUALITY: Final = 55
LONGEST: Final = {1200: 1500, 360: 1400}
"""The height in pixels at which a picture of a window of this width ends."""
FILE: Final = "spring.csv"
ROWS: Final = b"""refund_id,payment_intent,amount,currency
spring-1,pi_spring_1,12.50,usd
spring-2,pi_spring_2,12;50,usd
spring-3,,9.90,usd
spring-4,pi_spring_4,25.00,usd
spring-5,pi_spring_5,19.90,usd
"""


async def take(season: Season, folder: Path) -> AsyncIterator[Path]:
    """Write a picture of every view in both color schemes; yield the path of each.

    Raises `BrowserMissingError`.
    """
    origin = season.page.removesuffix("/page")
    async with (
        running_chromium() as browser,
        signed_in(browser, origin, season.actor_token) as tab,
    ):
        checked = await upload(tab)
        for name, address in VIEWS.items():
            for scheme, width in SCHEMES.items():
                path = folder / f"{name}-{scheme}.webp"
                path.write_bytes(await _picture(tab, address or checked, scheme, width))
                yield path


async def upload(tab: Tab) -> str:
    """Have the page check a file with invalid rows; return the address of what it found."""
    await tab.open("/page/import")
    await tab.page.set_input_files("#file", {"name": FILE, "mimeType": "text/csv", "buffer": ROWS})
    await tab.page.get_by_label("Amounts are written").select_option("point")
    await tab.page.get_by_role("button", name="Check the file").click()
    await tab.page.get_by_role("heading", name=FILE).wait_for()
    return tab.page.url.removeprefix(tab.origin)


async def _picture(tab: Tab, address: str, scheme: Scheme, width: int) -> bytes:
    await tab.show_in(scheme, width)
    await tab.open(address)
    return await webp(tab.page)


async def webp(page: Page) -> bytes:
    """Return a picture of the page from its top; Playwright itself writes PNG and JPEG only."""
    session = await page.context.new_cdp_session(page)
    size = (await session.send("Page.getLayoutMetrics"))["cssContentSize"]
    height = min(size["height"], LONGEST[size["width"]])
    clip = {"x": 0, "y": 0, "width": size["width"], "height": height}
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
