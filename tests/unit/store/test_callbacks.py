"""Callbacks in the records: which endpoint is to learn what, and what becomes of a try.

A member is due for an endpoint until the endpoint holds its present version.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import MINUTE, REFUSED, SECOND
from tests.support.store_world import ID, World, at_stage
from tests.unit.store.calling_back import (
    BOOKS,
    LEASE,
    SHOP,
    a_batch,
    change,
    due,
    end,
    fail,
    settle,
    switched_on,
    take,
)
from worker.batches.opening import close_batch
from worker.errors import NotStorable
from worker.model.refund import Stage
from worker.rules import decisions
from worker.sandbox.redis_server import ThrowawayServer
from worker.store import callback_state, callbacks
from worker.store.callbacks import Taken

DAY = timedelta(days=1)


@pytest.fixture
def world(any_redis: redis.Redis) -> World:
    """Records with callbacks switched on."""
    return switched_on(any_redis)


def test_nothing_is_noted_while_callbacks_are_off(any_redis: redis.Redis) -> None:
    world = World(any_redis)
    settle(world)
    at_stage(world, Stage.REVIEW, "r", payment_intent="pi_r")
    a_batch(world, "row")
    fail(world, "row")
    close_batch(world.store, "b-1", handed_in=1, conflicting=0)
    assert world.keys("callback*") == []


@pytest.mark.parametrize("stage", Stage)
def test_refund_is_due_if_it_settled_or_needs_review(world: World, stage: Stage) -> None:
    at_stage(world, stage)
    is_due = stage in {Stage.SETTLED, Stage.REVIEW}
    assert due(world) == ({"shop": [ID]} if is_due else {})
    world.check()


def test_refund_is_over_once_the_endpoint_holds_its_version(world: World) -> None:
    settle(world)
    assert due(world) == {"shop": [ID]}
    taken = take(world)
    assert (taken.result, taken.tries, taken.status_before) == ("taken", 0, "pending")
    assert taken.stored == world.hash(f"refund:{ID}")
    assert end(world, "delivered") == "done"
    world.pass_time(DAY)
    assert due(world) == {}
    assert world.keys("callback*") == [
        "refunds:callback-endpoint:shop",
        "refunds:callback-endpoints",
        "refunds:callback-log:shop",
    ]
    assert world.hash("counters")["callback:shop:delivered"] == "1"
    assert world.redis.xlen("refunds:callback-log:shop") == 1
    world.check()


def test_try_of_which_nothing_is_to_be_said_leaves_no_entry_in_the_log(world: World) -> None:
    settle(world)
    due(world)
    take(world)
    version = str(world.get().version)
    ended = callbacks.ended("shop", ID, token="t1", result="skipped", version=version, wait=None)
    assert world.store.run(ended) == "done"
    assert not world.redis.exists("refunds:callback-log:shop")


def test_moves_in_a_burst_make_one_callback_with_the_last_version(world: World) -> None:
    settle(world)
    change(world)
    change(world)
    assert due(world) == {"shop": [ID]}
    taken = take(world)
    assert taken.stored is not None
    assert taken.stored["version"] == str(world.get().version)
    assert taken.status_before == "failed"
    assert end(world, "delivered") == "done"
    assert due(world) == {}


@pytest.mark.parametrize("result", ["delivered", "failed", "skipped"])
def test_move_during_a_try_makes_the_refund_due_again_at_once(
    world: World, result: callbacks.Result
) -> None:
    settle(world)
    due(world)
    take(world)
    before = world.get().version
    change(world)
    due(world)
    # The try is not disturbed: no other begins beside it.
    assert take(world, "t2").result == "leased"
    assert end(world, result, version=before) == "newer"
    assert due(world) == {"shop": [ID]}
    taken = take(world, "t2")
    assert (taken.result, taken.tries) == ("taken", 0)
    assert end(world, "delivered", holder="t2") == "done"


@pytest.mark.parametrize("has_crashed", [False, True])
def test_move_between_two_tries_is_due_at_once_with_all_tries_before_it(
    world: World, *, has_crashed: bool
) -> None:
    settle(world)
    due(world)
    take(world)
    assert end(world, "failed", wait=MINUTE) == "again"
    if has_crashed:
        world.pass_time(MINUTE)
        assert take(world, "t2").tries == 1
        world.pass_time(LEASE)
    change(world)
    assert due(world) == {"shop": [ID]}
    taken = take(world, "t3")
    assert (taken.result, taken.tries) == ("taken", 0)


def test_endpoint_lags_since_the_first_version_that_it_does_not_hold(world: World) -> None:
    settle(world)
    due(world)
    start = world.now
    world.pass_time(MINUTE)
    change(world)
    due(world)
    (shop,) = callback_state.read_callbacks(world.store).endpoints
    assert shop.waiting_since == start
    take(world)
    end(world, "delivered")
    change(world)
    due(world)
    (shop,) = callback_state.read_callbacks(world.store).endpoints
    assert shop.waiting_since == world.now


@pytest.mark.parametrize("wait", [timedelta(0), -SECOND])
def test_failed_try_whose_wait_is_over_is_due_at_once(world: World, wait: timedelta) -> None:
    settle(world)
    due(world)
    take(world)
    assert end(world, "failed", wait=wait) == "again"
    assert due(world) == {"shop": [ID]}


def test_refund_that_is_sent_again_is_not_reported_until_it_ends_again(world: World) -> None:
    at_stage(world, Stage.QUEUED)
    world.attempt(REFUSED)
    world.redis.hset(f"refunds:refund:{ID}", "retriable", "unknown")
    due(world)
    step = decisions.retry_failed(world.get())
    assert step is not None
    world.save(world.get(), step)
    assert take(world).result == "taken"
    assert end(world, "skipped") == "done"
    assert due(world) == {}
    world.attempt(REFUSED)
    assert due(world) == {"shop": [ID]}


def test_try_that_a_crash_ended_begins_again_after_its_lease_and_not_before(world: World) -> None:
    settle(world)
    due(world)
    take(world)
    world.pass_time(LEASE - SECOND)
    due(world)
    assert take(world, "t2").result == "leased"
    world.pass_time(callbacks.HOLD)
    assert due(world) == {"shop": [ID]}
    assert take(world, "t2").result == "taken"
    # The first process was only slow: what it sent arrived, and that is all there is to send.
    assert end(world, "failed", holder="t1") == "late"
    assert end(world, "delivered", holder="t1") == "done"
    assert take(world, "t3").result == "gone"


@pytest.mark.parametrize("given", [1, 2])
def test_endpoint_that_is_told_in_part_shares_out_nothing(world: World, given: int) -> None:
    settle(world)
    asked = callbacks.outbox([BOOKS, SHOP])
    before = world.dump()
    with pytest.raises(NotStorable, match="the most is not a whole number"):
        world.store.run(replace(asked, arguments=asked.arguments[: 6 + given]))
    assert world.dump() == before


def test_try_that_does_not_begin_tells_why_and_nothing_of_the_member(world: World) -> None:
    assert take(world) == Taken(result="gone", now=world.now, tries=0)


def test_member_under_way_is_not_taken_before_its_lease_ends(world: World) -> None:
    settle(world)
    due(world)
    world.pass_time(5 * SECOND)
    take(world)
    assert due(world) == {}
    world.pass_time(LEASE - SECOND)
    assert due(world) == {}
    world.pass_time(SECOND)
    assert due(world) == {"shop": [ID]}


@pytest.mark.parametrize("left", [0, 1, "text"])
def test_status_before_is_not_guessed_if_the_history_does_not_tell(
    world: World, left: int | str
) -> None:
    settle(world)
    due(world)
    history = f"refunds:history:{ID}"
    if isinstance(left, str):
        world.redis.set(history, left)
    else:
        moves = world.redis.llen(history)
        world.redis.lpop(history, moves - left)
    taken = take(world)
    assert (taken.result, taken.status_before) == ("taken", None)
    assert taken.stored is not None


def test_record_of_another_type_is_taken_as_none(world: World) -> None:
    settle(world)
    due(world)
    world.redis.set(f"refunds:refund:{ID}", "text")
    taken = take(world)
    assert (taken.result, taken.stored) == ("taken", None)


def test_message_that_is_lost_is_sent_again_after_the_hold(world: World) -> None:
    settle(world)
    assert due(world) == {"shop": [ID]}
    assert due(world) == {}
    world.pass_time(callbacks.HOLD)
    assert due(world) == {"shop": [ID]}


def test_failed_try_is_repeated_after_its_wait_and_the_last_one_is_a_dead_letter(
    world: World,
) -> None:
    settle(world)
    due(world)
    take(world)
    assert end(world, "failed", wait=MINUTE) == "again"
    # A message that comes twice does not shorten the wait.
    assert take(world, "t2").result == "early"
    world.pass_time(MINUTE - SECOND)
    assert due(world) == {}
    world.pass_time(SECOND)
    assert due(world) == {"shop": [ID]}
    assert take(world, "t2").tries == 1
    assert end(world, "failed", holder="t2", wait=None) == "dead"
    world.pass_time(DAY)
    assert due(world) == {}
    assert world.score("callback-dead:shop", ID) == world.now - DAY
    counters = world.hash("counters")
    assert (counters["callback:shop:failed"], counters["callback:shop:dead"]) == ("2", "1")


def test_dead_letter_is_due_again_if_it_is_replayed_or_the_refund_moves(world: World) -> None:
    for number, revive in enumerate((_replay, change)):
        refund_id = f"r{number}"
        settle(world, refund_id)
        due(world)
        take(world, member=refund_id)
        assert end(world, "failed", member=refund_id, wait=None) == "dead"
        revive(world, refund_id)
        assert due(world) == {"shop": [refund_id]}
        assert world.score("callback-dead:shop", refund_id) is None
        assert take(world, "t2", member=refund_id).tries == 0


def _replay(world: World, refund_id: str) -> None:
    assert world.store.run(callbacks.replay("shop", [refund_id, "x"], only_dead=True)) == 1


def test_refund_that_the_endpoint_holds_is_replayed_on_request(world: World) -> None:
    settle(world)
    due(world)
    take(world)
    end(world, "delivered")
    assert world.store.run(callbacks.replay("shop", [ID])) == 1
    assert due(world) == {"shop": [ID]}


def test_try_that_cannot_be_noted_does_not_begin(world: World) -> None:
    settle(world)
    due(world)
    world.redis.set("refunds:callback-tries:shop", "x")
    world.pass_time(SECOND)
    before = world.dump()
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        take(world)
    assert world.dump() == before


def test_expired_record_is_taken_as_none_and_is_over(world: World) -> None:
    settle(world)
    due(world)
    world.redis.delete(f"refunds:refund:{ID}")
    taken = take(world)
    assert (taken.result, taken.stored) == ("taken", None)
    assert end(world, "skipped", version="") == "done"


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("settle", "change", "sweep", "lost", "post", "crash", "fail", "wait")),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(operations=OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_and_no_receiver_ends_with_an_old_version(
    redis_server: ThrowawayServer, operations: list[tuple[str, int]]
) -> None:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        client.flushall()
        world = switched_on(client)
        shop = _Shop(world)
        for operation, number in operations:
            shop.do(operation, f"r{number}")
        for _ in range(60):
            world.pass_time(5 * MINUTE)
            shop.do("sweep", "")
            while shop.messages:
                shop.do("post", "")
        dead = set(client.zrange("refunds:callback-dead:shop", 0, -1))
        for refund_id in shop.settled - dead:
            assert shop.held[refund_id] == world.get(refund_id).version


class _Shop:
    """A receiver that drops what is not newer, and the worker that sends to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.settled: set[str] = set()
        self.messages: list[str] = []
        self.held: dict[str, int] = {}
        self.tokens = 0

    def do(self, operation: str, refund_id: str) -> None:
        if operation == "settle" and refund_id not in self.settled:
            settle(self.world, refund_id)
            self.settled.add(refund_id)
        elif operation == "change" and refund_id in self.settled:
            change(self.world, refund_id)
        elif operation in {"sweep", "lost"}:
            members = due(self.world).get("shop", [])
            self.messages += members if operation == "sweep" else []
        elif operation == "wait":
            self.world.pass_time(20 * SECOND)
        elif operation in {"post", "crash", "fail"} and self.messages:
            self.post(self.messages.pop(0), operation)

    def post(self, member: str, operation: str) -> None:
        self.tokens += 1
        taken = take(self.world, f"t{self.tokens}", member=member)
        if taken.result != "taken" or taken.stored is None:
            return
        version = int(taken.stored["version"])
        if operation != "fail":
            self.held[member] = max(version, self.held.get(member, 0))
        if operation != "crash":
            result: callbacks.Result = "delivered" if operation == "post" else "failed"
            end(self.world, result, holder=f"t{self.tokens}", member=member, version=version)
