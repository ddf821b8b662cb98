"""The feed of moves, and final statuses that are read by the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.cli_runner import Records
from tests.support.installation import calls
from worker.sandbox.redis_server import running_server
from worker.store import moves
from worker.store.async_store import AsyncStore
from worker.store.connection import connect, connect_async
from worker.store.store import Store

if TYPE_CHECKING:
    import redis
    import redis.asyncio


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("0-0", True),
        ("1769850000000-7", True),
        (f"{2**64 - 1}-0", True),
        (f"{2**64}-0", False),
        ("1", False),
        ("1-", False),
        ("-1-0", False),
        ("1-0 ", False),
        ("$", False),
    ],
)
def test_a_position_has_two_numbers(text: str, *, is_one: bool) -> None:
    assert moves.is_move_id(text) is is_one


async def test_moves_are_read_after_a_position(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis
) -> None:
    store = AsyncStore(async_redis, durable=False)
    assert await moves.latest(store) == moves.BEGINNING
    assert await moves.read(store, moves.BEGINNING) == ([], moves.BEGINNING, False, False)
    Records(store=Store(sync_redis)).succeeded("order-1")
    every = await moves.read(store, moves.BEGINNING)
    assert [(move.version, move.source, move.to) for move in every.moves] == [
        (1, None, "queued"),
        (2, "queued", "sending"),
        (3, "sending", "settled"),
    ]
    assert every.last == await moves.latest(store)
    first, second, _ = every.moves
    assert (await moves.read(store, first.move_id, 1)).moves == [second]
    found = await moves.follow(store, first.move_id, 1)
    assert [stage for _, _, stage in found] == ["sending", "settled"]
    assert await moves.follow(store, every.last, 1) == []
    assert not await moves.went_back(store, every.last)
    assert await moves.went_back(store, f"{every.last}9")


async def test_a_gap_is_seen_from_a_position_and_from_the_beginning(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AsyncStore(async_redis, durable=False)
    Records(store=Store(sync_redis)).succeeded("order-1")
    first = (await moves.read(store, moves.BEGINNING)).moves[0].move_id
    assert not (await moves.read(store, first)).gap
    sync_redis.xtrim("refunds:events", maxlen=1, approximate=False)
    assert (await moves.read(store, first)).gap
    assert not (await moves.read(store, moves.BEGINNING)).gap
    monkeypatch.setattr(moves, "KEPT", 1)
    assert (await moves.read(store, moves.BEGINNING)).gap


@pytest.mark.usefixtures("waitaof")
async def test_a_final_status_is_on_disk_before_it_is_returned_and_waited_for_once() -> None:
    with running_server(appendfsync="everysec") as server:
        Records(store=Store(connect(server.url))).succeeded("order-1")
        Records(store=Store(connect(server.url))).queued("order-2")
        store, watching = AsyncStore(connect_async(server.url)), connect(server.url)
        await store.require_durable()
        before = calls(watching, "waitaof")
        assert (await store.load("order-2")).refund is not None
        assert (await store.load("absent")).refund is None
        assert calls(watching, "waitaof") == before
        for _ in range(3):
            loaded = await store.load("order-1")
            assert loaded.refund is not None
            assert loaded.refund.settled
        await moves.read(store, moves.BEGINNING)
        # At most a second may pass until a later moment is known to be on disk.
        assert before < calls(watching, "waitaof") <= before + 4
        await store.close()
        watching.close()
