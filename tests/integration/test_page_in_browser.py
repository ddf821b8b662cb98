"""The operator's page in a real browser: no error on its console, nothing that its policy blocks,
no rule of accessibility broken, and everything done by keyboard alone.
"""

from __future__ import annotations

import asyncio
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from ops.lab.page import browser as chromium
from ops.lab.page.browser import SCHEMES, Tab
from tests.support import page_canaries
from tests.support.page_door import PageDoor, a_page
from worker.model.refund import Status
from worker.store import audit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from playwright.async_api import Browser, Page

# The browser lives in one loop: starting it takes longer than most of the tests.
pytestmark = pytest.mark.asyncio(loop_scope="session")

VIEWS = (
    "/page/sign-in",
    "/page",
    "/page/refunds",
    "/page/refunds/order-3001-1",
    "/page/refunds/order-2001-1",
    "/page/refunds/no-such",
    "/page/refunds?q=no-such",
    "/page/review",
    "/page/batches",
    "/page/batches/season",
    "/page/batches/season/errors",
    "/page/import",
    "/page/import/no-such",
    "/page/import/no-such/errors",
    "/page/reversed",
    "/page/callbacks",
    "/page/audit",
    "/page/audit?by=ann",
)
TWICE = 600
"""A window of 1,200 pixels at 200 percent is as wide as this."""
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
        now = int(door.refunds.store.time().timestamp() * 1000)
        redis.zadd("refunds:workers", {"refunds-41@host-1": now, "refunds-42@host-1": now})
        redis.zadd("refunds:outages", {"refunds-42@host-1": now})
        deed = audit.Deed(by=CANARY, via="api", address=CANARY, action="cancel", note=CANARY)
        audit.carry_out(door.refunds.store, deed, lambda: None)
        yield door


@pytest_asyncio.fixture(loop_scope="session")
async def tab(browser: Browser, page: PageDoor) -> AsyncIterator[Tab]:
    """A tab that ann has signed in to, whose pages must have nothing wrong at the end."""
    async with a_tab(browser, page, "ann") as opened:
        yield opened
        assert opened.wrong == []


def a_tab(
    browser: Browser, door: PageDoor, name: str, **how: Any
) -> AbstractAsyncContextManager[Tab]:
    """A tab that a person has signed in to, who may do everything."""
    token = door.a_token(name, "read", "operate", "submit")
    return chromium.signed_in(browser, f"http://127.0.0.1:{door.port}", token, **how)


async def choose(page: Page, decision: str, note: str = "seen in the dashboard") -> None:
    """Fill in the form of a decision."""
    await page.get_by_role("radio", name=decision).check()
    await page.get_by_label("How you know").fill(note)


async def decide(page: Page) -> None:
    async with page.expect_navigation():
        await page.get_by_role("button", name="Decide").click()


async def test_every_view_is_without_errors_and_accessible(page: PageDoor, tab: Tab) -> None:
    found = []
    for view in VIEWS:
        await tab.open(view)
        for scheme, width in SCHEMES.items():
            found += await tab.look(scheme, width)
        found += [f"{view} at twice the size {each}" for each in await tab.too_wide("light", TWICE)]
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
    await keyboard.type("Paid in cash")
    await tab.page.get_by_label("How you know").focus()
    await keyboard.type("agreed with the customer")
    await keyboard.press("Tab")
    await keyboard.press("Enter")
    await tab.page.get_by_text("failed", exact=True).first.wait_for()
    decided = page.records.get("order-3001-1")
    assert (decided.status, decided.error_code) == (Status.FAILED, "paid_in_cash")


async def test_what_is_shown_is_renewed_while_it_is_looked_at(page: PageDoor, tab: Tab) -> None:
    await tab.page.get_by_text("1 refund needs review").wait_for()
    page.records.in_review("order-3002-1", payment_intent="pi_3002")
    await tab.page.get_by_text("2 refunds need review").wait_for()


async def test_of_two_forms_that_decide_one_does_and_the_other_keeps_its_words(
    page: PageDoor, tab: Tab
) -> None:
    other = await tab.page.context.new_page()
    for each in (tab.page, other):
        await each.goto(f"{tab.origin}/page/refunds/order-3001-1")
        await choose(each, "send it again", f"said {CANARY}")
    await decide(tab.page)
    moves = len(page.refunds.history("order-3001-1"))
    await decide(other)
    await other.get_by_role("alert").get_by_text("Since you opened the form").wait_for()
    assert f"You wrote: said {CANARY}" in await other.inner_text("main")
    assert await Tab(other, tab.origin).inaccessible() == []
    assert len(page.refunds.history("order-3001-1")) == moves


