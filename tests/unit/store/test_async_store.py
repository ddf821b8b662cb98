"""The event loop's store: calls gathered into pipelines, each with its own answer or its own
error.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
import redis.asyncio
from redis import exceptions

from tests.factories import NOW, a_request
from tests.support.store_world import LEASE
from worker.errors import StoreUnavailable
from worker.model.refund import Lane
from worker.store import claims, creations, reads, scripts
from worker.store.async_store import AsyncStore
from worker.store.claims import Claim
from worker.store.connection import connect_async
from worker.store.creations import Created
from worker.store.reads import Loaded
from worker.store.scripts import Command, Script


@pytest.fixture
def store(async_any_redis: redis.asyncio.Redis) -> AsyncStore:
    store = AsyncStore(async_any_redis, durable=False)
    store.now = NOW
    return store


class Counted:
    """Counts the pipelines that a store sends and the commands in each."""

    def __init__(self, store: AsyncStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        pipeline = store.redis.pipeline

        def noting(*args: Any, **options: Any) -> Any:
            made = pipeline(*args, **options)
            execute = made.execute

            async def run(*arguments: Any, **settings: Any) -> Any:
                self.sizes.append(len(made.command_stack))
                return await execute(*arguments, **settings)

            monkeypatch.setattr(made, "execute", run)
            return made

        monkeypatch.setattr(store.redis, "pipeline", noting)


def accept(number: int) -> Command[Created]:
    return creations.create(a_request(f"r{number}", payment_intent=f"pi_{number}"), Lane.SINGLE)


async def accepted(store: AsyncStore, count: int) -> list[Created]:
    return await asyncio.gather(*(store.run(accept(number)) for number in range(count)))


async def test_call_has_the_same_result_as_on_the_blocking_store(store: AsyncStore) -> None:
    assert (await store.run(accept(1))).result == "created"
    claim = await store.run(claims.claim("r1", "send", token="t", lease=LEASE))
    loaded = await store.run(reads.load("r1"))
    assert claim.claimed
    assert loaded.refund == claim.refund
    assert (await store.run(accept(1))).result == "exists"


async def test_concurrent_calls_leave_together_in_few_pipelines(
    store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.run(accept(0))
    counted = Counted(store, monkeypatch)
    results = await accepted(store, 100)
    assert [created.result for created in results] == ["exists", *["created"] * 99]
    assert sum(counted.sizes) == 100
    assert len(counted.sizes) <= 2


async def test_each_caller_gets_its_own_answer(store: AsyncStore) -> None:
    await accepted(store, 300)
    loaded = await asyncio.gather(*(store.run(reads.load(f"r{number}")) for number in range(300)))
    assert [one.refund and one.refund.refund_id for one in loaded] == [
        f"r{number}" for number in range(300)
    ]


async def test_call_made_while_a_pipeline_is_under_way_leaves_in_the_next(
    store: AsyncStore,
) -> None:
    first = asyncio.create_task(store.run(accept(1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(store.run(accept(2)))
    assert [(await task).result for task in (first, second)] == ["created", "created"]


async def test_error_of_one_call_reaches_that_caller_alone(store: AsyncStore) -> None:
    broken: Command[None] = Command(script=BROKEN, arguments=[], read=lambda _: None)
    unreadable = Command(script=scripts.LOAD, arguments=["r1"], read=lambda reply: int(reply[5]))
    results = await asyncio.gather(
        store.run(accept(1)),
        store.run(broken),
        store.run(unreadable),
        store.run(accept(2)),
        return_exceptions=True,
    )
    assert isinstance(results[0], Created)
    assert isinstance(results[1], exceptions.ResponseError)
    assert isinstance(results[2], IndexError)
    assert isinstance(results[3], Created)
    assert (await store.run(reads.load("r2"))).refund is not None


class _Broken(Script):
    def __init__(self) -> None:
        super().__init__("load")
        self.name = "broken"
        self.text = "return redis.call('HGETALL')"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


BROKEN = _Broken()


async def test_record_that_is_no_text_concerns_its_own_calls_alone(
    async_redis: redis.asyncio.Redis,
) -> None:
    # The connection to the fake keeps replies that could not be read.
    store = AsyncStore(async_redis, durable=False)
    await accepted(store, 3)
    no_text: Any = b"\xff"
    await store.redis.hset("refunds:refund:r1", "error_message", no_text)
    loads = (store.run(reads.load(f"r{number}")) for number in range(3))
    sends = (
        store.run(claims.claim(f"r{number}", "send", token=f"t{number}", lease=LEASE))
        for number in range(3)
    )
    one, unread, other, claimed, unclaimed, another = await asyncio.gather(
        *loads, *sends, return_exceptions=True
    )
    assert isinstance(one, Loaded)
    assert isinstance(other, Loaded)
    assert isinstance(claimed, Claim)
    assert isinstance(another, Claim)
    assert (claimed.result, another.result) == ("claimed", "claimed")
    assert isinstance(unread, UnicodeDecodeError)
    assert isinstance(unclaimed, UnicodeDecodeError)


async def test_caller_that_gives_up_does_not_disturb_the_others(store: AsyncStore) -> None:
    tasks = [asyncio.create_task(store.run(accept(number))) for number in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Created, asyncio.CancelledError, Created]
    assert (await store.run(accept(4))).result == "created"


async def test_scripts_that_the_server_forgot_are_loaded_again(store: AsyncStore) -> None:
    await accepted(store, 3)
    await store.redis.script_flush()
    results = await asyncio.gather(
        store.run(accept(0)),
        store.run(reads.load("r1")),
        store.run(accept(9)),
        store.run(reads.load("nobody")),
    )
    assert results[0].result == "exists"
    assert results[1].refund is not None
    assert results[2].result == "created"
    assert results[3].refund is None


async def test_server_that_forgets_scripts_as_fast_as_they_are_loaded_is_away(
    store: AsyncStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    async def forgotten_at_once(text: str) -> None:
        """As a server that is started again right after."""
        loaded.append(text)

    await store.redis.script_flush()
    monkeypatch.setattr(store.redis, "script_load", forgotten_at_once)
    with pytest.raises(StoreUnavailable):
        await store.run(reads.load("r1"))
    assert len(loaded) == 3


async def test_closing_lets_what_was_gathered_leave_first(store: AsyncStore) -> None:
    tasks = [asyncio.create_task(store.run(accept(number))) for number in range(5)]
    await asyncio.sleep(0)
    await store.close()
    assert [(await task).result for task in tasks] == ["created"] * 5


async def test_backlog_of_a_lane_is_what_is_queued_in_it(store: AsyncStore) -> None:
    for number, lane in enumerate((Lane.SINGLE, Lane.SINGLE, Lane.BULK)):
        await store.run(creations.create(a_request(f"r{number}"), lane))
    assert [await store.backlog(lane) for lane in (Lane.SINGLE, Lane.BULK)] == [2, 1]


async def test_a_reply_that_nobody_read_is_not_that_of_the_next_command(redis_url: str) -> None:
    client = connect_async(redis_url)
    connection = await client.connection_pool.get_connection()
    await connection.send_command("ECHO", "of another refund")
    await asyncio.sleep(0.1)
    await client.connection_pool.release(connection)
    assert await client.echo("mine") == "mine"
    await client.aclose()


async def test_a_connection_that_the_server_closed_is_opened_again_for_the_next_command(
    redis_url: str,
) -> None:
    """As after its restart: each idle connection would let one refund or request down."""
    client = connect_async(redis_url)
    own: Any = await client.client_id()
    async with redis.asyncio.Redis.from_url(redis_url) as admin:
        await admin.client_kill_filter(_id=own)
    await asyncio.sleep(0.1)
    assert await client.echo("mine") == "mine"
    await client.aclose()
