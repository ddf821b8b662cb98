"""Which servers are refused because they may forget, when that is noticed, and when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.unit.store.faulty_servers import (
    accept,
    claim,
    client_of,
    filled,
    rewriting_for_long,
    waits,
)
from worker.errors import NotDurable, StoreUnavailable
from worker.sandbox.redis_server import ThrowawayServer, running_server
from worker.store import durability, flags, meta, reads, record_time, sweeps
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command
from worker.store.store import Store


@pytest.fixture(scope="module")
def forgetful() -> Iterator[ThrowawayServer]:
    with running_server(appendonly="no") as server:
        yield server


def test_server_without_an_append_only_file_is_refused_before_anything_is_written(
    forgetful: ThrowawayServer,
) -> None:
    with client_of(forgetful) as client:
        store = Store(client)
        with pytest.raises(NotDurable, match="REFUNDS_DURABILITY=memory"):
            store.run(accept())
        with pytest.raises(NotDurable):
            store.require_durable()
        assert client.dbsize() == 0


async def test_server_without_an_append_only_file_is_refused_on_the_loop_too(
    forgetful: ThrowawayServer,
) -> None:
    async with redis.asyncio.Redis.from_url(forgetful.url, decode_responses=True) as client:
        await client.flushall()
        store = AsyncStore(client)
        with pytest.raises(NotDurable, match="REFUNDS_DURABILITY=memory"):
            await store.run(accept())
        with pytest.raises(NotDurable):
            await store.require_durable()
        assert await client.dbsize() == 0


def test_server_without_an_append_only_file_serves_where_memory_is_enough(
    forgetful: ThrowawayServer,
) -> None:
    with client_of(forgetful) as client:
        store = Store(client, durable=False)
        store.require_durable()
        assert store.run(accept()).result == "created"
        assert waits(client) == 0


def test_reading_asks_for_no_durability(forgetful: ThrowawayServer) -> None:
    with client_of(forgetful) as client:
        assert Store(client).run(reads.load("nobody")).refund is None


async def test_reading_is_not_refused_for_a_durable_write_that_leaves_beside_it(
    forgetful: ThrowawayServer,
) -> None:
    async with redis.asyncio.Redis.from_url(forgetful.url, decode_responses=True) as client:
        store = AsyncStore(client)
        read = asyncio.create_task(store.run(reads.load("nobody")))
        write = asyncio.create_task(store.run(accept()))
        other = asyncio.create_task(store.run(reads.siblings("pi_none", "nobody")))
        with pytest.raises(NotDurable):
            await write
        assert (await read).refund is None
        assert await other == ()


@pytest.fixture
def evicting() -> Iterator[redis.Redis]:
    """A client of a server that may evict settled records."""
    with (
        running_server(maxmemory="64mb", maxmemory_policy="volatile-lru") as server,
        client_of(server) as client,
    ):
        yield client


def test_server_that_may_evict_records_is_refused_before_anything_is_written(
    evicting: redis.Redis,
) -> None:
    store = Store(evicting)
    commands: list[Command[Any]] = [accept(), claim()]
    for refused in commands:
        with pytest.raises(NotDurable, match="maxmemory-policy 'volatile-lru' with a maxmemory"):
            store.run(refused)
    with pytest.raises(NotDurable, match="the only policy allowed"):
        store.require_durable()
    assert evicting.dbsize() == 0
    evicting.config_set("maxmemory-policy", "noeviction")
    assert store.run(accept()).result == "created"


def test_confirmation_beside_a_write_does_not_spare_the_server_its_check(
    evicting: redis.Redis,
) -> None:
    batch: list[Command[Any]] = [record_time.confirm(), accept()]
    with pytest.raises(NotDurable, match="maxmemory-policy 'volatile-lru' with a maxmemory"):
        Store(evicting).run_many(batch)
    assert evicting.dbsize() == 0


async def test_server_that_may_evict_records_is_refused_on_the_loop_too(
    evicting: redis.Redis,
) -> None:
    kwargs = evicting.connection_pool.connection_kwargs
    async with redis.asyncio.Redis(port=kwargs["port"], decode_responses=True) as client:
        store = AsyncStore(client)
        commands: list[Command[Any]] = [accept(), claim()]
        for refused in commands:
            with pytest.raises(
                NotDurable, match="maxmemory-policy 'volatile-lru' with a maxmemory"
            ):
                await store.run(refused)
        assert evicting.dbsize() == 0


def test_flags_of_a_run_are_written_once_on_a_server_that_may_evict(
    evicting: redis.Redis,
) -> None:
    store = Store(evicting)
    assert [store.run(meta.once("k", {"a": value})) for value in ("1", "2")] == [True, False]
    assert evicting.hgetall("refunds:k") == {"a": "1"}


def test_server_that_may_evict_records_is_paused_and_serves_where_memory_is_enough(
    evicting: redis.Redis,
) -> None:
    begun, _ = flags.pause(Store(evicting), "anna")
    assert begun
    assert Store(evicting, durable=False).run(accept()).result == "created"


def rewritten(client: redis.Redis) -> None:
    """Wait until the server has rewritten its file."""
    persistence: Any = client.info("persistence")
    while persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"]:
        time.sleep(0.05)
        persistence = client.info("persistence")


FORGETS = {
    "no file": ("appendonly", "no", "yes"),
    "eviction": ("maxmemory-policy", "allkeys-lru", "noeviction"),
}


@pytest.mark.parametrize(("setting", "wrong", "right"), FORGETS.values(), ids=FORGETS.keys())
def test_a_producer_that_runs_on_finds_a_setting_that_was_changed(
    setting: str, wrong: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(maxmemory="64mb") as server, client_of(server) as client:
        store = Store(client)
        assert store.run(accept("a")).result == "created"
        client.config_set(setting, wrong)
        monkeypatch.setattr("worker.store.store.RECHECK_SECONDS", 0)
        for _ in range(2):
            with pytest.raises(NotDurable):
                store.run(accept("b"))
        assert store.get("b") is None
        client.config_set(setting, right)
        rewritten(client)
        assert store.run(accept("b")).result == "created"


def test_a_producer_checks_again_once_a_minute_has_passed(
    sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("worker.store.store.time", SimpleNamespace(monotonic=lambda: now))
    store = Store(sync_redis)
    store.wait_for_disk = False
    checks: list[float] = []
    monkeypatch.setattr(store, "check_flushing", lambda: checks.append(now))
    for number, moment in enumerate((59.9, 60.0, 119.9, 120.0)):
        now = moment
        store.run(accept(f"r{number}"))
    assert checks == [60.0, 120.0]


def test_a_producer_checks_again_once_the_server_was_away(
    sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(sync_redis)
    store.wait_for_disk = False
    checks: list[str] = []
    monkeypatch.setattr(store, "check_flushing", lambda: checks.append("checked"))
    execute = store._execute

    def replaced(_: Any) -> list[Any]:
        raise redis.exceptions.ReadOnlyError("You can't write against a read only replica.")

    monkeypatch.setattr(store, "_execute", replaced)
    with pytest.raises(StoreUnavailable):
        store.run(accept("a"))
    monkeypatch.setattr(store, "_execute", execute)
    assert checks == []
    for refund_id in ("a", "b"):
        store.run(accept(refund_id))
    assert checks == ["checked"]


@pytest.mark.parametrize(("setting", "wrong", "right"), FORGETS.values(), ids=FORGETS.keys())
async def test_after_a_check_that_failed_no_durable_write_is_made_until_one_succeeds(
    setting: str, wrong: str, right: str
) -> None:
    with running_server(maxmemory="64mb") as server, client_of(server) as admin:
        async with redis.asyncio.Redis.from_url(server.url, decode_responses=True) as client:
            store = AsyncStore(client)
            await store.run(accept("a"))
            admin.config_set(setting, wrong)
            with pytest.raises(NotDurable):
                await store.require_durable()
            with pytest.raises(NotDurable):
                await store.run(accept("b"))
            assert not admin.exists("refunds:refund:b")
            saved = sweeps.give_back(["a"])
            assert await store.run(saved) == 1
            admin.config_set(setting, right)
            rewritten(admin)
            await store.require_durable()
            assert (await store.run(accept("b"))).result == "created"


async def test_after_a_fault_nothing_is_accepted_before_the_file_is_rewritten() -> None:
    with running_server() as server, client_of(server) as client:
        store = Store(client)
        async with redis.asyncio.Redis.from_url(server.url, decode_responses=True) as looking:
            on_the_loop = AsyncStore(looking)
            client.config_set("appendonly", "no")
            for reason in ("no append-only file", "aof_rewrite_in_progress:0"):
                with pytest.raises(NotDurable, match=reason):
                    store.run(accept())
                with pytest.raises(NotDurable, match=reason):
                    await on_the_loop.run(accept())
                filled(client)
                client.config_set("appendonly", "yes")
        assert not client.exists("refunds:refund:a")
        # In good order it would not end before its file is written.
        server.kill()


def test_a_rewrite_without_a_fault_refuses_nothing() -> None:
    with running_server() as server, client_of(server) as client:
        rewriting_for_long(server, client)
        assert Store(client).run(accept()).result == "created"


def checks_that(monkeypatch: pytest.MonkeyPatch, name: str, ends: list[bool]) -> list[bool]:
    """Let checks of a server end so in turn; return whether each comes after a fault."""
    after: list[bool] = []

    def check(*, after_fault: bool) -> Generator[Any, Any, bool]:
        after.append(after_fault)
        if not ends[len(after) - 1]:
            raise NotDurable("no file")
        yield "PING"
        return False

    monkeypatch.setattr(f"worker.store.durability.{name}", check)
    return after


def test_check_of_a_producer_knows_whether_the_one_before_found_a_fault(
    sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = checks_that(monkeypatch, "flushing", [False, False, True, True])
    store = Store(sync_redis)
    for _ in range(2):
        with pytest.raises(NotDurable):
            store.check_flushing()
        assert store.wait_for_disk is None
    for _ in range(2):
        store.check_flushing()
        assert store.wait_for_disk is False
    assert after == [False, True, True, False]


async def test_check_of_a_worker_knows_whether_the_one_before_found_a_fault(
    async_redis: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = checks_that(monkeypatch, "probe", [False, False, True, True])
    store = AsyncStore(async_redis)
    for _ in range(2):
        with pytest.raises(NotDurable):
            await store.require_durable()
        assert store.wait_for_disk is None
    for _ in range(2):
        await store.require_durable()
        assert store.wait_for_disk is False
    assert after == [False, True, True, False]
    await store.close()


def test_server_that_reports_no_rewrite_is_not_waited_for() -> None:
    check = durability.flushing(after_fault=True)
    assert next(check) == ("CONFIG GET", "*append*")
    settings = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
    assert check.send(settings) == ("INFO", "persistence")
    with pytest.raises(StopIteration) as ended:
        check.send({"aof_enabled": 1})
    assert ended.value.value is False
