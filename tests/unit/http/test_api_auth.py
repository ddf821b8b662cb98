"""Tokens: who is let in, for what, and how often."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.api_door import PAYMENT, a_door
from tests.support.http_door import ALL
from worker.http import auth
from worker.http.auth import CACHE_SECONDS, WRONG_IN_A_MINUTE, Rates, Tokens
from worker.http.problems import Problem
from worker.model.callers import digest, new_token, token_id
from worker.store import tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tests.support.api_door import Door

OPERATIONS = [
    ("POST", "/v1/refunds", "submit"),
    ("GET", "/v1/refunds", "read"),
    ("GET", "/v1/refunds/order-1", "read"),
    ("GET", "/v1/refunds/order-1/history", "read"),
    ("POST", "/v1/refunds/order-1/cancel", "submit"),
    ("POST", "/v1/refunds/order-1/retry", "operate"),
    ("POST", "/v1/refunds/order-1/resolve", "operate"),
    ("POST", "/v1/refunds/order-1/recheck", "operate"),
    ("POST", "/v1/refunds/order-1/look", "operate"),
    ("POST", "/v1/pause", "operate"),
    ("POST", "/v1/resume", "operate"),
    ("GET", "/v1/events", "read"),
]


@pytest.mark.parametrize(("method", "path", "scope"), OPERATIONS)
async def test_each_operation_needs_its_scope(
    api: Door, method: str, path: str, scope: str
) -> None:
    others = {each.value for each in ALL} - {scope}
    wrong, right = api.a_token("wrong", *others), api.a_token("right", scope)
    body = {"refund_id": "order-1", "payment_intent": PAYMENT} if path == "/v1/refunds" else None
    got = await api.ask(method, path, body if method == "POST" else None, token=wrong)
    assert (got.status, got.code) == (403, "forbidden")
    assert (await api.ask(method, path, body if method == "POST" else None, token="")).status == 401
    got = await api.ask(method, path, body if method == "POST" else None, token=right)
    assert got.status not in {401, 403}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic cmZ3OnJmdw==",
        "Bearer rfw_00000000_" + "x" * 43,
        "Bearer ../../meta",
        "Bearer " + "x" * 5000,
        "Bearer rfw_\udce9",
    ],
)
async def test_what_is_not_a_valid_token_is_401(api: Door, value: str) -> None:
    got = await api.get("/v1/refunds", Authorization=value)
    assert (got.status, got.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_a_wrong_secret_of_a_known_id_is_401(api: Door) -> None:
    known = api.token[:13]
    assert (await api.get("/v1/refunds", token=known + "x" * 43)).status == 401
    # The right one before does not help: what is cached is the whole token.
    assert (await api.get("/v1/refunds")).status == 200
    assert (await api.get("/v1/refunds", token=known + "x" * 43)).status == 401


async def test_a_token_is_stored_as_its_digest_only(api: Door, sync_redis: redis.Redis) -> None:
    assert (await api.get("/v1/refunds")).status == 200
    kept = str(sync_redis.hgetall(f"refunds:token:{token_id(api.token)}"))
    assert digest(api.token) in kept
    everything = kept + str(sync_redis.hgetall("refunds:tokens"))
    assert api.token not in everything
    assert api.token[13:] not in everything


async def test_a_token_for_some_ids_sees_and_makes_no_others(api: Door) -> None:
    mine = api.a_token("shop-a", ids="shop-a-")
    await api.create("shop-b-1")
    body = {"refund_id": "shop-a-1", "payment_intent": PAYMENT}
    assert (await api.post("/v1/refunds", body, token=mine)).status == 202
    other = {**body, "refund_id": "shop-b-2"}
    refused = await api.post("/v1/refunds", other, token=mine)
    assert (refused.code, "begin with shop-a-:" in refused.json["detail"]) == ("not_found", True)
    for path in ("/v1/refunds/shop-b-1", "/v1/refunds/shop-b-1/history"):
        assert (await api.get(path, token=mine)).code == "not_found"
    assert (await api.post("/v1/refunds/shop-b-1/cancel", token=mine)).code == "not_found"
    listed = (await api.get("/v1/refunds", token=mine)).json["data"]
    assert [refund["refund_id"] for refund in listed] == ["shop-a-1"]
    events = (await api.get("/v1/events", token=mine)).json
    assert [event["refund_id"] for event in events["data"]] == ["shop-a-1"]
    for path in ("/v1/pause", "/v1/resume"):
        assert (await api.post(path, token=mine)).code == "forbidden"
    assert api.refunds.get("shop-b-1").status == "pending"


async def test_after_ten_wrong_tokens_an_address_gets_429_and_a_right_one_is_let_in(
    api: Door,
) -> None:
    wrong = new_token()
    for _ in range(WRONG_IN_A_MINUTE):
        assert (await api.get("/v1/refunds", token=wrong)).status == 401
    got = await api.get("/v1/refunds", token=wrong)
    assert (got.status, 50 < int(got.headers["Retry-After"]) <= 60) == (429, True)
    assert (await api.get("/v1/refunds")).status == 200


async def test_a_token_has_a_rate(redis_url: str) -> None:
    async with a_door(redis_url, http_rate=3) as api:
        answers = [await api.get("/v1/refunds/absent") for _ in range(5)]
        assert [got.status for got in answers[:3]] == [404] * 3
        assert answers[-1].status == 429
        assert answers[-1].headers["Retry-After"] == "1"
        other = api.a_token("other")
        assert (await api.get("/v1/refunds/absent", token=other)).status == 404


def test_a_rate_comes_back_with_time() -> None:
    now = [100.0]
    rates = Rates(2, clock=lambda: now[0])
    rates.take("shop")
    rates.take("shop")
    with pytest.raises(Problem):
        rates.take("shop")
    now[0] += 0.5
    rates.take("shop")
    with pytest.raises(Problem):
        rates.take("shop")
    for _ in range(1000):
        Rates(0).take("shop")


async def test_without_auth_everyone_may_do_everything(redis_url: str) -> None:
    async with a_door(redis_url, http_auth="off") as api:
        body = {"refund_id": "order-1", "payment_intent": PAYMENT}
        assert (await api.post("/v1/refunds", body, token="")).status == 202
        assert (await api.post("/v1/refunds/order-1/cancel", token="")).status == 200
        last = (await api.get("/v1/refunds/order-1/history", token="")).json["data"][-1]
        assert last["by"] == auth.ANYONE.name


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Host": "rebound.example.com"},
        {"Host": "[::1"},
    ],
)
async def test_without_auth_a_page_in_a_browser_is_refused(
    redis_url: str, headers: dict[str, str]
) -> None:
    async with a_door(redis_url, http_auth="off") as api:
        got = await api.post("/v1/pause", token="", **headers)
        assert got.status in {400, 403}
        assert await api.store.meta("paused") == [None]


class Clocks:
    """The two clocks of `Tokens`."""

    def __init__(self) -> None:
        self.passed = timedelta(0)

    def wall(self) -> datetime:
        return datetime.now(UTC) + self.passed

    def clock(self) -> float:
        return 1000 + self.passed.total_seconds()


class Request:
    """What `Tokens` reads of a request."""

    remote = "192.0.2.1"

    def __init__(self, token: str) -> None:
        self._token = token

    @property
    def headers(self) -> Any:
        return self

    def getall(self, _name: str, _otherwise: list[str]) -> list[str]:
        return [f"Bearer {self._token}"]


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_token_ends_within_five_seconds(api: Door, how: str) -> None:
    clocks, reads = Clocks(), 0

    async def read(name: str) -> tokens.Token | None:
        nonlocal reads
        reads += 1
        return await tokens.read(api.store, name)

    async def used(token: tokens.Token, now: datetime) -> None:
        await tokens.note_use(api.store, token, now)

    checked = Tokens(
        partial(tokens.digest_of, api.store),
        read,
        used=used,
        wall=clocks.wall,
        clock=clocks.clock,
    )
    token = tokens.create(
        api.refunds.store,
        "short",
        scopes=ALL,
        ids_prefix="",
        expires_at=clocks.wall() + timedelta(hours=1),
        by="the test",
    )
    request: Any = Request(token)
    for _ in range(3):
        assert (await checked.caller(request)).name == "short"
    assert reads == 1
    if how == "revoked":
        assert await asyncio.to_thread(tokens.revoke, api.refunds.store, "short")
        clocks.passed += timedelta(seconds=CACHE_SECONDS)
    else:
        clocks.passed += timedelta(hours=1, seconds=1)
    with pytest.raises(Problem) as refused:
        await checked.caller(request)
    assert refused.value.kind.status == 401


async def test_a_wrong_token_costs_one_read_whether_its_id_exists_or_not(api: Door) -> None:
    read: list[str] = []
    clocks = Clocks()

    async def digest_of(name: str) -> str | None:
        read.append(name)
        return await tokens.digest_of(api.store, name)

    async def whole(_name: str) -> tokens.Token | None:
        pytest.fail("the rest of a token was read, which takes longer if the id exists")

    async def used(_token: tokens.Token, _now: datetime) -> None:
        pytest.fail("a wrong token was used")

    checked = Tokens(digest_of, whole, used=used, wall=clocks.wall, clock=clocks.clock)
    known, unknown = api.token[:13] + "x" * 43, new_token()
    for token in (known, unknown, known, unknown):
        with pytest.raises(Problem):
            await checked.caller(Request(token))  # type: ignore[arg-type]
    assert read == [token_id(known), token_id(unknown)] * 2


async def test_a_minute_after_its_first_wrong_token_an_address_starts_again() -> None:
    clocks = Clocks()

    async def read(_: str) -> None:
        return None

    async def used(_token: tokens.Token, _now: datetime) -> None:
        pytest.fail("a wrong token was used")

    checked = Tokens(read, read, used=used, wall=clocks.wall, clock=clocks.clock)

    async def status() -> int:
        with pytest.raises(Problem) as refused:
            await checked.caller(Request(new_token()))  # type: ignore[arg-type]
        return refused.value.kind.status.value

    assert [await status() for _ in range(WRONG_IN_A_MINUTE + 1)] == [401] * 10 + [429]
    clocks.passed += timedelta(seconds=59)
    assert await status() == 429
    clocks.passed += timedelta(seconds=1)
    assert [await status() for _ in range(WRONG_IN_A_MINUTE + 1)] == [401] * 10 + [429]


async def test_tokens_and_addresses_are_kept_in_limited_number(
    api: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_MOST_CACHED", 2)
    for name in ("a", "b", "c"):
        token = api.a_token(name)
        assert (await api.get("/v1/refunds/absent", token=token)).status == 404
    checked: Any = api.part.context.auth
    assert [caller.name for _, caller in checked._valid.values()] == ["b", "c"]
    monkeypatch.setattr(auth, "_MOST_ADDRESSES", 2)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        checked._refused(address)
    assert [*checked._wrong] == ["192.0.2.2", "192.0.2.3"]


def test_so_many_tokens_and_addresses_are_kept() -> None:
    assert (auth._MOST_CACHED, auth._MOST_ADDRESSES) == (1000, 10_000)


async def test_the_hour_of_the_latest_use_is_kept(api: Door) -> None:
    await api.get("/v1/refunds")
    (token,) = tokens.listed(api.refunds.store)
    assert token.used_at is not None
    assert (token.used_at.minute, token.used_at.second) == (0, 0)
    assert datetime.now(UTC) - token.used_at < timedelta(hours=1, minutes=1)


async def test_a_token_is_let_in_on_a_full_server(api: Door, fill: Callable[[], object]) -> None:
    await api.create("order-1")
    ann = api.a_token("ann")
    fill()
    assert (await api.get("/v1/refunds/order-1", token=ann)).json["stage"] == "queued"
    assert (await api.post("/v1/pause", token=ann)).json["paused_by"] == "ann"
    assert (await api.post("/v1/refunds/order-1/cancel", token=ann)).json["status"] == "canceled"
