"""What REFUNDS_REPLICAS demands: a write counts once so many replicas have it."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis import exceptions

from tests.factories import a_request
from tests.support.store_world import LEASE
from worker.cli.exits import AWAY, exit_code_of
from worker.errors import NotDurable, StoreUnavailable, TooFewReplicas
from worker.model.refund import Lane
from worker.sandbox.redis_server import HOST, ThrowawayServer, running_server
from worker.store import claims, commands, connection, creations, reads, sweeps
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command
from worker.store.store import Store

WAIT_MS = commands.WAIT_MS


def accept(refund_id: str = "a") -> Command[creations.Created]:
    return creations.create(a_request(refund_id, payment_intent=f"pi_{refund_id}"), Lane.SINGLE)


def claim(refund_id: str = "a") -> Command[claims.Claim]:
    return claims.claim(refund_id, "send", token="t", lease=LEASE)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not make a replica late."""
    monkeypatch.setattr(commands, "WAIT_MS", 4000)


@pytest.fixture(scope="module")
def replica(redis_server: ThrowawayServer) -> Iterator[ThrowawayServer]:
    """A replica of the session's server while the tests of this file run."""
    with running_server() as server, redis.Redis.from_url(server.url) as client:
        with redis.Redis.from_url(redis_server.url) as primary:
            primary.config_set("repl-diskless-sync-delay", 0)
            client.execute_command("REPLICAOF", HOST, redis_server.port)
            while primary.execute_command("WAIT", 1, 100) < 1:
                primary.set("follows", "1")
        yield server


@contextmanager
def frozen(server: ThrowawayServer) -> Iterator[None]:
    """A replica that is connected and acknowledges nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commands, "WAIT_MS", 20)
            yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def waits(client: redis.Redis) -> int:
    statistics: Any = client.info("commandstats")
    return int(statistics.get("cmdstat_wait", {"calls": 0})["calls"])


@pytest.mark.usefixtures("replica")
def test_write_counts_once_a_replica_has_it(sync_redis: redis.Redis) -> None:
    store = Store(sync_redis, replicas=1)
    assert store.run(accept()).result == "created"
    assert store.run(claim()).claimed
    store.require_durable()


@pytest.mark.usefixtures("replica")
def test_fewer_replicas_than_demanded_are_a_clear_error(
    sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "WAIT_MS", 500)
    with pytest.raises(TooFewReplicas, match=r"reached 1 replicas in time, .*demands 2") as e:
        Store(sync_redis, replicas=2, address="here:1").run(accept())
    assert (e.value.wanted, e.value.confirmed, e.value.address) == (2, 1, "here:1")
    assert exit_code_of(e.value) == AWAY
    again = pickle.loads(pickle.dumps(e.value))
    assert (str(again), again.wanted) == (str(e.value), 2)


def test_replica_that_acknowledges_nothing_does_not_count(
    sync_redis: redis.Redis, replica: ThrowawayServer
) -> None:
    store = Store(sync_redis, replicas=1)
    # Its script is known: a server before 7.2 waits for every write, also if nothing was written.
    store.run(accept("b"))
    with frozen(replica):
        with pytest.raises(TooFewReplicas):
            store.run(accept())
        assert store.lacks_replicas
    assert store.run(accept()).result == "exists"
    assert not store.lacks_replicas


@pytest.mark.parametrize("repeated", [accept, claim])
def test_repeat_on_another_connection_waits_for_what_the_first_one_wrote(
    sync_redis: redis.Redis,
    redis_server: ThrowawayServer,
    replica: ThrowawayServer,
    repeated: Callable[[], Command[Any]],
) -> None:
    """It writes again: a server waits only for what the connection itself has written."""
    Store(sync_redis).run(accept())
    with frozen(replica):
        Store(sync_redis).run(repeated())
        with (
            redis.Redis.from_url(redis_server.url, decode_responses=True) as other,
            pytest.raises(TooFewReplicas),
        ):
            Store(other, replicas=1).run(repeated())


def test_reads_and_writes_that_may_be_lost_wait_for_no_replica(
    sync_redis: redis.Redis, replica: ThrowawayServer
) -> None:
    store = Store(sync_redis, replicas=1)
    store.run(accept())
    sync_redis.config_resetstat()
    with frozen(replica):
        assert store.run(reads.load("a")).refund is not None
        store.run(sweeps.give_back(["a"]))
    assert waits(sync_redis) == 0


def test_without_the_setting_no_replica_is_waited_for(sync_redis: redis.Redis) -> None:
    sync_redis.config_resetstat()
    store = Store(sync_redis)
    store.run(accept())
    store.require_durable()
    store.confirm()
    assert waits(sync_redis) == 0


@pytest.mark.parametrize("durable", [True, False])
def test_replicas_are_waited_for_whatever_the_disk_is_worth(
    sync_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    monkeypatch.setattr(commands, "WAIT_MS", 20)
    store = Store(sync_redis, durable=durable, replicas=2)
    for call in (store.require_durable, store.confirm, lambda: store.run(accept())):
        with pytest.raises(TooFewReplicas):
            call()


async def test_on_the_loop_only_the_calls_that_count_are_refused(
    async_redis: redis.asyncio.Redis, replica: ThrowawayServer
) -> None:
    store = AsyncStore(async_redis, replicas=1)
    await store.run(accept())
    await store.require_durable()
    with frozen(replica):
        read = asyncio.create_task(store.run(reads.load("a")))
        written = asyncio.create_task(store.run(claim()))
        await asyncio.wait([read, written])
        with pytest.raises(TooFewReplicas):
            await store.require_durable()
    assert read.result().refund is not None
    assert isinstance(written.exception(), TooFewReplicas)
    assert (await store.run(claim())).claimed


async def test_final_status_is_reported_once_the_replicas_have_it(
    async_redis: redis.asyncio.Redis, replica: ThrowawayServer
) -> None:
    store = AsyncStore(async_redis, durable=False, replicas=1)
    moment = (await store.run(accept())).now
    with frozen(replica), pytest.raises(TooFewReplicas):
        await store.confirm_final(moment)
    await store.confirm_final(moment)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (exceptions.ResponseError("WAIT cannot be used with replica instances."), StoreUnavailable),
        (
            exceptions.ResponseError(
                "UNBLOCKED force unblock from blocking operation, instance state changed"
            ),
            StoreUnavailable,
        ),
        (exceptions.NoPermissionError("may not run the 'wait' command"), NotDurable),
        (exceptions.ConnectionError("gone"), exceptions.ConnectionError),
    ],
)
def test_reply_that_confirms_nothing_is_an_error(
    sync_redis: redis.Redis, reply: Exception, error: type[Exception]
) -> None:
    store = Store(sync_redis, replicas=1)
    with pytest.raises(error):
        store.check_replicas(reply)
    assert not store.lacks_replicas


def test_primary_that_is_demoted_while_it_waits_is_away() -> None:
    with (
        running_server() as server,
        redis.Redis.from_url(server.url) as admin,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        store = Store(client, durable=False, replicas=1)
        demoted = asyncio.run(_demoted(admin, lambda: store.run(accept())))
    assert isinstance(demoted, StoreUnavailable)
    assert not isinstance(demoted, TooFewReplicas)


async def _demoted(admin: redis.Redis, work: Callable[[], object]) -> BaseException | None:
    """Make the server a replica while it lets `work` wait; return how that ended."""
    waiting = asyncio.create_task(asyncio.to_thread(work))
    clients: Any = admin.info("clients")
    while not clients["blocked_clients"]:
        await asyncio.sleep(0)
        clients = admin.info("clients")
    admin.execute_command("REPLICAOF", HOST, 1)
    await asyncio.wait([waiting])
    return waiting.exception()


class Named:
    """Sentinels that name one server as the primary."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.server = server
        self.asked = 0

    def discover_master(self, _service: str) -> tuple[str, int]:
        self.asked += 1
        return HOST, self.server.port


