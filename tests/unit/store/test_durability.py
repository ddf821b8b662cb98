"""What an acknowledged write is worth on each kind of server, and what a server that is gone is
called.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.conftest import has_waitaof
from tests.factories import a_request
from tests.support.store_world import LEASE
from worker.errors import NotDurable, SettingsError, StoreRefused, StoreUnavailable
from worker.model.refund import Lane
from worker.sandbox.redis_server import ThrowawayServer, running_server
from worker.store import claims, connection, creations, durability, flags, reads, sweeps
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command
from worker.store.store import Store

PASSWORD = "hunter2-do-not-print"


def accept(refund_id: str = "a") -> Command[creations.Created]:
    return creations.create(a_request(refund_id, payment_intent=f"pi_{refund_id}"), Lane.SINGLE)


def claim(refund_id: str = "a") -> Command[claims.Claim]:
    return claims.claim(refund_id, "send", token="t", lease=LEASE)


@pytest.fixture(scope="module")
def forgetful() -> Iterator[ThrowawayServer]:
    with running_server(appendonly="no") as server:
        yield server


@pytest.fixture(scope="module")
def lazy(
    waitaof: None,  # noqa: ARG001 - without it the server is refused
) -> Iterator[ThrowawayServer]:
    with running_server(appendfsync="everysec") as server:
        yield server


@contextmanager
def client_of(server: ThrowawayServer) -> Iterator[redis.Redis]:
    """A client of the emptied server, its statistics begun anew."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.flushall()
        client.config_resetstat()
        yield client


def waits(client: redis.Redis) -> int:
    """How often the server was asked to wait for its disk."""
    statistics: Any = client.info("commandstats")
    return int(statistics.get("cmdstat_waitaof", {"calls": 0})["calls"])


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


