"""Which of our refunds the rows of a file are, and which belong to its window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.factories import NOW
from tests.support.settling import forget_id, settle, turn
from tests.support.store_world import World
from worker.errors import StoreUnavailable
from worker.model.times import to_ms
from worker.reconcile import comparing
from worker.reconcile.books import Books, Ours, books
from worker.reconcile.export import Theirs
from worker.reconcile.settled import Fields, read
from worker.reconcile.window import Window
from worker.store.store import Store

DAY = timedelta(days=1)


def month(number: int) -> Window:
    return Window(
        start=datetime(2026, number, 1, tzinfo=UTC), end=datetime(2026, number + 1, 1, tzinfo=UTC)
    )


def theirs(line: int, provider_id: str, name: str = "a", **changes: Any) -> Theirs:
    usual = Theirs(line, provider_id, f"pi_{name}", 500, "usd", "succeeded", to_ms(NOW), None)
    return usual._replace(**changes)


def ours(name: str = "a", **changes: Any) -> Ours:
    usual = Ours(name, f"pi_{name}", 500, "usd", "succeeded", f"re_{name}", to_ms(NOW), True)
    return usual._replace(**changes)


@pytest.fixture
def sides() -> Iterator[Books]:
    """Empty books."""
    with books() as sides:
        yield sides


def gather(world: World, sides: Books, number: int, *rows: Theirs) -> None:
    """Put rows and our side into the books, for a month."""
    for row in rows:
        sides.add_theirs(row)
    window = month(number)
    sides.set_window(to_ms(window.start), to_ms(window.end))
    comparing.gather(world.store, sides, window)


def paired(sides: Books) -> dict[int, Ours]:
    return {row.theirs.line: mine for mine, rows in sides.pairs() for row in rows}


def missing(sides: Books) -> list[Ours]:
    """Ours of the window that no row is."""
    assert paired(sides) == {}
    return list(sides.rest_of_ours())


@pytest.mark.parametrize("number", [1, 2])
def test_row_is_ours_by_our_id_on_its_payment_else_by_the_providers(
    world: World, sides: Books, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "PAGE", 3)
    settle(world, "a")
    gather(
        world,
        sides,
        number,
        theirs(1, "re_1", named="a"),
        theirs(2, "re_2", named="a", payment=None),
        theirs(3, "re_3", named="a", payment="pi_other"),
        theirs(4, "re_4", named="b"),
        theirs(5, "re/5"),
        theirs(6, "re_a", named="of another shop", payment="pi_other"),
    )
    mine = ours(inside=number == 1)
    assert paired(sides) == {1: mine, 2: mine, 6: mine}


def test_row_with_the_providers_id_alone_is_ours_of_another_window(
    world: World, sides: Books
) -> None:
    settle(world, "a")
    settle(world, "b")
    world.redis.hdel("refunds:refund:b", "amount")
    world.pass_time(20 * DAY)
    gather(world, sides, 2, theirs(1, "re_a"), theirs(2, "re_b"), theirs(3, "re_c"))
    assert paired(sides) == {
        1: ours(inside=False),
        2: ours("b", amount=None, inside=False),
    }


def test_owner_whose_record_is_gone_owns_no_row(world: World, sides: Books) -> None:
    world.redis.set("refunds:owner:re_a", "a")
    gather(world, sides, 1, theirs(1, "re_a"))
    assert paired(sides) == {}
    assert [row.theirs.line for row in sides.rest_of_theirs()] == [1]


def test_ours_without_an_id_is_found_by_its_payment_in_another_window(
    world: World, sides: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "PAGE", 1)
    for name in "abc":
        settle(world, name)
    for name in "ab":
        forget_id(world, name)
    world.pass_time(20 * DAY)
    gather(world, sides, 2, *(theirs(n, f"re_{n}", name) for n, name in enumerate("abc", 1)))
    assert paired(sides) == {}
    found = [(mine, [row.theirs.line for row in rows]) for mine, rows in sides.fitting()]
    assert found == [
        ([ours("a", provider_id=None, inside=False)], [1]),
        ([ours("b", provider_id=None, inside=False)], [2]),
    ]


def test_ours_of_the_window_that_no_row_is_are_all_left(world: World, sides: Books) -> None:
    settle(world, "a")
    settle(world, "b", currency="eur")
    world.redis.hdel("refunds:refund:b", "amount")
    world.pass_time(DAY)  # From the 31st of January into February.
    settle(world, "c")
    gather(world, sides, 1)
    assert missing(sides) == [ours("a"), ours("b", amount=None, currency="eur")]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_refund_that_succeeded_again_counts_where_it_last_did_and_there_only(
    world: World, sides: Books, number: int
) -> None:
    settle(world, "a")
    for status in ("failed", "succeeded"):
        world.pass_time(20 * DAY)
        turn(world, "a", status)
    last = ours(at=to_ms(NOW + 40 * DAY), inside=number == 3)
    gather(world, sides, number, theirs(1, "re_a"))
    assert paired(sides) == {1: last}


@pytest.mark.parametrize("number", [2, 3])
def test_refund_that_succeeded_again_is_missing_where_it_last_did(
    world: World, sides: Books, number: int
) -> None:
    settle(world, "a")
    for status in ("failed", "succeeded", "failed", "succeeded"):
        world.pass_time(10 * DAY)
        turn(world, "a", status)
    last = ours(at=to_ms(NOW + 40 * DAY))
    gather(world, sides, number)
    assert missing(sides) == ([last] if number == 3 else [])


@pytest.mark.parametrize("number", [1, 2])
def test_reversed_refund_is_of_no_window(world: World, sides: Books, number: int) -> None:
    settle(world, "a")
    world.pass_time(20 * DAY)
    turn(world, "a", "failed")
    gather(world, sides, number, theirs(1, "re_a", status="failed"))
    assert paired(sides) == {
        1: ours(status="failed", at=to_ms(NOW + 20 * DAY), inside=False),
    }


def test_what_the_books_have_is_not_read_again(
    world: World, sides: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def noted(store: Store, refund_ids: Iterable[str]) -> dict[str, Fields]:
        ids = list(refund_ids)
        asked.extend(ids)
        return read(store, ids)

    settle(world, "old")
    world.pass_time(DAY)
    for name in "ab":
        settle(world, name)
    monkeypatch.setattr(comparing, "read", noted)
    rows = (
        theirs(1, "re_1", named="a"),
        theirs(2, "re_b", payment=None),
        theirs(3, "re_3", "old", named="old"),
    )
    gather(world, sides, 2, *rows)
    assert asked == ["old"]
    assert {line: mine.refund_id for line, mine in paired(sides).items()} == {
        1: "a",
        2: "b",
        3: "old",
    }


def test_nothing_is_compared_that_a_crash_may_take_back(
    world: World, sides: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise StoreUnavailable("not on disk")

    monkeypatch.setattr(world.store, "confirm", refuse)
    with pytest.raises(StoreUnavailable, match="not on disk"):
        gather(world, sides, 1)