async def test_of_two_people_who_decide_at_the_same_moment_one_does(
    page: PageDoor, tab: Tab, browser: Browser
) -> None:
    async with a_tab(browser, page, "bob") as other:
        await tab.open("/page/refunds/order-3001-1")
        await choose(tab.page, "send it again")
        await other.open("/page/refunds/order-3001-1")
        await choose(other.page, "It did not happen and must not")
        await other.page.get_by_label("Reason of the failure").fill("paid in cash")
        before = len(page.refunds.history("order-3001-1"))
        await asyncio.gather(decide(tab.page), decide(other.page))
        alerts = [each.page.get_by_role("alert") for each in (tab, other)]
        (refused,) = [alert for alert in alerts if await alert.count()]
        assert "Since you opened the form" in await refused.inner_text()
        assert other.wrong == []
    assert len(page.refunds.history("order-3001-1")) == before + 1
    newest = islice(audit.entries(page.refunds.store), 2)
    assert sorted(each.result.partition(":")[0] for each in newest) == ["done", "refused"]


async def test_the_way_back_shows_a_refund_as_it_is_now(page: PageDoor, tab: Tab) -> None:
    view = "/page/refunds/order-3001-1"
    await tab.open(view)
    await choose(tab.page, "send it again")
    await decide(tab.page)
    moves = len(page.refunds.history("order-3001-1"))
    await tab.page.go_back()
    await tab.page.get_by_text("queued", exact=True).first.wait_for()
    assert tab.page.url == f"{tab.origin}{view}"
    assert await tab.page.get_by_role("button", name="Decide").count() == 0
    assert len(page.refunds.history("order-3001-1")) == moves


async def test_the_way_back_after_a_form_that_was_refused_sends_it_no_second_time(tab: Tab) -> None:
    view = "/page/refunds/order-3001-1"
    await tab.open(view)
    await choose(tab.page, "It did not happen and must not")
    await decide(tab.page)
    await tab.page.get_by_role("alert").wait_for()
    await tab.page.get_by_role("link", name="Batches").click()
    await tab.page.get_by_role("heading", name="Batches").wait_for()
    await tab.page.go_back()
    await tab.page.get_by_text("Why it needs review").wait_for()
    assert tab.page.url == f"{tab.origin}{view}"
    assert await tab.page.get_by_role("alert").count() == 0


async def test_a_person_whom_a_proxy_signs_in_decides_under_their_name(
    redis_url: str, browser: Browser
) -> None:
    settings: dict[str, Any] = {
        "http_user_header": "X-Forwarded-User",
        "http_proxies": "127.0.0.1",
        "http_operators": "ann@example.com",
    }
    async with a_page(redis_url, **settings) as door:
        door.records.in_review("order-1", doubt=False)
        origin = f"http://127.0.0.1:{door.port}"
        for name, may_act in (("eve", False), ("ann@example.com", True)):
            headers = {"X-Forwarded-User": name}
            async with chromium.opened(browser, origin, extra_http_headers=headers) as tab:
                await tab.open("/page/refunds/order-1")
                await tab.page.get_by_text(name, exact=True).wait_for()
                buttons = tab.page.get_by_role("button", name="Decide")
                assert await buttons.count() == may_act
                # The proxy signs them out, too.
                assert await tab.page.get_by_role("button", name="Sign out").count() == 0
                assert await tab.inaccessible() == []
                if may_act:
                    await choose(tab.page, "send it again")
                    await decide(tab.page)
                    await tab.page.get_by_text("queued", exact=True).first.wait_for()
                assert tab.wrong == []
        assert door.refunds.history("order-1")[-1]["by"] == "ann@example.com"
        async with chromium.opened(browser, origin) as tab:
            await tab.open("/page/refunds/order-1")
            await tab.page.get_by_label("Token").wait_for()


async def test_the_way_back_after_signing_out_asks_for_a_token(tab: Tab) -> None:
    await tab.open("/page/refunds/order-3001-1")
    await tab.page.get_by_role("button", name="Sign out").click()
    await tab.page.get_by_label("Token").wait_for()
    await tab.page.go_back()
    await tab.page.get_by_label("Token").wait_for()
    assert "order-3001-1" not in await tab.page.inner_text("body")


