"""A worker erases old metadata page by page, and one odd record does not stop the others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import redis.asyncio

from tests.factories import NOW, SECOND, a_request, done_as
from tests.support.store_world import LEASE
from worker.engine import eraser
from worker.engine.eraser import erase_metadata
from worker.errors import StoreUnavailable
from worker.model.refund import Lane, Refund
from worker.rules import attempts
from worker.rules.attempts import Rules
from worker.store import claims, creations, reads, saves, scripts
from worker.store.async_store import AsyncStore

AGE = timedelta(days=30)


@pytest.fixture
def store(async_any_redis: redis.asyncio.Redis) -> AsyncStore:
    store = AsyncStore(async_any_redis, durable=False)
    store.now = NOW
    return store


def pass_time(store: AsyncStore, span: timedelta) -> None:
    assert store.now is not None
    store.now += span


async def settle(store: AsyncStore, *refund_ids: str) -> None:
    """Settle refunds with metadata, a second apart."""
    for refund_id in refund_ids:
        request = a_request(
            refund_id, payment_intent=f"pi_{refund_id}", metadata={"customer": refund_id}
        )
        await store.run(creations.create(request, Lane.SINGLE))
        claim = await store.run(
            claims.claim(refund_id, "send", token=refund_id, lease=LEASE, seq="0")
        )
        assert claim.refund is not None
        outcome = done_as("succeeded", id=f"re_{refund_id}")
        step = attempts.after_attempt(claim.refund, outcome, Rules(), claim.now, 0)
        await store.run(saves.save(claim.refund, step))
        pass_time(store, SECOND)


async def read(store: AsyncStore, refund_id: str) -> Refund:
    refund = (await store.run(reads.load(refund_id))).refund
    assert refund is not None
    return refund


async def test_one_pass_erases_every_refund_that_is_old_enough(
    store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eraser, "MOST", 2)
    old = [f"old{number}" for number in range(5)]
    await settle(store, *old)
    pass_time(store, AGE)
    await settle(store, "new")
    assert await erase_metadata(store, AGE) == 5
    assert [(await read(store, refund_id)).metadata for refund_id in old] == [{}] * 5
    assert (await read(store, "new")).metadata == {"customer": "new"}
    assert await erase_metadata(store, AGE) == 0


async def test_pass_is_bounded_and_the_next_one_resumes(
    store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eraser, "MOST", 1)
    monkeypatch.setattr(eraser, "PAGES", 2)
    await settle(store, *(f"r{number}" for number in range(5)))
    pass_time(store, AGE)
    assert [await erase_metadata(store, AGE) for _ in range(4)] == [2, 2, 1, 0]


async def test_record_that_cannot_be_read_is_reported_and_the_others_are_erased(
    store: AsyncStore, log: list[Any]
) -> None:
    await settle(store, "odd", "sound")
    await store.redis.hset("refunds:refund:odd", "metadata", "not JSON")
    pass_time(store, AGE)
    assert await erase_metadata(store, AGE) == 1
    assert (await read(store, "sound")).metadata == {}
    assert [(line["event"], line["refund_id"]) for line in log if line.get("alarm")] == [
        ("metadata_not_erased", "odd")
    ]


async def test_worker_that_dies_before_the_cursor_moves_leaves_nothing_out(
    store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settle(store, "r0", "r1")
    pass_time(store, AGE)
    real = store.run

    async def dying(command: Any) -> Any:
        if command.script is scripts.SAVE and command.arguments[0] == "r1":
            raise StoreUnavailable("away")
        return await real(command)

    monkeypatch.setattr(store, "run", dying)
    with pytest.raises(StoreUnavailable):
        await erase_metadata(store, AGE)
    monkeypatch.setattr(store, "run", real)
    assert not await store.redis.exists("refunds:watch")
    await erase_metadata(store, AGE)
    assert [(await read(store, name)).metadata for name in ("r0", "r1")] == [{}, {}]


async def test_record_that_cannot_be_written_stops_no_other_and_is_an_alarm(
    store: AsyncStore, log: list[Any]
) -> None:
    await settle(store, "odd", "next")
    await store.redis.delete("refunds:history:odd")
    await store.redis.set("refunds:history:odd", "x")
    pass_time(store, AGE + SECOND)
    assert await erase_metadata(store, AGE) == 1
    assert (await read(store, "next")).metadata == {}
    assert [line["refund_id"] for line in log if line.get("alarm")] == ["odd"]
