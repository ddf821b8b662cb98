"""Webhooks that name a refund of the provider which may be ours: it is read before it counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.factories import (
    BLIND,
    HOUR,
    MAYBE,
    PAYMENT,
    SECOND,
    VERIFY,
    done_as,
    found,
)
from tests.support.store_world import ID, World, at_stage
from tests.unit.store.hinting import hint
from worker.model.hints import Hint
from worker.model.refund import Stage, Status
from worker.model.steps import Step
from worker.rules import proofs
from worker.rules.attempts import Rules
from worker.store import reads, rechecks, sweeps
from worker.store.rechecks import Hinted


def test_event_that_names_a_refund_of_another_system_on_our_payment_is_no_candidate(
    world: World,
) -> None:
    world.accept()
    world.attempt(MAYBE)
    found = hint(world, Hint(provider_refund_id="re_9", refund_id="x", payment_intent=PAYMENT))
    assert (found.result, world.get().candidates) == ("payment", ())


def test_candidate_whose_id_is_a_pattern_of_lua_is_noted_once(world: World) -> None:
    world.accept()
    for name in ("re-1", "re-1", "reX1", "re.1"):
        hint(world, Hint(provider_refund_id=name, refund_id=ID))
    assert world.get().candidates == ("re-1", "reX1", "re.1")


def test_three_candidates_of_a_generation_are_read_and_no_more(world: World) -> None:
    world.accept()
    for number in range(20):
        hint(world, Hint(provider_refund_id=f"re_{number}", refund_id=ID))
        hint(world, Hint(provider_refund_id=f"re_{number}", refund_id=ID))
    assert world.get().candidates == ("re_0", "re_1", "re_2")
    ended = world.store.run(
        rechecks.rechecked(ID, answered=True, read=["re_0", "re_1", "re_2"], possible="re_1")
    )
    assert (ended.result, world.get().candidates) == ("done", ())
    assert world.get().possible_refund_id == "re_1"
    # What was read is not read again, and nothing else is either.
    hint(world, Hint(provider_refund_id="re_0", refund_id=ID))
    hint(world, Hint(provider_refund_id="re_77", refund_id=ID))
    assert world.get().candidates == ()
    assert world.claim().claimed
    world.check()


def test_settled_refund_no_longer_tells_which_other_may_be_its_own(world: World) -> None:
    doubted = at_stage(world, Stage.IN_DOUBT)
    world.store.run(rechecks.rechecked(ID, answered=True, possible="re_9"))
    assert world.get().possible_refund_id == "re_9"
    world.save(doubted, proofs.done(doubted, found(), "list", world.now))
    assert (world.get().status, world.get().possible_refund_id) == (Status.SUCCEEDED, None)
    # Nor once that one is read again.
    world.store.run(rechecks.rechecked(ID, answered=True, possible="re_9"))
    assert world.get().possible_refund_id is None


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.SETTLED])
def test_fourth_candidate_is_reported_once(world: World, stage: Stage) -> None:
    """Nobody reads it, and a settled record does not even name it."""
    at_stage(world, stage)
    for number in range(3):
        assert hint(world, Hint(provider_refund_id=f"re_{number}", refund_id=ID)).left_out == ()
    fourth = Hint(provider_refund_id="re_3", refund_id=ID)
    assert hint(world, fourth) == Hinted(result="hinted", left_out=(ID,))
    # One change at the provider is several events.
    assert hint(world, fourth) == Hinted(result="hinted")
    assert hint(world, replace(fourth, provider_refund_id="re_4")).left_out == (ID,)
    assert world.get().candidates == ("re_0", "re_1", "re_2")
    named = world.hash(f"refund:{ID}").get("possible_refund_id")
    assert named == (None if stage is Stage.SETTLED else "re_4")
    world.check()


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.SETTLED])
def test_fourth_candidate_makes_nothing_due_once_the_others_were_read(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage)
    names = [f"re_{number}" for number in range(3)]
    for name in names:
        hint(world, Hint(provider_refund_id=name, refund_id=ID))
    recheck = world.store.run(reads.load(ID)).recheck
    world.store.run(rechecks.rechecked(ID, answered=True, recheck=recheck, read=names))
    world.swept()
    world.pass_time(rechecks.REST)
    fourth = Hint(provider_refund_id="re_3", refund_id=ID)
    assert hint(world, fourth) == Hinted(result="hinted", left_out=(ID,))
    assert world.score("rechecks", ID) is None


def test_event_puts_off_nothing_that_is_due_sooner(world: World) -> None:
    world.accept()
    world.attempt(MAYBE)
    hint(world)
    soon = Step(to=Stage.IN_DOUBT, status=Status.PENDING, label="x", delay=SECOND, quiet=True)
    assert world.save(world.get(), soon).result == "saved"
    # A refund is read because of webhooks every half minute at most.
    hint(world, Hint(provider_refund_id="re_8", refund_id=ID))
    assert world.get().next_check_at == world.now + SECOND


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING, Stage.IN_DOUBT])
def test_candidate_that_a_worker_missed_is_read_half_a_minute_later(
    world: World, stage: Stage
) -> None:
    at_stage(world, stage)
    loaded = world.get()
    hint(world)
    # A worker that had loaded the refund before schedules it for much later.
    later = Step(to=stage, status=loaded.status, label="x", delay=6 * HOUR, quiet=True)
    assert world.save(loaded, later).result == "saved"
    assert world.swept() == []
    world.pass_time(rechecks.REST)
    assert [(one.refund_id, one.stage) for one in world.sweep()] == [(ID, stage)]
    assert world.keys("rechecks") == []
    world.check()


def test_candidate_of_a_refund_that_is_being_sent_waits_for_the_end_of_the_attempt(
    world: World,
) -> None:
    world.accept()
    world.claim()
    hint(world)
    world.pass_time(rechecks.REST)
    assert world.swept() == []
    assert world.score("rechecks", ID) == world.now + sweeps.SWEEP_HOLD


@pytest.mark.parametrize(
    ("rules", "stage", "wait"),
    [(BLIND, Stage.REVIEW, timedelta(0)), (VERIFY, Stage.IN_DOUBT, rechecks.REST)],
    ids=["review", "in doubt"],
)
def test_candidate_of_an_attempt_that_ends_in_review_is_read_at_once(
    world: World, rules: Rules, stage: Stage, wait: timedelta
) -> None:
    world.accept()
    claim = world.claim()
    hint(world)
    world.end(claim, MAYBE, rules)
    assert (world.get().stage, world.get().candidates) == (stage, ("re_9",))
    # One in doubt is read by its own schedule.
    assert world.score("rechecks", ID) == world.now + wait
    world.check()


def test_candidate_of_an_attempt_that_ends_pending_at_the_provider_is_read_at_once(
    world: World,
) -> None:
    world.accept()
    claim = world.claim()
    hint(world)
    world.end(claim, done_as("pending", id="re_1"))
    assert (world.get().stage, world.get().candidates) == (Stage.PROCESSING, ("re_9",))
    assert world.score("rechecks", ID) == world.now
    world.check()
