"""Pages of refunds: each refund once whatever their times, and limited work for each page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.store_world import World
from worker.errors import InvalidRequest
from worker.model.refund import Lane, Stage, Status
from worker.store import listing
from worker.store.listing import Filter, matching, page

if TYPE_CHECKING:
    import redis


@pytest.fixture
def world(any_redis: redis.Redis) -> World:
    return World(any_redis)


def paged(world: World, wanted: Filter, limit: int) -> list[str]:
    """Return the ids of all pages."""
    ids, after = [], None
    while True:
        found = page(world.store, wanted, after=after, limit=limit)
        assert len(found.refunds) <= limit
        ids += [refund.refund_id for refund in found.refunds]
        if found.cursor is None:
            return ids
        after = found.cursor


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 500])
@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(status=Status.PENDING),
        Filter(stage=Stage.QUEUED),
        Filter(batch="b-1"),
        Filter(batch="b-1", status=Status.SUCCEEDED),
        Filter(payment_intent="pi_one"),
        Filter(reversed_only=True),
    ],
)
def test_pages_hold_what_the_whole_list_holds(world: World, wanted: Filter, limit: int) -> None:
    # The clock rests, so that all have the same score.
    for number in range(4):
        world.accept(f"one-{number}", payment_intent="pi_one")
        world.accept(f"row-{number}", lane=Lane.BULK, batch="b-1", payment_intent=f"pi_{number}")
    whole = [refund.refund_id for refund in matching(world.store, wanted)]
    assert paged(world, wanted, limit) == whole
    assert len(whole) == len(set(whole))


def test_one_that_comes_between_two_pages_repeats_no_other(world: World) -> None:
    for name in ("b", "d"):
        world.accept(name)
    first = page(world.store, Filter(), after=None, limit=1)
    for name in ("a", "c", "e"):
        world.accept(name)
    rest = page(world.store, Filter(), after=first.cursor, limit=10)
    assert [refund.refund_id for refund in (*first.refunds, *rest.refunds)] == ["b", "c", "d", "e"]


def test_a_prefix_shows_its_ids_only(world: World) -> None:
    for name in ("shop-a-1", "shop-b-1", "shop-a-2"):
        world.accept(name)
    assert paged(world, Filter(ids_prefix="shop-a-"), 1) == ["shop-a-1", "shop-a-2"]


def test_a_page_reads_a_limited_number_of_records(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE", 2)
    monkeypatch.setattr(listing, "MOST_READ", 4)
    for number in range(9):
        world.accept(f"order-{number}", payment_intent=f"pi_{number}")
    wanted = Filter(payment_intent="pi_8", batch=None)
    assert paged(world, wanted, 1) == ["order-8"]
    rare = Filter(ids_prefix="order-8")
    first = page(world.store, rare, after=None, limit=2)
    assert (first.refunds, first.cursor is None) == ([], False)
    assert paged(world, rare, 2) == ["order-8"]


@pytest.mark.parametrize("text", ["", "x", "u1", "z1.a", "u1.a b", "u-1.a", "u1234567890123456.a"])
def test_a_cursor_that_no_page_returned_is_refused(world: World, text: str) -> None:
    with pytest.raises(InvalidRequest, match="after"):
        page(world.store, Filter(), after=text, limit=1)