async def test_a_form_that_was_opened_before_a_restart_is_sent_after_it(
    redis_url: str, browser: Browser
) -> None:
    async with a_page(redis_url) as before:
        before.records.in_review("order-1", doubt=False)
        opening = a_tab(browser, before, "ann")
        tab = await opening.__aenter__()
        await tab.open("/page/refunds/order-1")
        await choose(tab.page, "send it again")
    async with a_page(redis_url, port=before.port) as after:
        await decide(tab.page)
        await tab.page.get_by_text("queued", exact=True).first.wait_for()
        assert after.refunds.history("order-1")[-1]["by"] == "ann"
        await opening.__aexit__(None, None, None)
    # The page may be renewed while no server answers.
    assert [each for each in tab.wrong if "ERR_CONNECTION_REFUSED" not in each] == []


async def test_an_exact_id_of_the_provider_is_found_by_keyboard(tab: Tab) -> None:
    await tab.page.get_by_role("searchbox", name="Search").focus()
    await tab.page.keyboard.type("re_7")
    await tab.page.keyboard.press("Enter")
    await tab.page.wait_for_url("**/page/refunds/order-1007-1")


async def test_a_file_with_invalid_rows_is_confirmed_without_them(
    page: PageDoor, tab: Tab, tmp_path: Path
) -> None:
    file, result = tmp_path / "season.csv", tmp_path / "result.csv"
    bad = f'a-3,pi_3,wrong,usd\na-4,,5,usd\n"{CANARY}",pi_5,5,usd\n'
    file.write_text(f"refund_id,payment_intent,amount,currency\na-1,pi_1,500,usd\n{bad}")
    view, found = tab.page, []
    await view.get_by_role("link", name="Import", exact=True).click()
    await view.get_by_label("File: CSV").set_input_files(file)
    await view.get_by_role("button", name="Check the file").click()
    # The browser asks for the choice that would be wrong by a factor of 100.
    assert await view.get_by_label("Amounts are written").evaluate("each => !each.validity.valid")
    await view.get_by_label("Amounts are written").select_option("minor")
    await view.get_by_role("button", name="Check the file").click()
    await view.get_by_text("3 of 4 rows are invalid").wait_for()
    for scheme, width in SCHEMES.items():
        found += await tab.look(scheme, width)
    async with view.expect_download() as saving:
        await view.get_by_role("link", name="Download every invalid row").click()
    assert (await saving.value).suggested_filename == "invalid-rows.csv"
    await view.get_by_role("button", name="Leave them out").click()
    await view.get_by_text("Nothing is imported yet").wait_for()
    await view.get_by_label("Number of refunds").fill("1")
    await view.get_by_label("Sum in USD").fill("500")
    await view.get_by_role("button", name="Import the file").click()
    await view.get_by_role("alert").wait_for()
    for scheme, width in SCHEMES.items():
        found += await tab.look(scheme, width)
    assert await view.get_by_label("Number of refunds").input_value() == "1"
    await view.get_by_label("Sum in USD").fill("5.00")
    await view.get_by_role("button", name="Import the file").click()
    await view.get_by_text("of 1 refunds are settled").wait_for()
    found += await tab.inaccessible()
    await view.get_by_label("Choose the file of this batch").set_input_files(file)
    async with view.expect_download() as saving:
        await view.get_by_role("button", name="Download the results").click()
    await (await saving.value).save_as(result)
    assert "a-1,pi_1,500,usd" in result.read_text()
    await view.get_by_role("link", name="What people did with this batch").click()
    await view.get_by_role("cell", name="season.csv").wait_for()
    assert found == []
    assert page.records.get("a-1").amount == 500


async def test_markup_in_every_field_is_shown_as_text(redis_url: str, browser: Browser) -> None:
    found: list[object] = []
    async with a_page(redis_url) as door, a_tab(browser, door, "ann") as tab:
        page_canaries.plant(door, CANARY)
        for view in page_canaries.VIEWS:
            await tab.open(view)
            made = await tab.page.locator("img, script:not([src])").count()
            is_shown = CANARY in await tab.page.inner_text("main")
            found += [] if (made, is_shown) == (0, True) else [(view, made, is_shown)]
        assert tab.wrong == []
    assert found == []
