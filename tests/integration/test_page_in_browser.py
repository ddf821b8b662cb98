"""The operator's page in a real browser: no error on its console, nothing that its policy blocks,
no rule of accessibility broken, and everything done by keyboard alone.
"""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.page_door import PageDoor, a_page
from worker.model.refund import Status
from worker.store import audit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

playwright = pytest.importorskip(
    "playwright.async_api", reason="needs a browser: pip install playwright axe-playwright-python"
)
axe = pytest.importorskip(
    "axe_playwright_python.async_playwright", reason="needs: pip install axe-playwright-python"
)
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

VIEWS = (
    "/page",
    "/page/refunds",
    "/page/refunds/order-3001-1",
    "/page/refunds/order-2001-1",
    "/page/refunds/no-such",
    "/page/review",
    "/page/batches",
    "/page/batches/season",
    "/page/reversed",
    "/page/callbacks",
    "/page/audit",
)
CANARY = "<img src=x onerror=alert(1)>"


@pytest.fixture
async def page(redis_url: str) -> AsyncIterator[PageDoor]:
    async with a_page(redis_url) as door:
        records, redis = door.records, door.refunds.store.redis
        for number in range(12):
            payment = f"pi_178773082949392{number:04}"
            records.succeeded(f"order-1{number:03}-1", f"re_{number}", payment_intent=payment)
        records.failed("order-2001-1", payment_intent="pi_2001")
        stuck = {"payment_intent": "pi_3001", "metadata": {"order": CANARY}}
        records.in_review("order-3001-1", doubt=False, **stuck)
        batch: dict[Any, Any] = {"rows": 2, "state": "running", "file": CANARY}
        redis.hset("refunds:batch:season", mapping=batch)
        redis.zadd("refunds:batches", {"season": 1})
        for number in range(2):
            records.queued(f"row-{number}", batch_id="season", payment_intent=f"pi_4{number}")
        now = int(door.refunds.store.time().timestamp() * 1000)
        redis.zadd("refunds:workers", {"refunds-41@host-1": now, "refunds-42@host-1": now})
        redis.zadd("refunds:outages", {"refunds-42@host-1": now})
        deed = audit.Deed(by=CANARY, via="api", address=CANARY, action="cancel", note=CANARY)
        audit.carry_out(door.refunds.store, deed, lambda: None)
        yield door


@asynccontextmanager
async def a_browser(door: PageDoor, **how: Any) -> AsyncIterator[tuple[Any, list[str]]]:
    """A tab that is signed in by keyboard, and what its console said."""
    said: list[str] = []
    async with playwright.async_playwright() as tool:
        browser = await tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = await (await browser.new_context(**how)).new_page()
        tab.on("console", lambda message: said.append(f"{tab.url} {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"{tab.url} {error}"))
        tab.on("dialog", lambda dialog: said.append(f"{tab.url} {dialog.message}"))
        await tab.goto(f"http://127.0.0.1:{door.port}/")
        await tab.keyboard.press("Tab")
        await tab.keyboard.press("Tab")
        await tab.keyboard.type(door.a_token("ann", "read", "operate"))
        await tab.keyboard.press("Enter")
        await tab.wait_for_url("**/page")
        try:
            yield tab, said
        finally:
            await browser.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
async def test_every_view_is_without_errors_and_accessible(
    page: PageDoor, scheme: str, width: int, tmp_path: Path
) -> None:
    found: list[object] = []
    how = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    async with a_browser(page, **how) as (tab, said):
        for view in VIEWS:
            await tab.goto(f"http://127.0.0.1:{page.port}{view}")
            name = view.strip("/").replace("/", "-")
            await tab.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page=True)
            wider = await tab.evaluate("document.documentElement.scrollWidth - innerWidth")
            if wider > 0:
                found.append((view, f"is wider than the window by {wider}"))
            broken = (await axe.Axe().run(tab)).response["violations"]
            found += [(view, each["id"], each["nodes"][0]["html"]) for each in broken]
    # The console names the answer 404 of the one view that does not exist.
    assert [line for line in said if "404" not in line] == []
    assert found == []


async def test_a_refund_is_decided_by_keyboard_alone(page: PageDoor) -> None:
    async with a_browser(page) as (tab, said):
        await tab.goto(f"http://127.0.0.1:{page.port}/page/review")
        await tab.get_by_role("link", name="order-3001-1").focus()
        await tab.keyboard.press("Enter")
        await tab.wait_for_url("**/order-3001-1")
        await tab.get_by_role("radio", name="It did not happen and must not").focus()
        await tab.keyboard.press("Space")
        await tab.keyboard.press("Tab")
        await tab.keyboard.type("paid_in_cash")
        await tab.get_by_label("How you know").focus()
        await tab.keyboard.type("agreed with the customer")
        await tab.keyboard.press("Tab")
        await tab.keyboard.press("Enter")
        await tab.get_by_text("failed", exact=True).first.wait_for()
    assert page.records.get("order-3001-1").status is Status.FAILED
    assert said == []


async def test_of_two_browsers_that_decide_one_does_and_the_other_keeps_its_words(
    page: PageDoor,
) -> None:
    found: list[object] = []
    async with a_browser(page) as (tab, said):
        other = await tab.context.new_page()
        for each in (tab, other):
            await each.goto(f"http://127.0.0.1:{page.port}/page/refunds/order-3001-1")
            await each.get_by_role("radio", name="send it again").check()
            await each.get_by_label("How you know").fill(f"said {CANARY}")
        await tab.get_by_role("button", name="Decide").click()
        await tab.get_by_text("queued", exact=True).first.wait_for()
        moves = len(page.refunds.history("order-3001-1"))
        await other.get_by_role("button", name="Decide").click()
        await other.get_by_role("alert").get_by_text("Since you opened the form").wait_for()
        assert f"You wrote: said {CANARY}" in await other.inner_text("main")
        broken = (await axe.Axe().run(other)).response["violations"]
        found += [(each["id"], each["nodes"][0]["html"]) for each in broken]
    assert (found, said) == ([], [])
    assert len(page.refunds.history("order-3001-1")) == moves


async def test_what_is_shown_is_renewed_while_it_is_looked_at(page: PageDoor) -> None:
    async with a_browser(page) as (tab, said):
        await tab.get_by_text("1 refund needs review").wait_for()
        page.records.in_review("order-3002-1", payment_intent="pi_3002")
        await tab.get_by_text("2 refunds need review").wait_for()
    assert said == []