async def test_reading_is_not_refused_for_a_write_beside_it_that_is_not_on_disk_in_time(
    lazy: ThrowawayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.store.commands.WAITAOF_MS", 10)
    async with redis.asyncio.Redis.from_url(lazy.url, decode_responses=True) as client:
        store = AsyncStore(client)
        await store.require_durable()
        await client.config_set("appendfsync", "no")
        try:
            read = asyncio.create_task(store.run(reads.load("nobody")))
            write = asyncio.create_task(store.run(accept("late")))
            with pytest.raises(StoreUnavailable):
                await write
            assert (await read).refund is None
        finally:
            await client.config_set("appendfsync", "everysec")


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


def test_a_rewrite_without_a_fault_refuses_nothing() -> None:
    with running_server() as server, client_of(server) as client:
        rewriting_for_long(server, client)
        assert Store(client).run(accept()).result == "created"


def test_write_waits_for_the_disk_where_the_server_flushes_only_now_and_then(
    lazy: ThrowawayServer,
) -> None:
    with client_of(lazy) as client:
        store = Store(client)
        assert store.run(accept()).result == "created"
        assert store.run(claim()).claimed
        assert waits(client) >= 2
        assert store.wait_for_disk


async def test_write_on_the_loop_waits_for_the_disk_too(lazy: ThrowawayServer) -> None:
    async with redis.asyncio.Redis.from_url(lazy.url, decode_responses=True) as client:
        await client.flushall()
        await client.config_resetstat()
        store = AsyncStore(client)
        assert (await store.run(accept())).result == "created"
        assert (await store.run(claim())).claimed
        assert store.wait_for_disk
    with redis.Redis.from_url(lazy.url, decode_responses=True) as watcher:
        assert waits(watcher) >= 2


def test_server_that_flushes_now_and_then_is_refused_if_it_cannot_be_waited_for(
    redis_server: ThrowawayServer,
) -> None:
    with running_server(appendfsync="everysec") as server, client_of(server) as client:
        store = Store(client)
        if has_waitaof(redis_server.url):
            assert store.run(accept()).result == "created"
            assert waits(client) > 1  # the first one only asks whether it is known
        else:
            with pytest.raises(NotDurable, match="set 'appendfsync always'"):
                store.run(accept())
            assert client.dbsize() == 0


def filled(client: redis.Redis) -> None:
    """Fill the server, so that it rewrites its file so slowly that the test is over before the
    rewrite is.
    """
    with client.pipeline(transaction=False) as pipeline:
        for number in range(2000):
            pipeline.set(f"filler:{number}", "x" * 100)
        pipeline.execute()
    client.config_set("rdb-key-save-delay", "10000")


def rewriting_for_long(server: ThrowawayServer, client: redis.Redis) -> None:
    """Let the filled server begin to rewrite its file."""
    filled(client)
    client.bgrewriteaof()
    persistence: Any = client.info("persistence")
    assert persistence["aof_rewrite_in_progress"] == 1, server.url


def test_nothing_is_accepted_before_its_disk_while_a_server_that_does_not_flush_rewrites(
    waitaof: None,  # noqa: ARG001 - an older one is refused
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.store.commands.WAITAOF_MS", 50)
    with running_server(no_appendfsync_on_rewrite="yes") as server, client_of(server) as client:
        rewriting_for_long(server, client)
        with pytest.raises(StoreUnavailable):
            Store(client).run(accept())


def test_a_server_that_is_told_not_to_flush_in_a_rewrite_is_asked_to_wait_from_then_on(
    waitaof: None,  # noqa: ARG001 - an older one is refused
) -> None:
    with running_server() as server, client_of(server) as client:
        store = Store(client)
        asked = []
        for told in ("no", "yes", "no"):
            client.config_set("no-appendfsync-on-rewrite", told)
            store.require_durable()
            asked.append(store.wait_for_disk)
        assert asked == [False, True, False]


def test_one_wait_covers_a_whole_pipeline(lazy: ThrowawayServer) -> None:
    with client_of(lazy) as client:
        store = Store(client)
        store.run(accept("warm"))
        client.config_resetstat()
        store.run_many([accept(f"r{number}") for number in range(50)])
        assert waits(client) == 1


def written(client: redis.Redis) -> int:
    """How far the server's writes have come.

    Waiting for the disk waits for what a client itself moved it by.
    """
    replication: Any = client.info("replication")
    return int(replication["master_repl_offset"])


@pytest.mark.parametrize("repeated", [accept, claim], ids=["accept", "claim"])
def test_repeat_on_a_new_connection_waits_for_what_the_first_one_wrote(
    lazy: ThrowawayServer, repeated: Callable[[], Command[Any]]
) -> None:
    with client_of(lazy) as first, redis.Redis.from_url(lazy.url, decode_responses=True) as second:
        lost = Store(first)
        lost.wait_for_disk = False
        lost.run(accept())
        lost.run(repeated())
        asked_again = Store(second)
        asked_again.require_durable()
        first.config_resetstat()
        before = written(second)
        assert asked_again.run(repeated()).result in {"exists", "claimed"}
        assert written(second) > before
        assert waits(first) == 1


def test_server_that_writes_each_reply_through_needs_no_wait(redis_server: ThrowawayServer) -> None:
    with client_of(redis_server) as client:
        store = Store(client)
        assert store.run(accept()).result == "created"
        assert store.wait_for_disk is False
        assert waits(client) == 0


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_what_was_accepted_and_claimed_survives_a_crash_of_the_server(
    appendfsync: str, request: pytest.FixtureRequest
) -> None:
    if appendfsync == "everysec":
        request.getfixturevalue("waitaof")
    with running_server(appendfsync=appendfsync) as server, client_of(server) as client:
        store = Store(client)
        store.run(accept())
        claimed = store.run(claim())
        server.kill()
        server.restart()
        assert claimed.refund is not None
        assert store.get("a") == claimed.refund
        again = store.run(claim())
        assert (again.result, again.body) == ("claimed", claimed.body)


@pytest.mark.parametrize(
    ("trouble", "told"),
    [("full", "from 90 % on no new refund is accepted"), ("read-only", "refuses commands now")],
)
def test_server_that_is_full_or_read_only_is_away(trouble: str, told: str) -> None:
    with running_server() as server, connection.connect(server.url) as client:
        store = Store(client)
        store.run(accept())
        if trouble == "full":
            client.config_set("maxmemory", "1")
        else:
            client.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match=told):
            store.run(accept("b"))


UNREADABLE = [f"redis://user:sec/{PASSWORD}@host/0", f"redis://:p[{PASSWORD}]s@host/0"]


@pytest.mark.parametrize("url", UNREADABLE, ids=["slash", "brackets"])
def test_address_whose_password_was_not_encoded_is_refused_without_showing_any_of_it(
    url: str,
) -> None:
    for connect in (connection.connect, connection.connect_async):
        with pytest.raises(SettingsError, match="percent-encoded") as caught:
            connect(url)
        assert PASSWORD not in str(caught.value)
        assert "sec" not in str(caught.value)
    assert connection.address_of(url) == "REFUNDS_REDIS_URL"


def test_server_that_is_gone_is_named_without_its_password() -> None:
    with running_server() as server:
        url = server.url.replace("redis://", f"redis://:{PASSWORD}@")
        place = connection.address_of(url)
        port = server.port
    store = Store(connection.connect(url), address=place)
    for ask in (
        lambda: store.run(accept()),
        lambda: store.get("a"),
        lambda: list(store.ids_in(["queued"])),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            ask()
        assert f"127.0.0.1:{port}" in str(caught.value)
        assert PASSWORD not in str(caught.value)
    store.redis.close()


async def test_server_that_is_gone_is_named_without_its_password_on_the_loop_too() -> None:
    with running_server() as server:
        url = server.url.replace("redis://", f"redis://:{PASSWORD}@")
    store = AsyncStore(connection.connect_async(url), address=connection.address_of(url))
    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        await store.run(accept())
    assert PASSWORD not in str(caught.value)
    await store.close()


def test_server_that_refuses_the_password_says_so_without_showing_it() -> None:
    with running_server() as server, client_of(server) as client:
        url = server.url.replace("redis://", f"redis://:{PASSWORD}@")
        client.config_set("requirepass", "another-one")
        store = Store(connection.connect(url), address=connection.address_of(url))
        with pytest.raises(StoreRefused, match="refuses the credentials") as caught:
            store.get("a")
        assert PASSWORD not in str(caught.value)
        store.redis.close()


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
