"""The tokens and rates of callers, without a server: what is counted, kept and said."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from structlog.testing import capture_logs

from worker.http import problems
from worker.http.auth import ANYONE, NoTokens, Rates, Tokens, host_name
from worker.http.problems import Problem
from worker.model.callers import Caller, Scope, digest, new_token, token_id

if TYPE_CHECKING:
    from aiohttp import web

BEGUN = datetime(2026, 1, 31, 9, tzinfo=UTC)
ADDRESS = "192.0.2.1"


@dataclass(frozen=True)
class Kept:
    """A token as it is stored."""

    caller: Caller
    valid: bool = True

    def is_valid(self, now: datetime) -> bool:
        assert now >= BEGUN
        return self.valid


@dataclass
class World:
    """The stored tokens, what is read of them, and both clocks."""

    kept: dict[str, Kept] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    used: list[tuple[Kept, datetime]] = field(default_factory=list)
    passed: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = Tokens(
            self._digest_of, self._read, used=self._use, wall=self.wall, clock=lambda: self.passed
        )

    def wall(self) -> datetime:
        return BEGUN + timedelta(seconds=self.passed)

    def a_token(self, name: str, *, valid: bool = True) -> str:
        """A new token that is stored."""
        token = new_token()
        named = token_id(token) or ""
        self.digests[named] = digest(token)
        self.kept[named] = Kept(Caller(name=name, scopes=frozenset(Scope)), valid)
        return token

    async def refused(self, sent: web.Request | str, address: str = ADDRESS) -> Problem:
        """Return the answer to a request or a token that is refused."""
        asked = (
            self.tokens.caller_of(sent, address)
            if isinstance(sent, str)
            else self.tokens.caller(sent)
        )
        with pytest.raises(Problem) as refused:
            await asked
        return refused.value

    async def _digest_of(self, named: str) -> str | None:
        self.asked.append(named)
        return self.digests.get(named)

    async def _read(self, named: str) -> Kept | None:
        return self.kept.get(named)

    async def _use(self, token: Kept, now: datetime) -> None:
        self.used.append((token, now))


@pytest.fixture
def world() -> World:
    return World()


def a_request(*values: str, remote: str = ADDRESS) -> web.Request:
    """A request with these headers Authorization."""
    headers = CIMultiDict(("Authorization", value) for value in values)
    return make_mocked_request("GET", "/v1/refunds", headers).clone(remote=remote)


def is_401(problem: Problem) -> bool:
    return problem.kind is problems.UNAUTHORIZED


async def test_a_request_without_a_token_is_401_and_is_not_counted(world: World) -> None:
    for _ in range(20):
        refused = await world.refused(a_request())
        assert is_401(refused)
        assert refused.headers == {"WWW-Authenticate": "Bearer"}
    assert world.asked == []
    assert is_401(await world.refused(a_request("Bearer x")))


async def test_a_token_is_read_only_from_one_header_with_its_scheme(world: World) -> None:
    token = world.a_token("shop")
    for values in ([f"Bearer {token}"] * 2, [f"Basic {token}"], [f"x {token}"], [token]):
        assert is_401(await world.refused(a_request(*values)))
    for scheme in ("Bearer", "bearer", "BEARER "):
        assert (await world.tokens.caller(a_request(f"{scheme} {token} "))).name == "shop"


async def test_the_wrong_tokens_of_each_address_are_counted_apart(world: World) -> None:
    wrong = a_request("Bearer x")
    assert all([is_401(await world.refused(wrong)) for _ in range(10)])
    assert not is_401(await world.refused(wrong))
    assert is_401(await world.refused(a_request("Bearer x", remote="192.0.2.2")))
    without = make_mocked_request("GET", "/", {"Authorization": "Bearer x"})
    assert without.remote is None
    assert is_401(await world.refused(without))
    assert {"192.0.2.1", "192.0.2.2", ""} == {*world.tokens._wrong}


async def test_an_address_is_told_how_long_to_wait_and_logged_once(world: World) -> None:
    world.passed = 7
    with capture_logs() as logged:
        for _ in range(10):
            assert (await world.refused("x")).retry_after is None
        waits = []
        for world.passed in (7, 7.5, 8, 65.5, 66, 66.5):
            refused = await world.refused("x")
            assert refused.kind is problems.TOO_MANY
            waits.append(refused.retry_after)
    assert waits == [60, 60, 59, 2, 1, 1]
    line = {"event": "wrong_tokens", "log_level": "warning", "address": ADDRESS, "count": 10}
    assert logged == [line]


async def test_a_token_is_read_again_after_five_seconds(world: World) -> None:
    token = world.a_token("shop")
    named = token_id(token) or ""
    for world.passed in (0, 4.9, 5, 9.9):
        assert (await world.tokens.caller_of(token, ADDRESS)).name == "shop"
    assert world.asked == [named] * 2
    kept = world.kept[named]
    assert world.used == [(kept, BEGUN), (kept, BEGUN + timedelta(seconds=5))]
    world.kept[named] = Kept(kept.caller, valid=False)
    world.passed = 10
    assert is_401(await world.refused(token))
    assert len(world.used) == 2


async def test_of_many_tokens_the_1000_read_latest_are_kept(world: World) -> None:
    first, second, *rest = [world.a_token(f"shop-{number}") for number in range(1001)]
    for token in (first, second):
        await world.tokens.caller_of(token, ADDRESS)
    # The first is read again, so it is the latest of the two.
    world.passed = 6
    for token in (first, *rest[:998]):
        await world.tokens.caller_of(token, ADDRESS)
    world.asked.clear()
    await world.tokens.caller_of(first, ADDRESS)
    assert world.asked == []
    await world.tokens.caller_of(rest[998], ADDRESS)
    world.passed = 10
    await world.tokens.caller_of(first, ADDRESS)
    assert world.asked == [token_id(rest[998])]
    world.asked.clear()
    await world.tokens.caller_of(second, ADDRESS)
    await world.tokens.caller_of(first, ADDRESS)
    assert world.asked == [token_id(second), token_id(first)]


async def test_of_many_addresses_the_10000_that_were_wrong_latest_are_counted(
    world: World,
) -> None:
    for _ in range(11):
        await world.refused("x", "first")
    for number in range(9_999):
        world.tokens._refused(f"address-{number}")
    assert not is_401(await world.refused("x", "first"))
    for number in range(10_000):
        world.tokens._refused(f"address-{number}")
    assert is_401(await world.refused("x", "first"))


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost:8080", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:80", "::1"),
        ("[::1", ""),
        ("", ""),
    ],
)
def test_a_host_has_a_name_or_none(host: str, name: str) -> None:
    assert host_name(host) == name


def asked_of(host: str, **headers: str) -> web.Request:
    """A request without a token, sent to this name."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_mocked_request("GET", "/v1/refunds", CIMultiDict(named, Host=host))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080"])
