"""Signing in to the page: with a token, for a while, and never by a page of another site."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.page_door import a_page
from worker.store import flags, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tests.support.page_door import PageDoor

VIEWS = ("/page", "/page/refunds", "/page/review", "/page/batches", "/page/reversed")


@pytest.mark.parametrize("path", [*VIEWS, "/page/callbacks", "/page/refunds/order-1"])
async def test_without_a_session_every_view_asks_for_a_token(page: PageDoor, path: str) -> None:
    shown = await page.get(path)
    assert (shown.status, shown.location.split("?")[0]) == (303, "/page/sign-in")


async def test_signing_in_leads_to_the_view_that_was_asked_for(page: PageDoor) -> None:
    asked = (await page.get("/page/refunds?status=failed")).location
    form = await page.get(asked)
    assert 'value="/page/refunds?status=failed"' in form.html
    token = page.a_token("ann", "read")
    form_data = {"token": token, "to": "/page/refunds?status=failed"}
    shown = await page.post("/page/sign-in", form_data)
    assert (shown.status, shown.location) == (303, "/page/refunds?status=failed")
    assert (await page.get(shown.location)).status == 200


@pytest.mark.parametrize(
    "to", ["https://evil.example/", "//evil.example", "/pages", "/page\r\nX: y"]
)
async def test_signing_in_leads_to_the_page_only(page: PageDoor, to: str) -> None:
    token = page.a_token("ann", "read")
    assert (await page.post("/page/sign-in", {"token": token, "to": to})).location == "/page"


async def test_the_cookie_is_kept_from_scripts_and_other_sites(page: PageDoor) -> None:
    token = page.a_token("ann", "read")
    local = (await page.post("/page/sign-in", {"token": token})).headers["Set-Cookie"]
    assert local.startswith("refunds-local=")
    assert "HttpOnly" in local
    assert "SameSite=Strict" in local
    proxied = await page.post("/page/sign-in", {"token": token}, Host="refunds.example")
    assert proxied.headers["Set-Cookie"].startswith("__Host-refunds=")
    assert "Secure" in proxied.headers["Set-Cookie"]


async def test_redis_does_not_hold_the_secret_of_a_session(
    page: PageDoor, sync_redis: redis.Redis
) -> None:
    await page.sign_in()
    (key,) = sync_redis.keys("refunds:session:*")
    assert page.cookies["refunds-local"] not in str(key) + str(sync_redis.get(key))
    assert 0 < int(str(sync_redis.pttl(key))) <= 30 * 60 * 1000


async def test_a_wrong_token_opens_no_session(page: PageDoor, sync_redis: redis.Redis) -> None:
    shown = await page.post("/page/sign-in", {"token": f"rfw_12345678_{'a' * 43}"})
    assert (shown.status, "not a valid token" in shown.text) == (401, True)
    assert sync_redis.keys("refunds:session:*") == []


async def test_many_wrong_tokens_are_answered_with_429(page: PageDoor) -> None:
    for _ in range(10):
        assert (await page.post("/page/sign-in", {"token": "rfw_no"})).status == 401
    assert (await page.post("/page/sign-in", {"token": "rfw_no"})).status == 429


@pytest.mark.parametrize(
    ("scopes", "ids", "words"),
    [(("submit",), "", "scope read"), (("read",), "shop-a-", "for some ids only")],
)
async def test_a_token_that_may_not_read_everything_opens_no_session(
    page: PageDoor, scopes: tuple[str, ...], ids: str, words: str
) -> None:
    token = page.a_token("ann", *scopes, ids=ids)
    shown = await page.post("/page/sign-in", {"token": token})
    assert (shown.status, words in shown.text, page.cookies) == (403, True, {})


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
    ],
)
async def test_a_form_of_another_site_opens_no_session(
    page: PageDoor, headers: dict[str, str], sync_redis: redis.Redis
) -> None:
    token = page.a_token("ann", "read")
    assert (await page.post("/page/sign-in", {"token": token}, **headers)).status == 403
    assert sync_redis.keys("refunds:session:*") == []


@pytest.mark.parametrize(("origin", "status"), [("http://evil.example", 403), ("null", 403)])
async def test_without_fetch_metadata_the_origin_counts(
    page: PageDoor, origin: str, status: int
) -> None:
    data = {"token": page.a_token("ann", "read")}
    assert (await page.ask("POST", "/page/sign-in", data)).status == 403
    assert (await page.ask("POST", "/page/sign-in", data, Origin=origin)).status == status
    own = f"http://127.0.0.1:{page.port}"
    assert (await page.ask("POST", "/page/sign-in", data, Origin=own)).status == 303


async def test_revoking_the_token_ends_the_session_at_once(page: PageDoor) -> None:
    await page.sign_in(name="ann")
    assert (await page.get("/page")).status == 200
    tokens.revoke(page.refunds.store, "ann")
    assert (await page.get("/page")).status == 303
    assert (await page.get("/page", X_Live="1")).status == 401


async def test_only_a_person_prolongs_a_session(page: PageDoor, sync_redis: redis.Redis) -> None:
    await page.sign_in()
    (key,) = sync_redis.keys("refunds:session:*")
    sync_redis.pexpire(key, 60_000)
    assert (await page.get("/page", X_Live="1")).status == 200
    assert int(str(sync_redis.pttl(key))) <= 60_000
    await page.get("/page")
    assert int(str(sync_redis.pttl(key))) > 60_000


async def test_a_session_ends_after_eight_hours(page: PageDoor, sync_redis: redis.Redis) -> None:
    await page.sign_in()
    (key,) = sync_redis.keys("refunds:session:*")
    stored = json.loads(str(sync_redis.get(key)))
    stored["opened_at"] -= 8 * 60 * 60 * 1000
    sync_redis.set(key, json.dumps(stored))
    assert (await page.get("/page")).status == 303


async def test_signing_out_ends_the_session(page: PageDoor, sync_redis: redis.Redis) -> None:
    await page.sign_in()
    form = (await page.get("/page")).form_tokens["/page/sign-out"]
    assert (await page.post("/page/sign-out", {"form_token": "0" * 64})).status == 403
    assert len(list(sync_redis.keys("refunds:session:*"))) == 1
    assert (await page.post("/page/sign-out", {"form_token": form})).status == 303
    assert sync_redis.keys("refunds:session:*") == []


async def test_a_form_shown_before_a_restart_can_be_sent_after_it(
    page: PageDoor, redis_url: str, sync_redis: redis.Redis
) -> None:
    await page.sign_in()
    form = (await page.get("/page")).form_tokens["/page/sign-out"]
    async with a_page(redis_url) as after:
        after.cookies = dict(page.cookies)
        assert (await after.post("/page/sign-out", {"form_token": form})).status == 303
    assert sync_redis.keys("refunds:session:*") == []


async def test_a_person_signs_in_and_acts_on_a_full_server(
    page: PageDoor, fill: Callable[[], object]
) -> None:
    token = page.a_token("ann")
    fill()
    assert (await page.post("/page/sign-in", {"token": token})).status == 303
    form = (await page.get("/page")).form_tokens["/page/pause"]
    assert (await page.post("/page/pause", {"form_token": form})).status == 303
    assert flags.read(page.refunds.store).paused_by == "ann"
