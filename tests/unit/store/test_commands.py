"""What a store asks of its server, command by command.

Nothing twice, nothing in vain, nothing left unread.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
import redis.asyncio
from redis import exceptions

from tests.factories import NOW, a_refund
from tests.support.store_calls import BROKEN, LOAD, accept, asked, settings_read, wish
from worker.model.refund import Lane, Stage
from worker.sandbox.redis_server import ThrowawayServer
from worker.store import async_store, claims, commands, reads, record_time, store
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command
from worker.store.store import Store

DAY_MS = 86_400_000


# Defaults


def test_disk_is_waited_for_five_seconds_replicas_for_one_and_lists_are_read_by_500() -> None:
    assert (commands.WAITAOF_MS, commands.WAIT_MS, store.PAGE) == (5000, 1000, 500)


def test_calls_are_gathered_by_256_and_others_are_sixteen_at_once() -> None:
    assert (async_store._GATHERED, async_store.DIRECT) == (256, 16)


def test_the_records_time_goes_back_by_a_second_at_most() -> None:
    # A script keeps the largest time once it is a second past the one that is kept: _begin.lua.
    assert timedelta(seconds=1) == record_time.MOST_BACK


def test_stores_unless_told_otherwise_are_durable_and_keep_for_four_hundred_days(
    sync_redis: redis.Redis,
) -> None:
    client: Any = redis.asyncio.Redis()
    for made in (Store(sync_redis), AsyncStore(client)):
        assert (made.prefix, made.retention_ms, made.address) == ("refunds:", 400 * DAY_MS, "redis")
        assert (made.wants_disk, made.wait_for_disk, made.replicas) == (True, None, 0)
        assert made.now is None
    for made in (Store(sync_redis, durable=False), AsyncStore(client, durable=False)):
        assert (made.wants_disk, made.wait_for_disk) == (False, False)


def test_script_is_asked_for_with_prefix_clock_and_retention(sync_redis: redis.Redis) -> None:
    made = Store(sync_redis, prefix="p:", retention=timedelta(milliseconds=7))
    call = reads.load("a")
    assert made.raw_command(call) == ["EVALSHA", call.script.sha, 0, "p:", "", 7, "a"]
    made.now = datetime.fromtimestamp(1, NOW.tzinfo)
    assert made.raw_command(call) == ["EVALSHA", call.script.sha, 0, "p:", "1000", 7, "a"]


def test_claim_is_sent_with_the_position_that_was_confirmed_while_it_waited(
    sync_redis: redis.Redis,
) -> None:
    made = Store(sync_redis)
    confirmed = ""
    call = claims.claim(
        "a", "send", token="t", lease=timedelta(days=1), remembered=lambda: confirmed
    )
    assert made.raw_command(call)[6:] == [len(call.arguments), *call.arguments]
    confirmed = "0-a:1:x"
    assert made.raw_command(call)[-2:] == ["position", confirmed]


# The blocking store


def test_calls_leave_in_one_pipeline_and_in_no_transaction(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis)
    records.run(accept())
    records.run(reads.load("a"))
    sync_redis.config_resetstat()
    records.run_many([reads.load("a"), reads.load("b")])
    records.get("a")
    records.counts()
    seen = asked(sync_redis)
    assert seen["evalsha"] == 2
    assert "script|load" not in seen
    assert not {"multi", "exec"} & set(seen)


def test_only_the_calls_whose_script_was_forgotten_are_repeated(sync_redis: redis.Redis) -> None:
    records = Store(sync_redis, durable=False)
    sync_redis.script_flush()
    records.run(reads.load("a"))
    sync_redis.config_resetstat()
    batch: list[Command[Any]] = [reads.load("a"), accept(), reads.load("b")]
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
    sync_redis.script_flush()
    sync_redis.config_resetstat()
    loaded, created = records.run_many([LOAD, accept()])
    assert (loaded.refund, created.result) == (None, "created")
    # Once for the scripts that were unknown, once for their repetition.
    assert asked(sync_redis)["waitaof"] == 2
    sync_redis.config_resetstat()
    records.run_many([reads.load("a"), reads.load("b")])
    assert "waitaof" not in asked(sync_redis)


def test_disk_is_asked_about_before_the_first_durable_call_of_a_pipeline_and_never_again(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis)
    records.run(reads.load("a"))
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
        # A page begins with the last one of the page before: its score, not its rank, is known.
        pages = 1 + max(0, (count - 1) // 499)
        assert (seen["zrangebyscore"], seen["zrevrangebyscore"]) == (pages, pages)


@pytest.mark.parametrize(("bucket", "next_id"), [("waiting", "1001"), ("failed", "0999")])
def test_list_that_goes_on_after_a_place_does_not_read_what_is_before_it(
    sync_redis: redis.Redis, bucket: str, next_id: str
) -> None:
    records = Store(sync_redis)
    sync_redis.zadd(f"refunds:index:{bucket}", {f"{number:04}": number for number in range(2001)})
    sync_redis.config_resetstat()
    place = store.Place(bucket == "failed", 1000, "1000")
    assert next(records.places_in([bucket], place)).refund_id == next_id
    assert sum(calls for name, calls in asked(sync_redis).items() if name.startswith("z")) == 1


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