async def test_without_tokens_every_program_of_this_machine_is_answered(host: str) -> None:
    assert await NoTokens().caller(asked_of(host)) is ANYONE


@pytest.mark.parametrize(
    "request_",
    [
        asked_of("localhost", Origin="http://localhost"),
        asked_of("localhost", Sec_Fetch_Site="same-origin"),
        asked_of("localhost", Origin="http://localhost", Sec_Fetch_Site="same-origin"),
        asked_of("rebound.example.com"),
        asked_of("192.0.2.1"),
        asked_of("[::1"),
    ],
    ids=["origin", "fetch", "both", "another name", "another address", "no name"],
)
async def test_without_tokens_no_page_of_a_browser_is_answered(request_: web.Request) -> None:
    with pytest.raises(Problem) as refused:
        await NoTokens().caller(request_)
    assert refused.value.kind is problems.FORBIDDEN
    assert "REFUNDS_HTTP_AUTH" in str(refused.value)


@pytest.mark.parametrize(
    ("rate", "takes"),
    [
        # When a request comes, and how long its caller has to wait: 0 if it is let in.
        (0.5, [(0, 0), (0, 2), (1, 1), (1.5, 1), (2, 0), (2, 2), (100, 0), (100, 2)]),
        (0.1, [(0, 0), (0, 10), (4, 6), (9.5, 1), (10, 0)]),
        (2, [(0, 0), (0, 0), (0, 1), (0.25, 1), (0.5, 0), (0.5, 1), (9, 0), (9, 0), (9, 1)]),
        (0, [(0, 0)] * 5),
    ],
)
def test_a_caller_is_told_how_long_to_wait(rate: float, takes: list[tuple[float, int]]) -> None:
    clock = iter([now for now, _ in takes] + [9.0])
    rates = Rates(rate, clock=lambda: next(clock))
    for _, wait in takes:
        if not wait:
            rates.take("shop")
            continue
        with pytest.raises(Problem) as refused:
            rates.take("shop")
        assert (refused.value.kind, refused.value.retry_after) == (problems.TOO_MANY, wait)
    rates.take("another")
