"""What a store asks of its server, command by command.

Nothing twice, nothing in vain, nothing left unread.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
import redis
import redis.asyncio
from redis import exceptions

from tests.factories import NOW, a_refund, a_request
from worker.errors import NotDurable, NotStorable, StoreUnavailable
from worker.model.refund import Lane, Refund, Stage, Status
from worker.model.steps import Step
from worker.model.times import from_ms
from worker.rules import decisions
from worker.sandbox.redis_server import ThrowawayServer
from worker.store import async_store, commands, scripts, store
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command, Script
from worker.store.store import Store

DAY_MS = 86_400_000


def accept(refund_id: str = "a", **fields: Any) -> Command[Any]:
    return scripts.create(
        a_request(refund_id, **({"payment_intent": f"pi_{refund_id}"} | fields)), Lane.SINGLE
    )


def asked(client: redis.Redis) -> dict[str, int]:
    """How often each command was carried out since the statistics were begun anew."""
    statistics: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in statistics.items()}


def settings_read(client: redis.Redis) -> int:
    """How often CONFIG GET was carried out since then.

    Redis 6.2 counts it with the resetting itself.
    """
    statistics = asked(client)
    return (
        statistics.get("config|get", 0)
        if "config|resetstat" in statistics
        else statistics["config"] - 1
    )


def wish(records: Store | AsyncStore) -> bool | None:
    """Whether a store waits for the disk, None while it has not asked."""
    return records.wait_for_disk


@pytest.fixture
def loop_store(async_redis: redis.asyncio.Redis) -> AsyncStore:
    return AsyncStore(async_redis, durable=False)


class _Broken(Script):
    def __init__(self) -> None:
        super().__init__("load")
        self.name = "broken"
        self.text = "return redis.call('HGETALL')"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


BROKEN: Command[Any] = Command(script=_Broken(), arguments=[], read=lambda reply: reply)


LOAD: Command[Any] = scripts.load("a")


# Defaults


def test_disk_is_waited_for_five_seconds_and_lists_are_read_by_five_hundred() -> None:
    assert (commands.WAITAOF_MS, store.PAGE) == (5000, 500)


def test_the_records_time_goes_back_by_a_second_at_most() -> None:
    # A script keeps the largest time once it is a second past the one that is kept: see
    # _record.lua.
    assert timedelta(seconds=1) == scripts.MOST_BACK


def test_stores_unless_told_otherwise_are_durable_and_keep_for_four_hundred_days(
    sync_redis: redis.Redis,
) -> None:
    client: Any = redis.asyncio.Redis()
    for made in (Store(sync_redis), AsyncStore(client)):
        assert (made.prefix, made.retention_ms, made.address) == ("refunds:", 400 * DAY_MS, "redis")
        assert (made.wants_disk, made.wait_for_disk) == (True, None)
        assert made.now is None
    for made in (Store(sync_redis, durable=False), AsyncStore(client, durable=False)):
        assert (made.wants_disk, made.wait_for_disk) == (False, False)


def test_script_is_asked_for_with_prefix_clock_and_retention(sync_redis: redis.Redis) -> None:
    made = Store(sync_redis, prefix="p:", retention=timedelta(milliseconds=7))
    call = scripts.load("a")
    assert made.raw_command(call) == ["EVALSHA", call.script.sha, 0, "p:", "", 7, "a"]
    made.now = datetime.fromtimestamp(1, NOW.tzinfo)
    assert made.raw_command(call) == ["EVALSHA", call.script.sha, 0, "p:", "1000", 7, "a"]


# The blocking store


def test_calls_leave_in_one_pipeline_and_in_no_transaction(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis)
    records.run(accept())
    records.run(scripts.load("a"))
    sync_redis.config_resetstat()
    records.run_many([scripts.load("a"), scripts.load("b")])
    records.get("a")
    records.counts()
    seen = asked(sync_redis)
    assert seen["evalsha"] == 2
    assert "script|load" not in seen
    assert not {"multi", "exec"} & set(seen)


def test_only_the_calls_whose_script_was_forgotten_are_repeated(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis, durable=False)
    records.run(scripts.load("a"))
    sync_redis.config_resetstat()
    batch: list[Command[Any]] = [scripts.load("a"), accept(), scripts.load("b")]
    loaded, created, again = records.run_many(batch)
    assert (loaded.refund, created.result, again.refund) == (None, "created", None)
    assert asked(sync_redis)["evalsha"] == 4


def test_first_error_of_a_pipeline_is_raised(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis, durable=False)
    with pytest.raises(exceptions.ResponseError, match=r"(?i)arg"):
        records.run_many([LOAD, BROKEN, LOAD])


@pytest.mark.usefixtures("waitaof")
def test_pipeline_waits_for_the_disk_where_any_of_it_is_durable(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis)
    records.wait_for_disk = True
    sync_redis.config_resetstat()
    loaded, created = records.run_many([LOAD, accept()])
    assert (loaded.refund, created.result) == (None, "created")
    # Once for the scripts that were unknown, once for their repetition.
    assert asked(sync_redis)["waitaof"] == 2
    sync_redis.config_resetstat()
    records.run_many([scripts.load("a"), scripts.load("b")])
    assert "waitaof" not in asked(sync_redis)


def test_disk_is_asked_about_before_the_first_durable_call_of_a_pipeline_and_never_again(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis)
    records.run(scripts.load("a"))
    assert wish(records) is None
    records.run_many([LOAD, accept()])
    assert wish(records) is False
    sync_redis.config_resetstat()
    records.run(accept("b"))
    assert settings_read(sync_redis) == 0
    records.require_durable()
    assert settings_read(sync_redis) == 2


@pytest.mark.usefixtures("waitaof")
def test_confirming_waits_for_the_disk_after_a_write_of_its_own(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis)
    records.wait_for_disk = True
    sync_redis.config_resetstat()
    records.confirm()
    seen = asked(sync_redis)
    # The script is sent once more if the server did not know it.
    assert seen["waitaof"] in {1, 2}
    assert sync_redis.hgetall("refunds:meta") == {"confirmed": "1"}


def _ended(records: Store, refund_id: str) -> Refund:
    """A refund that has ended at the present moment of the records."""
    wish_of_it, records.wait_for_disk = records.wait_for_disk, False
    records.run(scripts.create(a_request(refund_id, payment_intent=f"pi_{refund_id}"), Lane.SINGLE))
    (moving,) = records.get_many([refund_id])
    assert moving is not None
    records.run(scripts.save(moving, decisions.cancel(moving)))
    (ended,) = records.get_many([refund_id])
    assert ended is not None
    records.wait_for_disk = wish_of_it
    return ended


READERS: Final[Mapping[str, Callable[[Store], object]]] = {
    "one": lambda records: records.get("ended"),
    "many": lambda records: records.get_many(["moving", "ended", "never"]),
    "history": lambda records: records.history("ended"),
}


@pytest.mark.usefixtures("waitaof")
@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_how_a_refund_ended_is_on_disk_before_it_is_told(
    sync_redis: redis.Redis, read: Callable[[Store], object]
) -> None:
    records = _Deaf(sync_redis)
    _ended(records, "ended")
    records.wait_for_disk = True
    with pytest.raises(StoreUnavailable):
        read(records)


@pytest.mark.usefixtures("waitaof")
def test_a_refund_that_moves_is_read_without_a_wait(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis)
    records.run(accept("moving"))
    records.wait_for_disk = True
    sync_redis.config_resetstat()
    records.get_many(["moving", "never"])
    assert len(records.history("moving")) == 1
    assert records.history("never") == []
    assert "waitaof" not in asked(sync_redis)


@pytest.mark.usefixtures("waitaof")
def test_an_end_that_is_known_to_be_on_disk_is_not_waited_for_a_second_time(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis)
    records.wait_for_disk = True
    records.now = NOW
    _ended(records, "a")
    # Another script may see a time that is so much earlier: what ended since might have that one.
    records.now = NOW + scripts.MOST_BACK
    records.confirm()
    sync_redis.config_resetstat()
    for _ in range(3):
        records.get("a")
        records.history("a")
    assert "waitaof" not in asked(sync_redis)


@pytest.mark.usefixtures("waitaof")
def test_an_end_that_may_be_later_than_what_is_known_to_be_on_disk_is_waited_for(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis)
    records.wait_for_disk = True
    records.now = NOW
    _ended(records, "a")
    records.now = NOW + scripts.MOST_BACK - timedelta(milliseconds=1)
    records.confirm()
    sync_redis.config_resetstat()
    records.get("a")
    assert asked(sync_redis)["waitaof"] == 1


@pytest.mark.usefixtures("waitaof")
def test_of_several_ends_the_latest_is_waited_for(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis)
    records.wait_for_disk = True
    records.now = NOW
    _ended(records, "a")
    records.now = NOW + scripts.MOST_BACK
    records.confirm()
    _ended(records, "b")
    sync_redis.config_resetstat()
    records.get_many(["b", "a"])
    assert asked(sync_redis)["waitaof"] == 1


@pytest.mark.usefixtures("waitaof")
def test_the_history_of_a_refund_that_goes_again_is_read_without_a_wait(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis)
    records.wait_for_disk = False
    ended = _ended(records, "a")
    again = Step(to=Stage.QUEUED, status=Status.PENDING, label="retried", changes={"generation": 2})
    assert records.run(scripts.save(replace(ended, status=Status.FAILED), again)).result == "saved"
    records.wait_for_disk = True
    sync_redis.config_resetstat()
    assert len(records.history("a")) == 3
    assert "waitaof" not in asked(sync_redis)


def test_where_memory_is_enough_an_end_is_read_without_asking_about_the_disk(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis, durable=False)
    assert _ended(records, "a").status == "canceled"
    sync_redis.config_resetstat()
    records.get("a")
    assert settings_read(sync_redis) == 0


def test_confirming_asks_once_whether_the_disk_must_be_waited_for(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis)
    sync_redis.config_resetstat()
    records.confirm()
    records.confirm()
    assert (wish(records), settings_read(sync_redis), asked(sync_redis).get("hset")) == (
        False,
        1,
        None,
    )
    memory = Store(sync_redis, durable=False)
    memory.confirm()
    assert settings_read(sync_redis) == 1


class _Deaf(Store):
    """A store whose disk never confirms."""

    def check_disk(self, result: Any) -> None:  # noqa: ARG002 - whatever the server said
        super().check_disk([0, 0])


def test_confirming_fails_where_the_disk_was_not_reached(sync_redis: redis.Redis) -> None:
    records = _Deaf(sync_redis)
    records.wait_for_disk = True
    with pytest.raises(StoreUnavailable):
        records.confirm()


@pytest.mark.usefixtures("waitaof")
def test_confirming_fails_where_nothing_can_be_written(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis)
    records.wait_for_disk = True
    sync_redis.set("refunds:meta", "no hash")
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        records.confirm()


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (exceptions.ResponseError("ERR unknown command"), NotDurable),
        (exceptions.ConnectionError("gone"), exceptions.ConnectionError),
        # A primary that became a replica since the write.
        (
            exceptions.ResponseError("WAITAOF cannot be used with replica instances."),
            StoreUnavailable,
        ),
        ([0, 0], StoreUnavailable),
    ],
)
def test_disk_that_was_not_reached_is_an_error(
    sync_redis: redis.Redis, reply: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Store(sync_redis).check_disk(reply)


def test_disk_that_was_reached_is_none(sync_redis: redis.Redis) -> None:
    Store(sync_redis).check_disk([1, 0])


@pytest.mark.usefixtures("waitaof")
@pytest.mark.parametrize("forbidden", [True, False])
def test_server_that_forbids_to_read_its_settings_is_waited_for(
    sync_redis: redis.Redis, *, forbidden: bool
) -> None:
    if forbidden:
        sync_redis.execute_command("ACL", "SETUSER", "default", "-config|get")
    try:
        records = Store(sync_redis)
        records.require_durable()
        assert records.wait_for_disk is forbidden
    finally:
        sync_redis.execute_command("ACL", "SETUSER", "default", "+@all")


def test_lists_longer_than_a_page_are_read_to_their_last_id_once(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis, durable=False)
    for count in (0, 499, 500, 501, 1000, 1001):
        ids = [f"{number:04}" for number in range(count)]
        sync_redis.delete(
            "refunds:batch-refunds:b", "refunds:index:waiting", "refunds:index:failed"
        )
        if ids:
            sync_redis.rpush("refunds:batch-refunds:b", *ids)
            sync_redis.zadd("refunds:index:waiting", {name: int(name) for name in ids})
            sync_redis.zadd("refunds:index:failed", {name: int(name) for name in ids})
        sync_redis.config_resetstat()
        assert list(records.ids_in_batch("b")) == ids
        assert asked(sync_redis)["lrange"] == count // 500 + 1
        assert list(records.ids_in(["waiting"])) == ids
        assert list(records.ids_in(["failed"])) == ids[::-1]
        seen = asked(sync_redis)
        assert seen["zrange"] + seen.get("zrevrange", 0) == 2 * (count // 500 + 1)


@pytest.mark.parametrize("bucket", ["succeeded", "failed", "canceled"])
def test_settled_refunds_are_listed_newest_first(sync_redis: redis.Redis, bucket: str) -> None:
    sync_redis.zadd(f"refunds:index:{bucket}", {"old": 1, "new": 2})
    assert list(Store(sync_redis).ids_in([bucket])) == ["new", "old"]


def test_many_records_are_read_in_the_order_of_their_ids_a_page_at_a_time(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis, durable=False)
    records.run(accept("a"))
    ids = ["nobody"] * 500 + ["a"]
    found = records.get_many(ids)
    assert [one is None for one in found] == [True] * 500 + [False]


def test_backlog_of_a_lane_is_what_is_queued_in_it(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis, durable=False)
    sync_redis.zadd("refunds:index:queued", {"a": 1, "b": 2})
    sync_redis.zadd("refunds:index:queued.bulk", {"c": 1})
    assert (records.backlog(Lane.SINGLE), records.backlog(Lane.BULK)) == (2, 1)


def test_every_index_is_counted(sync_redis: redis.Redis) -> None:
    names = ["queued", "queued.bulk", "sending", "waiting", "in_doubt", "processing", "review"]
    names += ["succeeded", "failed", "canceled"]
    for number, name in enumerate(names):
        sync_redis.zadd(f"refunds:index:{name}", {str(member): 1 for member in range(number + 1)})
    assert Store(sync_redis).counts() == {name: number + 1 for number, name in enumerate(names)}


def test_refunds_of_a_payment_are_known_by_their_ids_alone(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis, durable=False)
    records.run(accept("a", payment_intent="pi"))
    records.run(accept("b", payment_intent="pi"))
    assert sorted(records.ids_on_payment("pi")) == ["a", "b"]


# The store on the event loop


async def test_calls_on_the_loop_leave_in_no_transaction(
    loop_store: AsyncStore, sync_redis: redis.Redis
) -> None:
    await loop_store.run(scripts.load("a"))
    sync_redis.config_resetstat()
    await asyncio.gather(*(loop_store.run(scripts.load(name)) for name in "ab"))
    seen = asked(sync_redis)
    assert seen["evalsha"] == 2
    assert not {"multi", "exec", "script|load"} & set(seen)


async def test_only_the_calls_on_the_loop_whose_script_was_forgotten_are_repeated(
    loop_store: AsyncStore, sync_redis: redis.Redis
) -> None:
    await loop_store.run(scripts.load("a"))
    sync_redis.config_resetstat()
    results = await asyncio.gather(
        loop_store.run(scripts.load("a")),
        loop_store.run(accept()),
        loop_store.run(scripts.siblings("pi", "a")),
    )
    assert (results[0].refund, results[1].result, results[2]) == (None, "created", ())
    assert asked(sync_redis)["evalsha"] == 5


async def test_at_most_so_many_calls_leave_in_one_pipeline(
    loop_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loop_store.run(scripts.load("a"))
    sizes: list[int] = []
    execute = loop_store._execute

    async def counted(group: Any) -> list[Any]:
        sizes.append(len(group))
        return await execute(group)

    monkeypatch.setattr(loop_store, "_execute", counted)
    await asyncio.gather(*(loop_store.run(scripts.load("a")) for _ in range(600)))
    assert sizes == [256, 256, 88]


async def test_no_more_than_three_pipelines_are_under_way_at_a_time(
    loop_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loop_store.run(scripts.load("a"))
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
        asked_for.append(asyncio.create_task(loop_store.run(scripts.load("a"))))
        await asyncio.sleep(0)
    await asyncio.gather(*asked_for)
    assert most == async_store.TRIPS == 3


@pytest.mark.usefixtures("waitaof")
async def test_group_on_the_loop_waits_for_the_disk_where_any_of_it_is_durable(
    async_redis: redis.asyncio.Redis, sync_redis: redis.Redis
) -> None:
    records = AsyncStore(async_redis)
    await records.load_scripts([scripts.LOAD, scripts.CREATE])
    assert await async_redis.script_exists(scripts.LOAD.sha, scripts.CREATE.sha) == [True, True]
    records.wait_for_disk = True
    sync_redis.config_resetstat()
    loaded, created = await asyncio.gather(records.run(scripts.load("a")), records.run(accept()))
    assert (loaded.refund, created.result) == (None, "created")
    assert asked(sync_redis)["waitaof"] == 1
    await records.run(scripts.load("a"))
    assert asked(sync_redis)["waitaof"] == 1


async def test_call_made_in_the_moment_in_which_every_pipeline_ends_is_not_left_waiting(
    loop_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loop_store.run(scripts.load("a"))
    go, execute, held_back = asyncio.Event(), loop_store._execute, asyncio.Semaphore(0)

    async def held(group: Any) -> list[Any]:
        results = await execute(group)
        held_back.release()
        await go.wait()
        return results

    async def loaded(times: int) -> None:
        for _ in range(times):
            await loop_store.run(scripts.load("a"))

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
    await records.run(scripts.load("a"))
    assert wish(records) is None
    await asyncio.gather(records.run(scripts.load("a")), records.run(accept()))
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
        nobody: Command[Any] = scripts.load("nobody")
        results: Any = await asyncio.gather(
            records.run(nobody), records.run(accept()), return_exceptions=True
        )
        assert isinstance(results[1], error)
        assert isinstance(results[0], scripts.Loaded)
        assert results[0].refund is None


async def test_server_that_is_gone_is_away_to_each_caller_and_serves_again_when_it_is_back(
    loop_store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as gone:

        async def refused(*_: Any) -> Any:
            raise exceptions.ConnectionError("refused")

        gone.setattr(loop_store, "_execute", refused)
        results = await asyncio.gather(
            *(loop_store.run(scripts.load(name)) for name in "abc"), return_exceptions=True
        )
        assert [type(result) for result in results] == [StoreUnavailable] * 3
        assert "cannot be reached" in str(results[0])
    assert (await loop_store.run(scripts.load("a"))).refund is None


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


async def test_closing_a_store_closes_its_client(loop_store: AsyncStore) -> None:
    pending = asyncio.create_task(loop_store.run(scripts.load("a")))
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


def test_lost_script_is_told_from_every_other_error() -> None:
    assert commands._lost_script(exceptions.NoScriptError("x")) is True
    assert commands._lost_script(exceptions.ResponseError("x")) is False
    assert commands._lost_script([1]) is False


def test_store_reads_what_a_server_of_its_own_keeps(
    redis_server: ThrowawayServer, sync_redis: redis.Redis
) -> None:
    records = Store(sync_redis, prefix="other:", address=redis_server.url)
    records.run(accept())
    found = records.get("a")
    assert found is not None
    assert found.stage is Stage.QUEUED
    assert sync_redis.keys("refunds:*") == []
    assert [move["label"] for move in records.history("a")] == ["accepted"]
    assert a_refund().refund_id not in records.ids_on_payment("pi_a")
