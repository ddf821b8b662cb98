"""Who did what is noted before it is done, and what came of it after."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import pytest

from worker.batches.moves import Retried
from worker.errors import NotInReview, StoreUnavailable
from worker.store import audit
from worker.store.async_store import AsyncStore
from worker.store.audit import Deed, Entry
from worker.store.connection import connect
from worker.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    import redis.asyncio

    from tests.support.store_world import World

DEED = Deed(
    by="ann", via="page", address="10.0.0.7", action="resolve as resend", target="order-1", note="!"
)


def fails(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


def only_entry(store: Store) -> Entry:
    (entry,) = audit.entries(store)
    return entry


@pytest.mark.parametrize(
    ("value", "result"),
    [
        *((None, "done"), (True, "done"), ((True, 7), "done"), ([], "done")),
        *((False, "unchanged"), ((False, 7), "unchanged"), (0, "unchanged")),
        *((1, "done: 1"), (7, "done: 7")),
        *((Retried(retried=2, moved=1), "done: 2"), (Retried(moved=1), "unchanged")),
    ],
)
def test_a_deed_is_kept_with_who_did_it_and_its_result(
    world: World, value: object, result: str
) -> None:
    assert audit.carry_out(world.store, DEED, lambda: value) is value
    entry = only_entry(world.store)
    assert (entry.deed, entry.result) == (DEED, result)
    assert entry.as_dict()["by"] == "ann"


def test_a_target_that_is_known_at_the_end_is_kept_with_the_deed(world: World) -> None:
    deed = Deed(by="ann", via="api", address="", action="import", note="season.csv")

    def work() -> str:
        assert only_entry(world.store).deed == deed
        return "b-1"

    audit.carry_out(world.store, deed, work, str)
    (entry,) = audit.selected(audit.entries(world.store), target="b-1")
    assert entry.deed == replace(deed, target="b-1")


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (NotInReview("refund order-1 is queued"), "refused: refund order-1 is queued"),
        (StoreUnavailable("the server is away"), "unknown: the server is away"),
        (KeyboardInterrupt(), "unknown"),
        (ValueError("odd"), "unknown"),
    ],
)
def test_a_deed_that_failed_is_kept_with_the_reason(
    world: World, error: BaseException, result: str
) -> None:
    with pytest.raises(type(error)):
        audit.carry_out(world.store, DEED, fails(error))
    assert only_entry(world.store).result == result


def test_a_deed_is_noted_before_it_is_done(world: World) -> None:
    seen = audit.carry_out(world.store, DEED, lambda: only_entry(world.store))
    assert (seen.deed, seen.result) == (DEED, "unknown")


def test_a_deed_that_cannot_be_noted_is_not_done() -> None:
    done: list[int] = []
    with pytest.raises(StoreUnavailable):
        audit.carry_out(Store(connect("redis://127.0.0.1:1/0")), DEED, lambda: done.append(1))
    assert done == []


def test_a_done_deed_stays_done_if_its_result_cannot_be_noted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_server() -> int:
        monkeypatch.setattr(world.store, "run", fails(StoreUnavailable("away")))
        return 7

    assert audit.carry_out(world.store, DEED, lose_the_server) == 7
    assert only_entry(world.store).result == "unknown"


def test_the_newest_is_first_and_one_person_or_target_can_be_selected(world: World) -> None:
    for by, target in (("ann", "order-1"), ("bob", "order-1"), ("ann", "b-1")):
        deed = Deed(by=by, via="api", address="", action="cancel", target=target)
        audit.carry_out(world.store, deed, lambda: None)

    def chosen(by: str | None = None, target: str | None = None) -> list[tuple[str, str]]:
        found = audit.selected(audit.entries(world.store), by=by, target=target)
        return [(each.deed.by, each.deed.target) for each in found]

    assert chosen() == [("ann", "b-1"), ("bob", "order-1"), ("ann", "order-1")]
    assert chosen(by="ann") == [("ann", "b-1"), ("ann", "order-1")]
    assert chosen(by="ann", target="order-1") == [("ann", "order-1")]


def test_a_result_is_found_that_was_noted_long_after_its_deed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_AT_ONCE", 3)

    def meanwhile() -> None:
        for _ in range(5):
            audit.carry_out(world.store, DEED, lambda: False)

    audit.carry_out(world.store, DEED, meanwhile)
    assert [each.result for each in audit.entries(world.store)] == ["unchanged"] * 5 + ["done"]


def test_the_stream_does_not_grow_without_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "KEPT", 10)
    for _ in range(300):
        audit.carry_out(world.store, DEED, lambda: None)
    # The server removes whole nodes of a hundred entries.
    assert 10 <= world.redis.xlen("refunds:audit") <= 200


def test_what_people_wrote_is_kept_on_one_line_and_of_limited_length(world: World) -> None:
    deed = Deed(by="a\nb", via="api", address="", action="cancel", target="x" * 999, note="n" * 999)
    audit.carry_out(world.store, deed, lambda: None)
    kept = only_entry(world.store).deed
    assert (kept.by, len(kept.target), len(kept.note)) == ("a b", 300, 500)


async def test_an_event_loop_notes_the_same(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis
) -> None:
    store = AsyncStore(async_redis, durable=False)

    async def done() -> int:
        return 7

    async def refused() -> NoReturn:
        raise NotInReview("no")

    assert await audit.carry_out_async(store, DEED, done) == 7
    with pytest.raises(NotInReview):
        await audit.carry_out_async(store, DEED, refused)
    results = [each.result for each in audit.entries(Store(sync_redis))]
    assert results == ["refused: no", "done: 7"]
    await store.close()
