"""What a write waits for before it counts, on each kind of server, and that it then survives a
crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.conftest import has_waitaof
from tests.unit.store.faulty_servers import (
    accept,
    claim,
    client_of,
    rewriting_for_long,
    waits,
)
from worker.errors import NotDurable, StoreUnavailable
from worker.sandbox.redis_server import ThrowawayServer, running_server
from worker.store import reads
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command
from worker.store.store import Store


@pytest.fixture(scope="module")
def lazy(
    waitaof: None,  # noqa: ARG001 - without it the server is refused
) -> Iterator[ThrowawayServer]:
    with running_server(appendfsync="everysec") as server:
        yield server


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
