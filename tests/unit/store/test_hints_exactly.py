"""Webhooks in the records at their edges: what is noted, what is left out, and what is not read."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, MAYBE, PAYMENT, SECOND, a_request
from tests.support.store_world import ID, P, World, at_stage
from tests.unit.store.hinting import MS, NAMED, due, hint
from worker.errors import NotStorable
from worker.model.hints import Hint
from worker.model.refund import Stage
from worker.model.steps import Step
from worker.store import rechecks
from worker.store.rechecks import Hinted

OF_PAYMENT = Hint(provider_refund_id="re_9", payment_intent=PAYMENT)
NOTHING_DUE = Hinted(result="hinted")


def put(world: World, refund_id: str = ID, **fields: str) -> None:
    stored: dict[Any, Any] = {**fields}
    world.redis.hset(f"{P}refund:{refund_id}", mapping=stored)


def later(world: World, span: timedelta = 6 * HOUR) -> None:
    """Let a worker look at the refund and put it off."""
    refund = world.get()
    step = Step(to=refund.stage, status=refund.status, label="x", delay=span, quiet=True)
    assert world.save(refund, step).result == "saved"


def not_due(world: World, stage: Stage) -> None:
    at_stage(world, stage)
    if stage is Stage.QUEUED:
        later(world)


# Named after three others


def test_each_refund_of_a_payment_that_reads_no_more_is_reported(world: World) -> None:
    for number, refund_id in enumerate("abc"):
        world.accept(a_request(refund_id, amount=500 + number))
        put(world, refund_id, stage="in_doubt", hints_used="re_1 re_2 re_3")
    found = hint(world, OF_PAYMENT)
    assert (found.result, sorted(found.left_out), found.due) == ("payment", ["a", "b", "c"], ())


def test_what_is_left_out_is_reported_again_half_a_minute_later(world: World) -> None:
    world.accept()
    put(world, hints_used="re_1 re_2 re_3")
    for wait, left_out in [(0 * MS, (ID,)), (rechecks.REST - MS, ()), (rechecks.REST, (ID,))]:
        world.pass_time(wait)
        assert hint(world).left_out == left_out
    world.check()


# Read before


@pytest.mark.parametrize(
    "stage",
    [Stage.QUEUED, Stage.WAITING, Stage.IN_DOUBT, Stage.PROCESSING, Stage.REVIEW, Stage.SETTLED],
)
@pytest.mark.parametrize("used", ["re_9", "re_9?"])
def test_failed_refund_that_was_read_before_is_not_read_again(
    world: World, stage: Stage, used: str
) -> None:
    not_due(world, stage)
    put(world, hints_used=used)
    before = world.dump()
    for status in ("failed", "canceled"):
        assert hint(world, replace(NAMED, status=status)) == NOTHING_DUE
        assert world.dump() == before


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING, Stage.IN_DOUBT, Stage.REVIEW])
def test_refund_that_was_read_before_is_not_read_again_whatever_its_event_says(
    world: World, stage: Stage
) -> None:
    not_due(world, stage)
    put(world, hints_used="re_9")
    before = world.dump()
    assert hint(world, replace(NAMED, status="succeeded")) == NOTHING_DUE
    assert world.dump() == before


@pytest.mark.parametrize(
    ("status", "is_read"), [("succeeded", True), ("failed", False), ("canceled", False)]
)
@pytest.mark.parametrize("stage", [Stage.REVIEW, Stage.SETTLED])
def test_refund_of_an_earlier_generation_is_read_again_if_an_event_says_that_it_moved_money(
    world: World, stage: Stage, status: str, *, is_read: bool
) -> None:
    at_stage(world, stage)
    put(world, prior_refund_ids="re_9", hints_used="re_9")
    assert hint(world, replace(NAMED, status=status)) == (
        due(world, stage) if is_read else NOTHING_DUE
    )
    named = is_read and stage is Stage.REVIEW
    assert world.get().candidates == (("re_9",) if named else ())


def test_refund_that_had_moved_nothing_is_read_once_more_and_then_no_more(world: World) -> None:
    at_stage(world, Stage.REVIEW)
    put(world, hints_used="re_1 re_9?")
    assert hint(world, replace(NAMED, status="succeeded")) == due(world, Stage.REVIEW)
    stored = world.hash(f"refund:{ID}")
    assert (stored["hinted"], stored["hints_used"]) == ("re_9", "re_1 re_9")


# What a person said


@pytest.mark.parametrize(
    ("says", "before", "after"),
    [
        ("succeeded", None, "re_9?"),
        ("succeeded", "re_8", "re_8 re_9?"),
        ("succeeded", "re_9 re_8", "re_9 re_8"),
        ("succeeded", "re_9? re_8", "re_9? re_8"),
        (None, "re_8", "re_8"),
    ],
)
def test_event_about_what_a_person_named_is_remembered_until_that_is_confirmed(
    world: World, says: str | None, before: str | None, after: str
) -> None:
    at_stage(world, Stage.PROCESSING)
    fields = {"provider_refund_id": "re_9", "operator_says": says, "hints_used": before}
    put(world, **{name: value for name, value in fields.items() if value is not None})
    hint(world)
    stored = world.hash(f"refund:{ID}")
    assert (stored.get("hints_used"), stored.get("hinted")) == (after, None)


@pytest.mark.parametrize(
    ("says", "left"), [("absent", None), ("failed", None), ("succeeded", "1"), (None, "1")]
)
def test_person_who_decided_whatever_cannot_be_read_did_not_know_of_what_is_named_now(
    world: World, says: str | None, left: str | None
) -> None:
    at_stage(world, Stage.IN_DOUBT)
    put(world, operator_unverified="1", **({} if says is None else {"operator_says": says}))
    hint(world)
    assert world.hash(f"refund:{ID}").get("operator_unverified") == left


# When it is read


def test_two_events_of_one_moment_are_two_reads_half_a_minute_apart(world: World) -> None:
    at_stage(world, Stage.SETTLED)
    named = replace(NAMED, provider_refund_id=f"re_{ID}")
    assert hint(world, named) == due(world, Stage.SETTLED)
    assert world.swept() == [ID]
    assert hint(world, named) == NOTHING_DUE
    assert world.score("rechecks", ID) == world.now + rechecks.REST + MS


@pytest.mark.parametrize("since", [0 * SECOND, SECOND])
def test_event_about_what_is_due_already_does_not_delay_what_the_next_one_names(
    world: World, since: timedelta
) -> None:
    at_stage(world, Stage.IN_DOUBT)
    due_at = world.get().next_check_at
    assert due_at is not None
    world.store.now = due_at + since
    assert hint(world).due == ()
    later(world)
    assert hint(world, replace(NAMED, provider_refund_id="re_8")) == due(world, Stage.IN_DOUBT)


def test_when_an_event_made_a_refund_due_is_forgotten_after_half_a_minute(world: World) -> None:
    at_stage(world, Stage.SETTLED)
    hint(world, Hint(provider_refund_id=f"re_{ID}"))
    noted = world.now
    world.pass_time(rechecks.REST - MS)
    hint(world, Hint())
    assert world.score("hint-times", ID) == noted
    world.pass_time(MS)
    hint(world, Hint())
    assert world.keys("hint-times") == []


# Without a refund of the provider, or with a known one


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING, Stage.PROCESSING, Stage.REVIEW])
def test_event_that_names_our_refund_alone_changes_nothing_but_a_doubt(
    world: World, stage: Stage
) -> None:
    not_due(world, stage)
    before = world.dump()
    assert hint(world, Hint(refund_id=ID)) == NOTHING_DUE
    assert world.dump() == before


def test_doubt_of_which_an_event_names_our_refund_alone_is_read_once(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    assert hint(world, Hint(refund_id=ID)) == due(world, Stage.IN_DOUBT)
    assert world.keys("rechecks") == []
    world.check()


def test_event_about_a_refund_that_waits_makes_it_due(world: World) -> None:
    at_stage(world, Stage.WAITING)
    assert world.get().next_check_at != world.now
    assert hint(world) == due(world, Stage.WAITING)
    assert world.get().next_check_at == world.now
    assert world.score("rechecks", ID) == world.now + rechecks.REST
    world.check()


# Payments with much in them


@pytest.mark.parametrize(("more", "is_due"), [(0, True), (1, False)])
def test_refunds_of_a_payment_are_considered_up_to_so_many(
    world: World, more: int, *, is_due: bool
) -> None:
    world.accept()
    world.attempt(MAYBE)
    payment = f"{P}payment:{PAYMENT}"
    held: Any = world.redis.hlen(payment)
    others: dict[Any, Any] = {
        f"owner:re_{number}": "x" for number in range(2 * rechecks.MOST_OF_PAYMENT - held + more)
    }
    world.redis.hset(payment, mapping=others)
    found = hint(world, OF_PAYMENT)
    assert (found.result, bool(found.due)) == ("payment", is_due)


# What Redis holds


@pytest.mark.parametrize(
    ("key", "old"),
    [("rechecks", True), ("due", True), ("hint-times", False), ("index:in_doubt", False)],
)
@pytest.mark.parametrize("named", [NAMED, OF_PAYMENT], ids=["refund", "payment"])
def test_event_changes_nothing_if_a_key_is_of_another_type(
    world: World, key: str, named: Hint, *, old: bool
) -> None:
    at_stage(world, Stage.IN_DOUBT)
    if old:
        # It would be forgotten now.
        world.redis.zadd(f"{P}hint-times", {"old": 1})
    world.redis.delete(P + key)
    world.redis.set(P + key, "x")
    before = world.dump()
    with pytest.raises(NotStorable, match="a key of the records holds a value of another type"):
        hint(world, named)
    assert world.dump() == before


@pytest.mark.parametrize("named", [NAMED, OF_PAYMENT], ids=["refund", "payment"])
def test_event_changes_nothing_if_the_record_has_a_field_that_is_not_a_whole_number(
    world: World, named: Hint
) -> None:
    at_stage(world, Stage.IN_DOUBT)
    put(world, next_check_at="soon")
    before = world.dump()
    with pytest.raises(NotStorable, match="next_check_at soon is not a whole number"):
        hint(world, named)
    assert world.dump() == before
