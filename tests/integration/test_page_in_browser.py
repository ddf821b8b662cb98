"""The operator's page in a real browser: no error on its console, nothing that its policy blocks,
no rule of accessibility broken, and everything done by keyboard alone.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import page_canaries
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
    "/page/refunds?q=no-such",
    "/page/review",
    "/page/batches",
    "/page/batches/season",
    "/page/reversed",
    "/page/callbacks",
    "/page/import",
    "/page/audit",
    "/page/audit?by=ann",
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
    name = how.pop("name", "ann")
    async with playwright.async_playwright() as tool:
        browser = await tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = await (await browser.new_context(**how)).new_page()
        tab.on("console", lambda message: said.append(f"{tab.url} {message.text}"))
        tab.on("pageerror", lambda error: said.append(f"{tab.url} {error}"))
        tab.on("dialog", lambda dialog: said.append(f"{tab.url} {dialog.message}"))
        await tab.goto(f"http://127.0.0.1:{door.port}/")
        await tab.keyboard.press("Tab")
        await tab.keyboard.press("Tab")
        await tab.keyboard.type(door.a_token(name, "read", "operate", "submit"))
        await tab.keyboard.press("Enter")
        await tab.wait_for_url("**/page")
        try:
            yield tab, said
        finally:
            await browser.close()


async def broken_rules(tab: Any) -> list[tuple[str, str]]:
    found = (await axe.Axe().run(tab)).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found]


async def decided(tab: Any) -> None:
    async with tab.expect_navigation():
        await tab.get_by_role("button", name="Decide").click()


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


async def test_of_two_people_who_decide_at_the_same_moment_one_does(page: PageDoor) -> None:
    async with a_browser(page) as (ann, said), a_browser(page, name="bob") as (bob, more):
        for tab, name in ((ann, "send it again"), (bob, "It did not happen and must not")):
            await tab.goto(f"http://127.0.0.1:{page.port}/page/refunds/order-3001-1")
            await tab.get_by_role("radio", name=name).check()
            await tab.get_by_label("How you know").fill("seen in the dashboard")
        await bob.get_by_label("Code of the failure").fill("paid_in_cash")
        before = len(page.refunds.history("order-3001-1"))
        await asyncio.gather(*map(decided, (ann, bob)))
        refused = [tab for tab in (ann, bob) if await tab.get_by_role("alert").count()]
        assert len(refused) == 1
        assert "Since you opened the form" in await refused[0].get_by_role("alert").inner_text()
    # The answer 409 is named on the console of the one whose form came second.
    assert [line for line in said + more if "409" not in line] == []
    assert len(page.refunds.history("order-3001-1")) == before + 1
    newest = islice(audit.entries(page.refunds.store), 2)
    assert sorted(each.result.partition(":")[0] for each in newest) == ["done", "refused"]


async def test_the_way_back_shows_what_a_refund_is_now_and_offers_no_decision(
    page: PageDoor,
) -> None:
    async with a_browser(page) as (tab, said):
        view = f"http://127.0.0.1:{page.port}/page/refunds/order-3001-1"
        await tab.goto(view)
        await tab.get_by_role("radio", name="send it again").check()
        await tab.get_by_label("How you know").fill("seen in the dashboard")
        await tab.get_by_role("button", name="Decide").click()
        await tab.get_by_text("queued", exact=True).first.wait_for()
        moves = len(page.refunds.history("order-3001-1"))
        await tab.go_back()
        await tab.get_by_text("queued", exact=True).first.wait_for()
        assert tab.url == view
        assert await tab.get_by_role("button", name="Decide").count() == 0
        await tab.get_by_role("button", name="Sign out").click()
        await tab.get_by_label("Token").wait_for()
        await tab.go_back()
        await tab.get_by_label("Token").wait_for()
        assert "order-3001-1" not in await tab.inner_text("body")
    assert said == []
    assert len(page.refunds.history("order-3001-1")) == moves


async def test_a_form_that_was_opened_before_a_restart_is_sent_after_it(redis_url: str) -> None:
    async with AsyncExitStack() as browsing:
        async with a_page(redis_url) as before:
            before.records.in_review("order-1", doubt=False)
            tab, said = await browsing.enter_async_context(a_browser(before))
            await tab.goto(f"http://127.0.0.1:{before.port}/page/refunds/order-1")
            await tab.get_by_role("radio", name="send it again").check()
            await tab.get_by_label("How you know").fill("seen in the dashboard")
        async with a_page(redis_url, port=before.port) as after:
            await tab.get_by_role("button", name="Decide").click()
            await tab.get_by_text("queued", exact=True).first.wait_for()
            assert after.refunds.history("order-1")[-1]["by"] == "ann"
    # The page may be renewed while no server answers.
    assert [line for line in said if "ERR_CONNECTION_REFUSED" not in line] == []


async def test_at_twice_the_size_no_view_is_wider_than_the_window(page: PageDoor) -> None:
    found: list[object] = []
    # A browser of 1,200 pixels at 200 percent.
    how = {"viewport": {"width": 600, "height": 400}, "device_scale_factor": 2}
    async with a_browser(page, **how) as (tab, _):
        for view in VIEWS:
            await tab.goto(f"http://127.0.0.1:{page.port}{view}")
            wider = await tab.evaluate("document.documentElement.scrollWidth - innerWidth")
            found += [(view, wider)] if wider > 0 else []
    assert found == []


async def test_a_file_with_invalid_rows_is_corrected_confirmed_and_followed(
    page: PageDoor, tmp_path: Path
) -> None:
    file, result = tmp_path / "season.csv", tmp_path / "result.csv"
    bad = f'a-3,pi_3,wrong,usd\na-4,,5,usd\n"{CANARY}",pi_5,5,usd\n'
    file.write_text(f"refund_id,payment_intent,amount,currency\na-1,pi_1,500,usd\n{bad}")
    found: list[object] = []
    async with a_browser(page) as (tab, said):
        await tab.get_by_role("link", name="Import", exact=True).click()
        await tab.get_by_label("File: CSV").set_input_files(file)
        await tab.get_by_role("button", name="Check the file").click()
        await tab.get_by_text("3 of 4 rows are invalid").wait_for()
        found += await broken_rules(tab)
        async with tab.expect_download() as saving:
            await tab.get_by_role("link", name="Download every invalid row").click()
        assert (await saving.value).suggested_filename == "invalid-rows.csv"
        await tab.get_by_role("button", name="Leave them out").click()
        await tab.get_by_text("Nothing is imported yet").wait_for()
        await tab.get_by_label("Number of refunds").fill("1")
        await tab.get_by_label("Sum USD").fill("5")
        await tab.get_by_role("button", name="Import the file").click()
        await tab.get_by_role("alert").wait_for()
        found += await broken_rules(tab)
        assert await tab.get_by_label("Number of refunds").input_value() == "1"
        await tab.get_by_label("Sum USD").fill("500")
        await tab.get_by_role("button", name="Import the file").click()
        await tab.get_by_text("of 1 refunds are settled").wait_for()
        found += await broken_rules(tab)
        await tab.get_by_label("Choose the file of this batch").set_input_files(file)
        async with tab.expect_download() as saving:
            await tab.get_by_role("button", name="Download the results").click()
        await (await saving.value).save_as(result)
        assert "a-1,pi_1,500,usd" in result.read_text()
        await tab.get_by_role("link", name="What people did with this batch").click()
        await tab.get_by_role("cell", name="season.csv").wait_for()
    # The answer 422 is named on the console.
    assert [line for line in said if "422" not in line] == []
    assert found == []
    assert page.records.get("a-1").amount == 500


async def test_an_exact_id_of_the_provider_is_found_by_keyboard(page: PageDoor) -> None:
    async with a_browser(page) as (tab, said):
        await tab.get_by_role("searchbox", name="Exact id").focus()
        await tab.keyboard.type("re_7")
        await tab.keyboard.press("Enter")
        await tab.wait_for_url("**/page/refunds/order-1007-1")
    assert said == []


async def test_markup_in_every_field_is_shown_as_text(redis_url: str) -> None:
    found: list[object] = []
    async with a_page(redis_url) as door, a_browser(door) as (tab, said):
        page_canaries.plant(door, CANARY)
        for view in page_canaries.VIEWS:
            await tab.goto(f"http://127.0.0.1:{door.port}{view}")
            made = await tab.locator("img, script:not([src])").count()
            is_shown = CANARY in await tab.inner_text("main")
            found += [] if (made, is_shown) == (0, True) else [(view, made, is_shown)]
    assert (found, said) == ([], [])


async def test_what_is_shown_is_renewed_while_it_is_looked_at(page: PageDoor) -> None:
    async with a_browser(page) as (tab, said):
        await tab.get_by_text("1 refund needs review").wait_for()
        page.records.in_review("order-3002-1", payment_intent="pi_3002")
        await tab.get_by_text("2 refunds need review").wait_for()
    assert said == []
