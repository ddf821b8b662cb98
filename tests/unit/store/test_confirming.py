"""How a refund ended is on disk before it is told, on a blocking store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
import redis
import redis.asyncio
from redis import exceptions

from tests.factories import NOW, a_request
from tests.support.store_calls import accept, asked, settings_read, wish
from worker.errors import NotDurable, NotStorable, StoreUnavailable
from worker.model.refund import Lane, Refund, Stage, Status
from worker.model.steps import Step
from worker.rules import decisions
from worker.store import creations, record_time, saves
from worker.store.store import Store


def _ended(records: Store, refund_id: str) -> Refund:
    """A refund that has ended at the present moment of the records."""
    wish_of_it, records.wait_for_disk = records.wait_for_disk, False
    records.run(
        creations.create(a_request(refund_id, payment_intent=f"pi_{refund_id}"), Lane.SINGLE)
    )
    (moving,) = records.get_many([refund_id])
    assert moving is not None
    records.run(saves.save(moving, decisions.cancel(moving)))
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
    records.now = NOW + record_time.MOST_BACK
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
    records.now = NOW + record_time.MOST_BACK - timedelta(milliseconds=1)
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
    records.now = NOW + record_time.MOST_BACK
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
    assert records.run(saves.save(replace(ended, status=Status.FAILED), again)).result == "saved"
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
