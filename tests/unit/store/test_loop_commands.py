"""Commands of the store on the event loop: in few pipelines, and the disk waited for."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import redis
import redis.asyncio
from redis import exceptions

from tests.factories import NOW
from tests.support.store_calls import BROKEN, accept, asked, settings_read, wish
from worker.errors import NotDurable, StoreUnavailable
from worker.model.times import from_ms
from worker.rules import decisions
from worker.store import async_store, reads, record_time, saves, scripts
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command

DAY_MS = 86_400_000


@pytest.fixture
def loop_store(async_redis: redis.asyncio.Redis) -> AsyncStore:
    return AsyncStore(async_redis, durable=False)


async def test_calls_on_the_loop_leave_in_no_transaction(
    loop_store: AsyncStore, sync_redis: redis.Redis
) -> None:
    await loop_store.run(reads.load("a"))
    sync_redis.config_resetstat()
    await asyncio.gather(*(loop_store.run(reads.load(name)) for name in "ab"))
    seen = asked(sync_redis)
    assert seen["evalsha"] == 2
    assert not {"multi", "exec", "script|load"} & set(seen)


async def test_only_the_calls_on_the_loop_whose_script_was_forgotten_are_repeated(
    loop_store: AsyncStore, sync_redis: redis.Redis
) -> None:
    sync_redis.script_flush()
    await loop_store.run(reads.load("a"))
    sync_redis.config_resetstat()
    results = await asyncio.gather(
        loop_store.run(reads.load("a")),
        loop_store.run(accept()),
        loop_store.run(reads.siblings("pi", "a")),
    )
    assert (results[0].refund, results[1].result, results[2]) == (None, "created", ())
    assert asked(sync_redis)["evalsha"] == 5


async def test_at_most_so_many_calls_leave_in_one_pipeline(
    loop_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loop_store.run(reads.load("a"))
    sizes: list[int] = []
    execute = loop_store._execute

    async def counted(group: Any) -> list[Any]:
        sizes.append(len(group))
        return await execute(group)

    monkeypatch.setattr(loop_store, "_execute", counted)
    await asyncio.gather(*(loop_store.run(reads.load("a")) for _ in range(600)))
    assert sizes == [256, 256, 88]


async def test_no_more_than_three_pipelines_are_under_way_at_a_time(
    loop_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loop_store.run(reads.load("a"))
    under_way, most = 0, 0
    execute = loop_store._execute

    async def counted(group: Any) -> list[Any]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        results = await execute(group)
        under_way -= 1
        return results

    monkeypatch.setattr(loop_store, "_execute", counted)
    asked_for = []
    for _ in range(20):
        asked_for.append(asyncio.create_task(loop_store.run(reads.load("a"))))
        await asyncio.sleep(0)
    await asyncio.gather(*asked_for)
    assert most == async_store.TRIPS == 3


async def _with_an_end(records: AsyncStore) -> AsyncStore:
    """The store, with the refund "a", which ended at `NOW`."""
    writing = AsyncStore(records.redis, durable=False)
    writing.now = NOW
    await writing.run(accept())
    moving = (await writing.load("a")).refund
    assert moving is not None
    await writing.run(saves.save(moving, decisions.cancel(moving)))
    return records


@pytest.mark.usefixtures("waitaof")
async def test_how_a_refund_ended_is_on_disk_before_it_is_loaded(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = await _with_an_end(AsyncStore(async_redis))
    records.wait_for_disk = True
    monkeypatch.setattr(records, "check_disk", lambda _: AsyncStore.check_disk(records, [0, 0]))
    with pytest.raises(StoreUnavailable):
        await records.load("a")


@pytest.mark.usefixtures("waitaof")
@pytest.mark.parametrize(
    ("later", "waits"),
    [(record_time.MOST_BACK, 0), (record_time.MOST_BACK - timedelta(milliseconds=1), 1)],
    ids=["known", "may be later"],
)
async def test_end_on_the_loop_is_waited_for_until_it_is_known_to_be_on_disk(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis, later: timedelta, waits: int
) -> None:
    records = await _with_an_end(AsyncStore(async_redis))
    records.wait_for_disk = True
    # Another script may see a time that is a second earlier.
    records.now = NOW + later
    await records.confirm_final(NOW)
    sync_redis.config_resetstat()
    await records.load("a")
    assert asked(sync_redis).get("waitaof", 0) == waits


async def test_where_memory_is_enough_an_end_is_loaded_by_one_command(
    loop_store: AsyncStore, sync_redis: redis.Redis
) -> None:
    records = await _with_an_end(loop_store)
    await records.load("a")
    sync_redis.config_resetstat()
    await records.load("a")
    assert asked(sync_redis)["evalsha"] == 1


@pytest.mark.usefixtures("waitaof")
async def test_group_on_the_loop_waits_for_the_disk_where_any_of_it_is_durable(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis
) -> None:
    records = AsyncStore(async_redis)
    await async_redis.script_flush()
    await records.load_scripts([scripts.LOAD, scripts.CREATE])
    assert await async_redis.script_exists(scripts.LOAD.sha, scripts.CREATE.sha) == [True, True]
    records.wait_for_disk = True
    sync_redis.config_resetstat()
    loaded, created = await asyncio.gather(records.run(reads.load("a")), records.run(accept()))
    assert (loaded.refund, created.result) == (None, "created")
    assert asked(sync_redis)["waitaof"] == 1
    await records.run(reads.load("a"))
    assert asked(sync_redis)["waitaof"] == 1


async def test_call_made_in_the_moment_in_which_every_pipeline_ends_is_not_left_waiting(
    loop_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loop_store.run(reads.load("a"))
    go, execute, held_back = asyncio.Event(), loop_store._execute, asyncio.Semaphore(0)

    async def held(group: Any) -> list[Any]:
        results = await execute(group)
        held_back.release()
        await go.wait()
        return results

    async def loaded(times: int) -> None:
        for _ in range(times):
            await loop_store.run(reads.load("a"))

    monkeypatch.setattr(loop_store, "_execute", held)
    asked_for = []
    for times in (2, *[1] * (async_store.TRIPS - 1)):
        asked_for.append(asyncio.create_task(loaded(times)))
        # Each is on its way before the next one asks.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    for _ in asked_for:
        await held_back.acquire()
    go.set()
    await asyncio.wait_for(asyncio.gather(*asked_for), 10)


async def test_disk_on_the_loop_is_asked_about_once_and_anew_where_it_is_demanded(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis
) -> None:
    records = AsyncStore(async_redis)
    await records.run(reads.load("a"))
    assert wish(records) is None
    await asyncio.gather(records.run(reads.load("a")), records.run(accept()))
    assert wish(records) is False
    sync_redis.config_resetstat()
    await records.run(accept("b"))
    assert settings_read(sync_redis) == 0
    await records.require_durable()
    assert settings_read(sync_redis) == 2
    await AsyncStore(async_redis, durable=False).require_durable()
    assert settings_read(sync_redis) == 2


@pytest.mark.usefixtures("waitaof")
@pytest.mark.parametrize("forbidden", [True, False])
async def test_server_that_forbids_the_loop_to_read_its_settings_is_waited_for(
    async_redis: redis.asyncio.Redis, *, forbidden: bool
) -> None:
    if forbidden:
        await async_redis.execute_command("ACL", "SETUSER", "default", "-config|get")
    try:
        records = AsyncStore(async_redis)
        await records.require_durable()
        assert records.wait_for_disk is forbidden
    finally:
        await async_redis.execute_command("ACL", "SETUSER", "default", "+@all")


async def test_disk_that_was_not_reached_is_an_error_of_those_alone_who_wanted_it(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = AsyncStore(async_redis)
    records.wait_for_disk = True
    await records.load_scripts([scripts.LOAD, scripts.CREATE])
    replies: list[tuple[Any, type[Exception]]] = [
        (exceptions.ResponseError("ERR unknown command"), NotDurable),
        (exceptions.ConnectionError("gone"), StoreUnavailable),
    ]
    for reply, error in replies:

        def answered(_: Any, reply: Any = reply) -> None:
            AsyncStore.check_disk(records, reply)

        monkeypatch.setattr(records, "check_disk", answered)
        nobody: Command[Any] = reads.load("nobody")
        results: Any = await asyncio.gather(
            records.run(nobody), records.run(accept()), return_exceptions=True
        )
        assert isinstance(results[1], error)
        assert isinstance(results[0], reads.Loaded)
        assert results[0].refund is None


async def test_server_that_is_gone_is_away_to_each_caller_and_serves_again_when_it_is_back(
    loop_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as gone:

        async def refused(*_: Any) -> Any:
            raise exceptions.ConnectionError("refused")

        gone.setattr(loop_store, "_execute", refused)
        results = await asyncio.gather(
            *(loop_store.run(reads.load(name)) for name in "abc"), return_exceptions=True
        )
        assert [type(result) for result in results] == [StoreUnavailable] * 3
        assert "cannot be reached" in str(results[0])
    assert (await loop_store.run(reads.load("a"))).refund is None


async def test_error_that_says_nothing_of_the_server_stays_what_it_is(
    loop_store: AsyncStore,
) -> None:
    with pytest.raises(exceptions.ResponseError, match=r"(?i)arg"):
        await loop_store.run(BROKEN)
    assert isinstance(loop_store._foreign(ValueError("x")), ValueError)
    assert isinstance(loop_store._foreign(OSError("gone")), StoreUnavailable)
    assert isinstance(loop_store._foreign(exceptions.ConnectionError("gone")), StoreUnavailable)


async def test_flag_is_raised_at_the_servers_time_once_or_anew_and_lowered(
    loop_store: AsyncStore,
) -> None:
    assert await loop_store.flagged("paused") is False
    assert await loop_store.flag("paused", once=True) is True
    seconds, micros = await loop_store.redis.time()
    raised: Any = await loop_store.redis.hget("refunds:meta", "paused")
    assert 0 <= seconds * 1000 + micros // 1000 - int(raised) < 60_000
    assert await loop_store.flagged("paused") is True
    await loop_store.redis.hset("refunds:meta", "paused", "1")
    assert await loop_store.flag("paused", once=True) is False
    assert await loop_store.redis.hget("refunds:meta", "paused") == "1"
    assert await loop_store.flag("paused", once=False) is True
    assert await loop_store.redis.hget("refunds:meta", "paused") != "1"
    await loop_store.unflag("paused")
    assert await loop_store.flagged("paused") is False


async def test_worker_that_beats_is_listed_and_one_silent_for_a_day_is_forgotten(
    loop_store: AsyncStore,
) -> None:
    seconds, _ = await loop_store.redis.time()
    now = int(seconds) * 1000
    await loop_store.redis.zadd(
        "refunds:workers", {"silent": now - DAY_MS - 5000, "late": now - DAY_MS + 600_000}
    )
    await loop_store.beat("here")
    listed: Any = await loop_store.redis.zrange("refunds:workers", 0, -1, withscores=True)
    known = dict(listed)
    assert set(known) == {"here", "late"}
    assert 0 <= known["here"] - now < 60_000
    await loop_store.leave("here")
    assert await loop_store.redis.zrange("refunds:workers", 0, -1) == ["late"]


async def test_times_are_those_of_the_records_to_the_millisecond(loop_store: AsyncStore) -> None:
    at = 4_000_000_000_999
    loop_store.now = from_ms(at)
    await loop_store.redis.zadd("refunds:workers", {"silent": at - DAY_MS, "late": at - DAY_MS + 1})
    await loop_store.beat("here")
    listed: Any = await loop_store.redis.zrange("refunds:workers", 0, -1, withscores=True)
    assert dict(listed) == {"late": at - DAY_MS + 1, "here": at}


async def test_each_beat_notes_the_time_of_the_records(loop_store: AsyncStore) -> None:
    for at in (4_000_000_000_000, 4_000_000_005_000):
        loop_store.now = from_ms(at)
        await loop_store.beat("here")
        assert await loop_store.redis.hget("refunds:clock", "at") == str(at)


async def test_what_a_beat_saw_is_told_to_every_script_after_it(
    async_redis: redis.asyncio.Redis,
) -> None:
    own = [0.0]
    store = AsyncStore(async_redis, durable=False, monotonic=lambda: own[0])
    at = 4_000_000_000_000
    store.now = from_ms(at)
    await store.beat("here")
    # The server that answers now was promoted, and its clock is a day behind.
    store.now, own[0] = from_ms(at - DAY_MS), 60.0
    loaded = await store.run(reads.load("a"))
    assert loaded.now == from_ms(at + 60_000 - 6)


async def test_closing_a_store_closes_its_client(loop_store: AsyncStore) -> None:
    pending = asyncio.create_task(loop_store.run(reads.load("a")))
    await asyncio.sleep(0)
    closed: list[bool] = []
    close = loop_store.redis.aclose

    async def noted() -> None:
        closed.append(pending.done() or not loop_store._flushers)
        await close()

    loop_store.redis.aclose = noted  # type: ignore[method-assign,assignment]
    await loop_store.close()
    assert closed == [True]
    assert (await pending).refund is None
