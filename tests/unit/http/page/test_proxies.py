"""Signing in by a proxy: only one that is trusted is believed, and it says who may act."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.page_door import a_page
from worker.store import audit, flags

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import redis

    from tests.support.page_door import PageDoor

SETTINGS: dict[str, Any] = {
    "http_user_header": "X-Forwarded-User",
    "http_proxies": "10.9.0.0/16, 127.0.0.1",
    "http_operators": "ann@example.com, bob",
}
ANN = {"X_Forwarded_User": "ann@example.com"}
EVE = {"X_Forwarded_User": "eve"}


@pytest.fixture
async def page(redis_url: str) -> AsyncIterator[PageDoor]:
    async with a_page(redis_url, **SETTINGS) as door:
        yield door


async def pause(page: PageDoor, who: dict[str, str], form: str) -> int:
    return (await page.post("/page/pause", {"form_token": form}, **who)).status


async def test_a_person_whom_the_proxy_names_acts_under_that_name(page: PageDoor) -> None:
    shown = await page.get("/page", **ANN)
    assert (shown.status, "ann@example.com" in shown.text) == (200, True)
    assert "/page/sign-out" not in shown.form_tokens
    assert "Set-Cookie" not in shown.headers
    assert await pause(page, ANN, shown.form_tokens["/page/pause"]) == 303
    assert flags.read(page.refunds.store).paused_by == "ann@example.com"
    (entry,) = audit.entries(page.refunds.store)
    assert (entry.deed.by, entry.deed.via) == ("ann@example.com", "page")


async def test_a_person_who_is_not_an_operator_reads_only(page: PageDoor) -> None:
    shown = await page.get("/page", **EVE)
    assert (shown.status, shown.form_tokens) == (200, {})
    ann = (await page.get("/page", **ANN)).form_tokens["/page/pause"]
    assert await pause(page, EVE, ann) == 403
    assert flags.read(page.refunds.store).paused_at is None


async def test_a_form_of_another_person_changes_nothing(page: PageDoor) -> None:
    ann = (await page.get("/page", **ANN)).form_tokens["/page/pause"]
    assert await pause(page, {"X_Forwarded_User": "bob"}, ann) == 403
    assert flags.read(page.refunds.store).paused_at is None


async def test_a_form_that_was_shown_before_a_restart_is_accepted_after_it(
    page: PageDoor, redis_url: str
) -> None:
    form = (await page.get("/page", **ANN)).form_tokens["/page/pause"]
    async with a_page(redis_url, **SETTINGS) as other:
        assert await pause(other, ANN, form) == 303


async def test_a_form_sent_from_another_site_changes_nothing(page: PageDoor) -> None:
    form = (await page.get("/page", **ANN)).form_tokens["/page/pause"]
    foreign = {**ANN, "Sec_Fetch_Site": "cross-site"}
    assert await pause(page, foreign, form) == 403


async def test_a_request_without_a_name_is_asked_for_a_token(page: PageDoor) -> None:
    assert (await page.get("/page")).location.startswith("/page/sign-in")
    await page.sign_in("read", name="support")
    assert "support" in (await page.get("/page")).text
    # Whom the proxy names is that person, whatever cookie they send.
    assert "support" not in (await page.get("/page", **EVE)).text


@pytest.mark.parametrize("name", ["", "ann smith", "é", "a" * 101, "<b>"])
async def test_a_name_that_cannot_be_kept_is_refused(page: PageDoor, name: str) -> None:
    shown = await page.get("/page", X_Forwarded_User=name)
    assert (shown.status, "must send one name" in shown.text) == (403, True)


@pytest.mark.parametrize(
    "changes", [{"http_proxies": ""}, {"http_proxies": "10.9.0.0/16"}, {"http_user_header": None}]
)
async def test_the_header_of_a_stranger_is_ignored(
    redis_url: str, changes: dict[str, str | None]
) -> None:
    async with a_page(redis_url, **{**SETTINGS, **changes}) as page:
        assert (await page.get("/page", **ANN)).location.startswith("/page/sign-in")


async def test_the_secret_of_a_person_ends_after_eight_hours(
    page: PageDoor, sync_redis: redis.Redis
) -> None:
    first = (await page.get("/page", **ANN)).form_tokens["/page/pause"]
    (key,) = sync_redis.keys("refunds:person:*")
    assert "ann" not in str(key)
    assert 0 < int(str(sync_redis.pttl(key))) <= 8 * 60 * 60 * 1000
    assert (await page.get("/page", **ANN)).form_tokens["/page/pause"] == first
    sync_redis.delete(key)
    assert await pause(page, ANN, first) == 403


async def test_a_person_acts_on_a_full_server(page: PageDoor, fill: Callable[[], object]) -> None:
    fill()
    shown = await page.get("/page", **ANN)
    assert shown.status == 200
    assert await pause(page, ANN, shown.form_tokens["/page/pause"]) == 303
    assert flags.read(page.refunds.store).paused_by == "ann@example.com"