class NamedOnTheLoop(Named):
    async def discover_master(self, service: str) -> tuple[str, int]:  # type: ignore[override]  # a coroutine
        return super().discover_master(service)


@pytest.mark.usefixtures("replica", "sync_redis")
def test_after_too_few_replicas_the_sentinels_are_asked_again(
    redis_server: ThrowawayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that has no replicas is one that the Sentinels have replaced."""
    monkeypatch.setattr(commands, "WAIT_MS", 500)
    with running_server() as replaced:
        sentinels = Named(replaced)
        pool = redis.sentinel.SentinelConnectionPool("refunds", sentinels, decode_responses=True)
        with redis.Redis(connection_pool=pool) as client:
            store = Store(client, durable=False, replicas=1)
            with pytest.raises(TooFewReplicas):
                store.run(accept())
            sentinels.server = redis_server
            assert store.run(accept()).result == "created"
        pool.disconnect()


@pytest.mark.usefixtures("replica", "sync_redis")
async def test_on_the_loop_the_sentinels_are_asked_again_too(
    redis_server: ThrowawayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "WAIT_MS", 500)
    with running_server() as replaced:
        sentinels = NamedOnTheLoop(replaced)
        pool = redis.asyncio.sentinel.SentinelConnectionPool(
            "refunds", sentinels, decode_responses=True
        )
        async with redis.asyncio.Redis(connection_pool=pool) as client:
            store = AsyncStore(client, durable=False, replicas=1)
            with pytest.raises(TooFewReplicas):
                await store.run(accept())
            sentinels.server = redis_server
            assert (await store.run(accept())).result == "created"
        await pool.disconnect()


@pytest.mark.usefixtures("sync_redis")
async def test_write_that_is_late_on_disk_does_not_let_the_sentinels_be_asked_again(
    redis_server: ThrowawayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinels = NamedOnTheLoop(redis_server)
    pool = redis.asyncio.sentinel.SentinelConnectionPool(
        "refunds", sentinels, decode_responses=True
    )
    async with redis.asyncio.Redis(connection_pool=pool) as client:
        store = AsyncStore(client)
        store.wait_for_disk = True
        monkeypatch.setattr(store, "check_disk", lambda _: AsyncStore.check_disk(store, [0, 0]))
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.run(accept())
    await pool.disconnect()
    assert sentinels.asked == 1


def test_server_replies_before_the_client_gives_up() -> None:
    assert connection._OPTIONS["socket_timeout"] * 1000 > commands.WAITAOF_MS + WAIT_MS
