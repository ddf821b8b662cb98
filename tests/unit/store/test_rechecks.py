"""Refunds that are to be read again because of a webhook: when, how often, and when no more."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.factories import (
    HOUR,
    MAYBE,
    MINUTE,
    NOT_DONE,
    REFUSED,
    SECOND,
    VERIFY,
    a_request,
    done_as,
)
from tests.support.store_world import ID, P, World, at_stage
from tests.unit.store.hinting import hint
from worker.errors import NotStorable
from worker.model.hints import Hint
from worker.model.refund import Lane, Stage, Status
from worker.rules import decisions, proofs
from worker.store import reads, rechecks, sweeps
from worker.store.rechecks import Rechecked


def test_recheck_without_an_answer_waits_longer_each_time_and_is_then_given_up(
    world: World,
) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    hint(world)
    waits = []
    for _ in range(4):
        (taken,) = world.sweep()
        assert taken.stage is None
        recheck = world.store.run(reads.load(ID)).recheck
        ended = world.store.run(rechecks.rechecked(ID, answered=False, recheck=recheck))
        waits.append((ended.result, ended.wait))
        world.pass_time(ended.wait)
    assert waits == [
        ("again", timedelta(minutes=1)),
        ("again", timedelta(minutes=10)),
        ("again", timedelta(hours=1)),
        ("given_up", timedelta(0)),
    ]
    assert world.keys("recheck*") == []
    world.check()


def test_recheck_of_an_unsent_refund_without_an_answer_holds_it_back(world: World) -> None:
    world.accept()
    hint(world)
    recheck = world.store.run(reads.load(ID)).recheck
    world.store.run(rechecks.rechecked(ID, answered=False, recheck=recheck))
    assert world.get().next_check_at == world.now + timedelta(minutes=1)
    assert world.swept(dry=frozenset(Lane)) == []
    world.pass_time(timedelta(minutes=1))
    assert world.swept(dry=frozenset(Lane)) == [ID]
    world.check()


def test_recheck_of_a_waiting_refund_without_an_answer_postpones_it(world: World) -> None:
    world.accept()
    world.attempt(NOT_DONE)
    world.pass_time(HOUR)
    world.store.run(rechecks.rechecked(ID, answered=False))
    assert world.score("due", ID) == world.now + MINUTE
    assert world.keys("rechecks") == []
    world.check()


def test_event_that_comes_while_an_unsent_refund_is_read_in_vain_is_not_forgotten(
    world: World,
) -> None:
    world.accept()
    world.redis.zadd("refunds:rechecks", {ID: 5})
    world.store.run(rechecks.rechecked(ID, answered=False, recheck="4"))
    assert world.redis.zscore("refunds:rechecks", ID) == 5


def test_recheck_whose_reads_in_vain_cannot_be_counted_is_given_up(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    world.redis.set("refunds:recheck-tries", "x")
    world.redis.zadd("refunds:rechecks", {ID: 5})
    ended = world.store.run(rechecks.rechecked(ID, answered=False, recheck="5"))
    assert ended == Rechecked(result="given_up", wait=timedelta(0))
    assert world.keys("rechecks") == []


def test_recheck_that_was_answered_is_done_without_a_wait(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    ended = world.store.run(rechecks.rechecked(ID, answered=True))
    assert ended == Rechecked(result="done", wait=timedelta(0))


@pytest.mark.parametrize(
    ("read", "left"),
    [([], "re_1 re_2"), (["re_1"], "re_2"), (["re_1", "re_2"], None)],
)
def test_what_was_read_is_not_read_again_and_the_rest_is(
    world: World, read: list[str], left: str | None
) -> None:
    world.accept()
    world.redis.hset(f"{P}refund:{ID}", "hinted", "re_1 re_2")
    world.store.run(rechecks.rechecked(ID, answered=True, read=read))
    assert world.hash(f"refund:{ID}").get("hinted") == left


@pytest.mark.parametrize(("recheck", "left"), [("5", "re_1"), ("", None)])
def test_what_a_recheck_read_before_the_doubt_began_is_read_once_more(
    world: World, recheck: str, left: str | None
) -> None:
    at_stage(world, Stage.IN_DOUBT)
    world.redis.hset(f"{P}refund:{ID}", "hinted", "re_1")
    world.store.run(rechecks.rechecked(ID, answered=True, recheck=recheck, read=["re_1"]))
    assert world.hash(f"refund:{ID}").get("hinted") == left


@pytest.mark.parametrize(
    ("stage", "marked"),
    [
        (Stage.PROCESSING, True),
        (Stage.SETTLED, True),
        (Stage.REVIEW, True),
        (Stage.QUEUED, False),
        (Stage.WAITING, False),
        (Stage.IN_DOUBT, False),
    ],
)
def test_what_moved_nothing_may_be_named_again_unless_the_refund_may_still_be_sent(
    world: World, stage: Stage, *, marked: bool
) -> None:
    at_stage(world, stage)
    world.redis.hset(f"{P}refund:{ID}", "hints_used", "re_1 re_2")
    world.store.run(rechecks.rechecked(ID, answered=True, again=["re_2"]))
    used = world.hash(f"refund:{ID}")["hints_used"]
    assert used == ("re_1 re_2?" if marked else "re_1 re_2")


def test_recheck_of_a_refund_whose_record_has_expired_is_over(world: World) -> None:
    world.redis.zadd("refunds:rechecks", {ID: 1})
    world.redis.hset("refunds:recheck-tries", ID, 2)
    ended = world.store.run(rechecks.rechecked(ID, answered=False, recheck="1"))
    assert ended == Rechecked(result="done", wait=timedelta(0))
    assert world.keys("recheck*") == []


def test_recheck_changes_nothing_if_the_index_of_the_refund_is_of_another_type(
    world: World,
) -> None:
    world.accept()
    hint(world)
    recheck = world.store.run(reads.load(ID)).recheck
    world.redis.delete(f"{P}index:queued")
    world.redis.set(f"{P}index:queued", "x")
    before = world.dump()
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        world.store.run(rechecks.rechecked(ID, answered=False, recheck=recheck))
    assert world.dump() == before


def test_recheck_that_a_worker_took_and_never_ended_is_taken_again(world: World) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    hint(world)
    assert world.swept() == [ID]
    assert world.swept() == []
    world.pass_time(sweeps.SWEEP_HOLD)
    assert world.swept() == [ID]


@pytest.mark.parametrize("answered", [True, False])
def test_event_that_comes_while_a_refund_is_read_keeps_its_time(
    world: World, *, answered: bool
) -> None:
    world.accept()
    world.attempt(done_as("succeeded", id="re_9"))
    hint(world)
    recheck = world.store.run(reads.load(ID)).recheck
    world.pass_time(SECOND)
    hint(world)
    named = world.score("rechecks", ID)
    ended = world.store.run(rechecks.rechecked(ID, answered=answered, recheck=recheck))
    assert ended.wait == (timedelta(0) if answered else MINUTE)
    assert world.score("rechecks", ID) == named
    world.pass_time(rechecks.REST)
    assert world.swept() == [ID]


def test_doubt_that_is_read_in_vain_stays_with_its_own_schedule(world: World) -> None:
    world.accept()
    world.attempt(MAYBE)
    hint(world)
    recheck = world.store.run(reads.load(ID)).recheck
    named = world.score("rechecks", ID)
    world.store.run(rechecks.rechecked(ID, answered=False, recheck=recheck))
    assert world.score("rechecks", ID) == named


def test_sweep_forgets_rechecks_of_refunds_that_are_gone_or_may_be_sent(world: World) -> None:
    world.accept()
    world.attempt(REFUSED)
    world.redis.hset(f"refunds:refund:{ID}", "retriable", "unknown")
    world.redis.zadd("refunds:rechecks", {ID: 1, "gone": 1})
    world.redis.hset("refunds:recheck-tries", mapping={ID: 2, "gone": 2})
    step = decisions.retry_failed(world.get())
    assert step is not None
    world.save(world.get(), step)
    assert world.swept() == []
    assert world.keys("recheck*") == []


def test_sweep_takes_rechecks_last_and_at_most_a_hundred(world: World) -> None:
    for number in range(120):
        world.accept(a_request(f"r{number}", payment_intent=f"pi_{number}"))
        world.attempt(done_as("succeeded", id=f"re_{number}"), f"r{number}")
        hint(world, Hint(provider_refund_id=f"re_{number}"))
    world.accept()
    world.attempt(MAYBE)
    world.pass_time(VERIFY.settle)
    taken = world.sweep(500)
    assert [one.refund_id for one in taken[:1]] == [ID]
    assert len(taken) == 1 + sweeps.MOST_RECHECKS
    assert len(world.sweep(15)) == 15


def test_sweep_goes_on_if_a_key_that_is_to_be_read_again_is_of_another_type(world: World) -> None:
    world.accept()
    world.attempt(MAYBE)
    world.redis.set("refunds:refund:odd", "x")
    world.redis.zadd("refunds:rechecks", {"odd": 1})
    world.pass_time(VERIFY.settle)
    assert world.swept() == [ID]
    assert world.keys("rechecks") == []
    assert world.redis.get("refunds:refund:odd") == "x"


def test_reads_in_vain_are_not_counted_any_more_once_the_named_refund_is_ours(
    world: World,
) -> None:
    world.accept()
    world.attempt(MAYBE)
    hint(world)
    world.store.run(rechecks.rechecked(ID, answered=False))
    assert world.hash("recheck-tries") == {ID: "1"}
    shown = done_as("succeeded", id="re_9").found
    assert shown is not None
    world.save(world.get(), proofs.done(world.get(), shown, "list", world.now))
    assert (world.get().status, world.keys("recheck*")) == (Status.SUCCEEDED, [])
    world.check()
