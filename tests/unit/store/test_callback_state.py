"""What is read and changed about endpoints, and that a change is on disk before it is reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from worker.errors import StoreUnavailable
from worker.store import callback_state
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
