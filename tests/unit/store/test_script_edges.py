"""Accepting, claiming and saving at their edges.

What is stored, what is dropped, and what is left as it was.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError

from tests.factories import HOUR, MINUTE, NOT_DONE, SECOND, a_request, done_as
from tests.support.store_world import ID, LEASE, P, World, at_stage
from tests.unit.store.test_script_moves import recover
from worker.errors import NotStorable
from worker.model.refund import Lane, Stage, Status
from worker.model.request import request_body
from worker.model.steps import Step
from worker.rules import decisions, rechecks
from worker.store import claims, creations, saves, sweeps
from worker.store.scripts import Command


@pytest.fixture
def world(sync_redis: redis.Redis) -> World:
    """The records on the real server."""
    return World(sync_redis)


# Accepting


def test_record_of_a_single_refund_names_no_lane(world: World) -> None:
    world.accept("a")
    world.accept("b", lane=Lane.BULK)
    assert "lane" not in world.hash("refund:a")
    assert world.hash("refund:b")["lane"] == "refunds.bulk"
    assert not world.keys("batch*")


@pytest.mark.parametrize("lane", list(Lane))
def test_refund_that_begins_in_doubt_can_be_sent_as_it_was_asked_for(
    world: World, lane: Lane
) -> None:
    recover(world)
    world.accept(lane=lane)
    refund = world.get()
    assert (refund.stage, refund.lane) == (Stage.IN_DOUBT, lane)
    assert (refund.doubt_since, refund.first_attempt_at, refund.quiet_at) == (
        world.now - HOUR,
        world.now - HOUR,
        world.now,
    )
    claim = world.claim(kind="replay")
    assert claim.body == request_body(a_request(), 1)
    assert not world.keys("batch*")


def test_recovery_that_is_over_leaves_new_refunds_alone(world: World) -> None:
    recover(world)
    world.pass_time(HOUR)
    world.accept()
    assert world.get().stage is Stage.QUEUED


def test_rows_accepted_at_once_are_counted_by_their_currencies(world: World) -> None:
    rows = [
        a_request("a", currency="eur", amount=500),
        a_request("b", currency="eur", amount=300),
        a_request("c", amount=7),
        a_request("d", amount=None),
    ]
    results = world.store.run(creations.create_several([*rows, rows[0]], Lane.SINGLE, "b1"))
    assert [one.result for one in results] == ["created"] * 4 + ["exists"]
    counters = world.hash("counters")
    assert {name: value for name, value in counters.items() if name.startswith("open:")} == {
        "open:queued:eur": "800",
        "open:queued:unknown": "7",
    }
    assert counters["move:new:queued"] == "4"
    batch = world.hash("batch:b1")
    assert (batch["stage:queued"], batch["status:pending"]) == ("4", "4")
    assert world.redis.lrange("refunds:batch-refunds:b1", 0, -1) == ["a", "b", "c", "d"]


def test_same_id_with_other_contents_twice_in_one_go_is_a_conflict(world: World) -> None:
    results = world.store.run(
        creations.create_several([a_request("a", amount=1), a_request("a", amount=2)], Lane.SINGLE)
    )
    assert [one.result for one in results] == ["created", "conflict"]
    assert world.get("a").amount == 1


# Claiming


def test_waiting_refund_that_is_held_back_is_not_marked_as_a_queued_one(world: World) -> None:
    world.accept("queued", payment_intent="pi_other")
    world.accept()
    world.attempt(NOT_DONE)
    world.pass_time(HOUR)
    world.redis.hset("refunds:meta", "paused", "1")
    for refund_id in (ID, "queued"):
        assert world.claim(refund_id).result == "paused"
        assert world.get(refund_id).next_check_at == world.now + 15 * SECOND
    assert "held" not in world.hash(f"refund:{ID}")
    assert world.hash("refund:queued")["held"] == "1"


def test_row_of_a_paused_batch_is_looked_at_again_soon(world: World) -> None:
    world.accept(batch="b")
    world.redis.hset("refunds:batch:b", "state", "paused")
    assert world.claim().result == "batch"
    assert world.get().next_check_at == world.now + 15 * SECOND


def test_row_of_a_batch_that_begins_later_is_looked_at_then(world: World) -> None:
    world.accept(batch="b")
    begins = int((world.now + MINUTE).timestamp() * 1000)
    world.redis.hset("refunds:batch:b", "not_before", begins)
    assert world.claim().result == "batch"
    assert world.get().next_check_at == world.now + MINUTE
    world.pass_time(MINUTE)
    assert world.claim().claimed


def test_row_of_a_canceled_batch_keeps_nothing_of_its_way(world: World) -> None:
    world.accept(batch="b")
    world.redis.hset("refunds:batch:b", "state", "canceled")
    worked_with = (
        "quiet_at",
        "absent_at",
        "proven_absent_at",
        "doubted",
        "operator_says",
        "operator_by",
        "operator_code",
        "operator_unverified",
        "lapses",
        "verdicts",
        "server_errors",
        "looks",
        "resends",
        "retriable",
        "first_attempt_at",
    )
    for name in worked_with:
        world.redis.hset(f"refunds:refund:{ID}", name, "no" if name == "retriable" else "1")
    # Not only a person says that nothing was sent.
    world.redis.hset(f"refunds:refund:{ID}", "evidence", "list")
    world.redis.hset(
        f"refunds:refund:{ID}", "baseline", '{"refunded":1,"currency":"usd","remaining":2}'
    )
    assert world.claim().result == "canceled"
    stored = world.hash(f"refund:{ID}")
    assert (stored["stage"], stored["status"]) == ("settled", "canceled")
    assert not {*worked_with, "baseline", "idempotency_key", "doubt_since", "next_check_at"} & set(
        stored
    )


def test_canceled_batch_ends_no_doubt(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    world.redis.hset(f"refunds:refund:{ID}", "batch_id", "b")
    world.redis.hset("refunds:batch:b", "state", "canceled")
    world.pass_time(HOUR)
    assert world.claim(kind="replay").claimed


def test_claim_without_memory_begins_with_the_servers_code(world: World) -> None:
    world.accept()
    # As Redis 6 says it.
    first = """
    local server = redis
    local redis = {call = server.call, error_reply = server.error_reply}
    function redis.pcall(name, ...)
        if name == 'SET' then return {err = '@user_script: 921: -OOM command not allowed'} end
        return server.pcall(name, ...)
    end
    """
    command = claims.claim(ID, "send", token="token", lease=LEASE)
    _, _, _, *arguments = world.store.raw_command(command)
    told: Any = world.redis.eval(f"{first}\n{command.script.text}", 0, *map(str, arguments))
    assert isinstance(told[0], OutOfMemoryError)


# Saving


def test_queued_refund_that_is_put_off_is_marked_as_held_back(world: World) -> None:
    world.accept()
    step = Step(to=Stage.QUEUED, status=Status.PENDING, label="x", delay=MINUTE, quiet=True)
    assert world.save(world.get(), step).result == "saved"
    assert world.hash(f"refund:{ID}")["held"] == "1"
    assert world.swept(dry=frozenset(Lane)) == []
    world.pass_time(MINUTE)
    assert world.swept() == [ID]
    assert "held" not in world.hash(f"refund:{ID}")


@pytest.mark.parametrize(("held", "found"), [(19, ["lost"]), (20, [])])
def test_lost_nudge_is_found_behind_so_many_pages_of_what_is_held_back(
    world: World, held: int, found: list[str]
) -> None:
    step: Any = Step(to=Stage.QUEUED, status=Status.PENDING, label="x", delay=MINUTE, quiet=True)
    for number in range(held):
        refund_id = f"held-{number:02}"
        world.accept(refund_id, payment_intent=f"pi_{number}")
        world.save(world.get(refund_id), step)
    # Nudged so long ago that the nudge counts as lost, and due behind all of those.
    world.accept("lost", payment_intent="pi_lost")
    world.pass_time(20 * SECOND)
    assert world.swept(1, dry=frozenset(Lane)) == found


# Giving back


@pytest.mark.parametrize("stage", [Stage.REVIEW, Stage.SETTLED])
def test_refund_that_no_worker_has_to_do_with_is_not_given_back(world: World, stage: Stage) -> None:
    at_stage(world, stage)
    world.pass_time(48 * HOUR)
    before = world.dump()
    assert world.store.run(sweeps.give_back([ID, "nobody"])) == 0
    assert world.dump() == before


@pytest.mark.parametrize("since", [0 * SECOND, SECOND])
def test_doubt_that_a_sweep_took_is_due_again_when_it_was_once_it_is_given_back(
    world: World, since: timedelta
) -> None:
    due = at_stage(world, Stage.IN_DOUBT).next_check_at
    assert due is not None
    world.store.now = due + since
    assert world.swept() == [ID]
    assert world.score("due", ID) == world.now + sweeps.SWEEP_HOLD
    assert world.store.run(sweeps.give_back([ID])) == 1
    assert (world.score("due", ID), world.get().next_check_at) == (due, due)
    world.check()


# Fields that are not whole numbers


@pytest.mark.parametrize("does", ["claim", "save"])
@pytest.mark.parametrize(
    "name",
    ["version", "attempts", "amount", "created_at", "updated_at", "next_check_at", "resends"],
)
def test_record_with_a_field_that_is_no_whole_number_is_left_as_it_is(
    world: World, name: str, does: str
) -> None:
    world.accept()
    cancel = saves.save(world.get(), decisions.cancel(world.get()))
    claim = claims.claim(ID, "send", token="token", lease=LEASE, currency_checked=True)
    world.redis.hset(f"{P}refund:{ID}", name, "odd")
    before = world.dump()
    command: Command[Any] = claim if does == "claim" else cancel
    with pytest.raises(NotStorable, match=f"{name} odd is not a whole number"):
        world.store.run(command)
    assert world.dump() == before


# Keys of another type


def test_settled_refund_is_changed_as_a_whole_if_the_key_of_its_owner_is_of_another_type(
    world: World,
) -> None:
    world.accept()
    world.end(world.claim(), done_as("succeeded"))
    refund = world.get()
    owner = f"{P}owner:{refund.provider_refund_id}"
    world.redis.delete(owner)
    world.redis.rpush(owner, "x")
    shown = done_as("failed").found
    assert shown is not None
    step = rechecks.changed_by_provider(refund, shown, "lookup", world.now)
    assert step is not None
    seq = int(world.hash(f"payment:{refund.payment_intent}")["seq"])
    assert world.save(refund, step).result == "saved"
    assert world.get().status is Status.FAILED
    assert int(world.hash(f"payment:{refund.payment_intent}")["seq"]) == seq + 1


def test_failed_row_is_not_sent_again_if_the_index_of_its_lane_is_of_another_type(
    world: World,
) -> None:
    world.accept(lane=Lane.BULK)
    world.attempt(done_as("failed"))
    step = decisions.retry_failed(world.get())
    assert step is not None
    world.redis.set(f"{P}index:queued.bulk", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match="a value of another type"):
        world.save(world.get(), step)
    assert world.dump() == before


@pytest.mark.parametrize(("state", "result"), [("canceled", "canceled"), ("paused", "batch")])
def test_claim_that_is_refused_says_so_if_the_rechecks_are_of_another_type(
    world: World, state: str, result: str
) -> None:
    world.accept(batch="b1")
    world.redis.hset(f"{P}batch:b1", "state", state)
    world.redis.set(f"{P}rechecks", "x")
    claim = world.claim()
    assert (claim.result, claim.recheck) == (result, "")
