"""The operator's page in a real browser: no error on its console, nothing that its policy blocks,
no rule of accessibility broken, and everything done by keyboard alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from ops.lab.page import browser as chromium
from ops.lab.page.browser import SCHEMES, Tab
from tests.support.page_door import PageDoor, a_page
from worker.model.refund import Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

# The browser lives in one loop: starting it takes longer than most of the tests.
pytestmark = pytest.mark.asyncio(loop_scope="session")

VIEWS = (
    "/page/sign-in",
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
)
CANARY = "<img src=x onerror=alert(1)>"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    try:
        chromium.program()
    except chromium.BrowserMissingError as error:
        pytest.skip(str(error))
    async with chromium.running_chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
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
        yield door


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Browser, page: PageDoor) -> AsyncIterator[Tab]:
    """A tab that ann has signed in to, whose pages must have nothing wrong at the end."""
    token = page.a_token("ann", "read", "operate")
    async with chromium.signed_in(browser, f"http://127.0.0.1:{page.port}", token) as opened:
        yield opened
        assert opened.wrong == []


async def test_every_view_is_without_errors_and_accessible(page: PageDoor, tab: Tab) -> None:
    found = []
    for view in VIEWS:
        await tab.open(view)
        for scheme, width in SCHEMES.items():
            found += await tab.look(scheme, width)
    assert found == []
    unseen = [
        address
        for address in page.views
        if not any(re.fullmatch(re.sub(r"{\w+}", "[^/]+", address), view) for view in VIEWS)
    ]
    assert unseen == []


async def test_what_is_wrong_with_a_view_is_found(page: PageDoor, browser: Browser) -> None:
    origin = f"http://127.0.0.1:{page.port}"
    token = page.a_token("ann", "read")
    async with chromium.signed_in(browser, origin, token) as tab:
        await tab.page.evaluate(
            """() => {
                const wide = document.createElement("img");
                wide.width = 2000;
                document.querySelector("main").append(wide);
                document.body.append(Object.assign(document.createElement("script"), {text: "1"}));
                fetch("https://example.com/").catch(() => null);
            }"""
        )
        found = await tab.look("light", 1200)
        await tab.open("/page/static/no-such")
    wide, nameless = found
    assert "wider than the window" in wide
    assert "image-alt" in nameless
    said = " ".join(tab.wrong)
    assert "blocked inline by script-src" in said
    assert "blocked https://example.com/ by connect-src" in said


async def test_a_refund_is_decided_by_keyboard_alone(page: PageDoor, tab: Tab) -> None:
    keyboard = tab.page.keyboard
    await tab.open("/page/review")
    await tab.page.get_by_role("link", name="order-3001-1").focus()
    await keyboard.press("Enter")
    await tab.page.wait_for_url("**/order-3001-1")
    await tab.page.get_by_role("radio", name="It did not happen and must not").focus()
    await keyboard.press("Space")
    await keyboard.press("Tab")
    await keyboard.type("paid_in_cash")
    await tab.page.get_by_label("How you know").focus()
    await keyboard.type("agreed with the customer")
    await keyboard.press("Tab")
    await keyboard.press("Enter")
    await tab.page.get_by_text("failed", exact=True).first.wait_for()
    assert page.records.get("order-3001-1").status is Status.FAILED


async def test_what_is_shown_is_renewed_while_it_is_looked_at(page: PageDoor, tab: Tab) -> None:
    await tab.page.get_by_text("1 refund needs review").wait_for()
    page.records.in_review("order-3002-1", payment_intent="pi_3002")
    await tab.page.get_by_text("2 refunds need review").wait_for()
