"""What is read and changed about endpoints, and that a change is on disk before it is reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.factories import SECOND
from worker.errors import StoreUnavailable
from worker.model.times import from_ms
from worker.store import callback_state, callbacks
from worker.store.store import Store


@pytest.fixture
def store(any_redis: redis.Redis) -> Store:
    return Store(any_redis, durable=False)


class Unconfirmed(Store):
    """A store whose disk confirms nothing."""

    def confirm(self) -> None:
        raise StoreUnavailable("not on disk")


CHANGES: list[Callable[[Store], bool]] = [
    lambda store: callback_state.turn_on(store, "ann"),
    callback_state.turn_off,
    lambda store: callback_state.pause(store, "shop", "ann"),
    lambda store: callback_state.resume(store, "shop"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_change_is_on_disk_before_it_is_reported(
    fake_redis: redis.Redis, change: Callable[[Store], bool]
) -> None:
    with pytest.raises(StoreUnavailable):
        change(Unconfirmed(fake_redis, durable=False))


def test_first_pause_keeps_its_author(store: Store) -> None:
    assert callback_state.pause(store, "shop", "ann")
    assert not callback_state.pause(store, "shop", "bob")
    (state,) = callback_state.read_callbacks(store, ["shop"]).endpoints
    assert (state.paused_by, state.paused_at is not None) == ("ann", True)


def test_resumed_endpoint_is_as_one_that_never_failed(store: Store) -> None:
    callback_state.pause(store, "shop", "ann")
    key = "refunds:callback-endpoint:shop"
    circuit = {"failures": "9", "probe": "x", "probes": "3", "probe_at": "5", "failing_since": "5"}
    store.redis.hset(key, mapping=circuit | {"delivered_at": "7"})  # type: ignore[arg-type]
    assert callback_state.resume(store, "shop")
    assert store.redis.hgetall(key) == {"delivered_at": "7"}
    assert not callback_state.resume(store, "shop")


def test_switch_keeps_who_turned_it_on(store: Store) -> None:
    assert callback_state.turn_on(store, "ann")
    assert not callback_state.turn_on(store, "bob")
    assert callback_state.read_callbacks(store).on_by == "ann"
    assert callback_state.turn_off(store)
    assert callback_state.read_callbacks(store).on_since is None


def test_replay_goes_page_by_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.store.callbacks.REPLAYED", 2)
    assert callback_state.replay(store, "shop", (f"r{number}" for number in range(5))) == 5
    assert store.redis.zcard("refunds:callbacks:shop") == 5


def test_a_refund_is_listed_with_each_endpoint_that_does_not_know_it(store: Store) -> None:
    assert callback_state.of_refund(store, "order-1") == []
    store.redis.zadd("refunds:callback-endpoints", {"shop": 1, "crm": 1, "till": 1})
    store.redis.zadd("refunds:callbacks", {"order-1": 1})
    store.redis.zadd("refunds:callback-since:shop", {"order-1": 1000})
    store.redis.hset("refunds:callback-tries:shop", "order-1", "2 1787730829000 token")
    store.redis.zadd("refunds:callback-dead:till", {"order-1": 2000})
    found = callback_state.of_refund(store, "order-1")
    assert [(each.name, each.tries) for each in found] == [(None, 0), ("shop", 2), ("till", 0)]
    assert [each.waiting_since for each in found] == [None, from_ms(1000), None]
    assert [each.died_at for each in found] == [None, None, from_ms(2000)]


def test_a_replay_leaves_out_none_while_others_are_sent_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.store.store.PAGE", 2)
    ids = [f"r{number}" for number in range(7)]
    store.redis.zadd("refunds:index:failed", {each: 1000 + at for at, each in enumerate(ids)})
    found = callback_state.ended_since(store, from_ms(1001))
    first = [next(found) for _ in range(2)]
    # A person sends two of them again, and so they are not settled any more.
    store.redis.zrem("refunds:index:failed", *first)
    assert [*first, *found] == ids[1:]


def test_limits_of_callbacks_are_those_that_are_documented() -> None:
    assert (callbacks.SHARED_OUT, callbacks.OPEN_FROM) == (200, 5)
    assert (callbacks.LOGGED, callbacks.REPLAYED) == (10_000, 500)
    assert (callbacks.HOLD, callbacks.FIRST_PROBE) == (30 * SECOND, 30 * SECOND)
    assert callbacks.MOST_PROBE == 300 * SECOND
