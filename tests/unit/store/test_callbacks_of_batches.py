"""Callbacks in the records: when a file is due, and how often."""

from __future__ import annotations

import pytest
import redis

from tests.factories import BLIND, MAYBE, REFUSED, done_as
from tests.support.store_world import World
from tests.unit.store.calling_back import (
    BOOKS,
    SHOP,
    a_batch,
    change,
    due,
    end,
    fail,
    switched_on,
    take,
)
from worker.batches.moves import cancel_batch
from worker.batches.opening import close_batch
from worker.callbacks.payload import message_of


@pytest.fixture
def world(any_redis: redis.Redis) -> World:
    """Records with callbacks switched on."""
    return switched_on(any_redis)


def test_batch_is_due_once_nothing_of_it_moves_and_its_file_was_read(world: World) -> None:
    a_batch(world, "r1", "r2")
    fail(world, "r1")
    fail(world, "r2")
    assert due(world) == {"shop": ["r1", "r2"]}
    close_batch(world.store, "b-1", handed_in=2, conflicting=0)
    assert due(world, SHOP, BOOKS) == {"shop": ["batch/b-1"]}
    taken = take(world, member="batch/b-1")
    assert taken.stored == world.hash("batch:b-1")
    assert taken.stored["finishes"] == "1"
    assert end(world, "delivered", member="batch/b-1", version="1") == "done"


def test_batch_is_due_after_its_last_refund_and_again_if_one_changes(world: World) -> None:
    a_batch(world, "r1", "r2")
    close_batch(world.store, "b-1", handed_in=2, conflicting=0)
    fail(world, "r1")
    assert due(world) == {"shop": ["r1"]}
    world.attempt(done_as("succeeded", id="re_r2"), "r2")
    assert due(world) == {"shop": ["batch/b-1", "r2"]}
    take(world, member="batch/b-1")
    change(world, "r2")
    assert end(world, "delivered", member="batch/b-1", version="1") == "newer"
    assert world.hash("batch:b-1")["finishes"] == "2"


def test_batch_with_a_refund_in_review_is_due_too(world: World) -> None:
    a_batch(world, "r1")
    close_batch(world.store, "b-1", handed_in=1, conflicting=0)
    world.attempt(MAYBE, "r1", rules=BLIND)
    assert due(world) == {"shop": ["batch/b-1", "r1"]}


def test_batch_with_an_earlier_refund_in_review_is_due_after_its_last_one(world: World) -> None:
    a_batch(world, "r1", "r2")
    close_batch(world.store, "b-1", handed_in=2, conflicting=0)
    world.attempt(MAYBE, "r1", rules=BLIND)
    assert due(world) == {"shop": ["r1"]}
    fail(world, "r2")
    assert due(world) == {"shop": ["batch/b-1", "r2"]}


def test_batch_canceled_during_its_import_is_due_once_nothing_of_it_moves(world: World) -> None:
    """The rest of its file is refused, so no further row is waited for."""
    a_batch(world, "r1", "r2")
    claim = world.claim("r1")
    cancel_batch(world.store, "b-1", "kim")
    assert due(world) == {"shop": ["r2"]}
    world.end(claim, REFUSED)
    assert due(world) == {"shop": ["batch/b-1", "r1"]}
    message = message_of("", "batch/b-1", take(world, member="batch/b-1"), metadata=True)
    assert message is not None
    assert (message.event, message.version) == ("batch.finished", "1")


def test_batch_canceled_after_its_last_refund_although_its_import_was_not_complete_is_due(
    world: World,
) -> None:
    a_batch(world, "r1")
    fail(world, "r1")
    assert due(world) == {"shop": ["r1"]}
    cancel_batch(world.store, "b-1", "kim")
    assert due(world) == {"shop": ["batch/b-1"]}
    cancel_batch(world.store, "b-1", "kim")
    assert world.hash("batch:b-1")["finishes"] == "1"
