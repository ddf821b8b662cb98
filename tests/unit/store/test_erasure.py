"""Metadata of settled refunds are erased in time, and a repeat is still recognized."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import MAYBE, REFUSED, SECOND, a_request, done_as, found
from tests.support.store_world import ID, World, at_stage
from tests.unit.store.test_accepting import EVERY_FIELD
from worker.errors import NotRetriable, NotStorable
from worker.model.answers import Outcome
from worker.model.refund import Retriable, Stage, Status
from worker.model.steps import Step
from worker.model.times import to_ms
from worker.rules import decisions, rechecks
from worker.sandbox.redis_server import ThrowawayServer
from worker.store import erasure

AGE = timedelta(days=30)
CANARY = "ada-lovelace"
METADATA = {"customer": CANARY, "ключ": 'q"\\'}
SHORT = replace(REFUSED, code="insufficient_funds", http_status=402)
"""A refusal after which the same refund may be sent again."""
SETTLED = [
    pytest.param(done_as("succeeded"), Status.SUCCEEDED, id="succeeded"),
    pytest.param(REFUSED, Status.FAILED, id="failed"),
]


def erase_page(world: World, status: Status, *, most: int = 100) -> list[str]:
    """Erase one list and move the cursor; return the ids that were listed."""
    listed = world.store.run(erasure.erasable(status, AGE, most=most))
    for refund_id in listed.refund_ids:
        world.store.run(erasure.erase(world.get(refund_id), listed.now))
    if listed.until is not None:
        world.store.run(erasure.erasable(status, AGE, done=listed.until, most=0))
    return list(listed.refund_ids)


def erase_all(world: World) -> None:
    for status in erasure.FINAL:
        while erase_page(world, status):
            pass


def settled(world: World, refund_id: str = ID, end: Outcome | None = None, **fields: Any) -> None:
    world.accept(refund_id, **({"metadata": METADATA} | fields))
    world.attempt(end or done_as("succeeded", id=f"re_{refund_id}"), refund_id)


@pytest.mark.parametrize(("end", "status"), SETTLED)
def test_metadata_are_erased_once_the_refund_has_been_settled_for_that_long(
    world: World, end: Outcome, status: Status
) -> None:
    settled(world, end=end)
    before = world.get()
    world.pass_time(AGE - SECOND)
    assert erase_page(world, status) == []
    assert world.get() == before
    world.pass_time(2 * SECOND)
    assert erase_page(world, status) == [ID]
    after = world.get()
    assert after.metadata == {}
    assert after.metadata_erased_at == world.now
    assert (after.status, after.retriable, after.version, after.updated_at) == (
        before.status,
        before.retriable,
        before.version,
        before.updated_at,
    )
    world.check()


def test_canceled_refund_loses_its_metadata_too(world: World) -> None:
    world.accept(metadata=METADATA)
    world.save(world.get(), decisions.cancel(world.get()))
    world.pass_time(AGE)
    assert erase_page(world, Status.CANCELED) == [ID]
    assert world.accept(metadata=METADATA).result == "exists"
    world.check()


def test_no_key_holds_a_value_of_erased_metadata(world: World) -> None:
    world.accept(metadata=METADATA)
    world.attempt(MAYBE)
    world.save(
        world.get(),
        Step(
            to=Stage.SETTLED,
            status=Status.FAILED,
            label="failed",
            changes={"retriable": Retriable.YES, "doubt_since": None},
        ),
    )
    assert CANARY in json.dumps(world.dump())
    world.pass_time(AGE)
    erase_all(world)
    assert CANARY not in json.dumps(world.dump())


@pytest.mark.parametrize(("end", "status"), SETTLED)
@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {}},
        {"metadata": {"a": "1"}},
        {"metadata": {"a": "1", "ключ": 'q"\\', "b": "2"}},
        {"amount": 501},
        {"amount": None},
        {"payment_intent": "pi_2"},
        {"currency": None},
        {"reason": None},
    ],
)
def test_repeat_is_the_same_refund_after_the_erasure_and_other_contents_are_a_conflict(
    world: World, end: Outcome, status: Status, change: dict[str, Any]
) -> None:
    settled(world, end=end, **EVERY_FIELD)
    world.pass_time(AGE)
    erase_page(world, status)
    before = world.dump()
    assert world.accept(**EVERY_FIELD).result == "exists"
    assert world.accept(**EVERY_FIELD | change).result == "conflict"
    assert world.dump() == before


def test_refund_of_all_that_is_left_is_recognized_after_the_erasure(world: World) -> None:
    settled(world, amount=None)
    assert world.get().amount == 500
    world.pass_time(AGE)
    erase_page(world, Status.SUCCEEDED)
    assert world.accept(amount=None, metadata=METADATA).result == "exists"
    assert world.accept(amount=500, metadata=METADATA).result == "conflict"


def test_erased_refund_that_is_reversed_keeps_its_fingerprint_and_is_not_sent_again(
    world: World,
) -> None:
    settled(world)
    world.pass_time(AGE)
    erase_page(world, Status.SUCCEEDED)
    shown = found(id=f"re_{ID}", status="failed")
    step = rechecks.changed_by_provider(world.get(), shown, "lookup", world.now)
    assert step is not None
    assert world.save(world.get(), step).result == "saved"
    after = world.get()
    assert (after.status, after.retriable) == (Status.FAILED, Retriable.NO)
    assert decisions.retry_failed(after) is None
    assert world.accept(metadata=METADATA).result == "exists"
    assert world.accept(metadata={}).result == "conflict"
    world.check()


def test_failed_refund_is_not_sent_again_once_its_metadata_are_erased(world: World) -> None:
    settled(world, end=SHORT)
    assert decisions.retry_failed(world.get()) is not None
    world.pass_time(AGE)
    erase_page(world, Status.FAILED)
    erased = world.get()
    assert erased.retriable is Retriable.NO
    assert decisions.retry_failed(erased) is None
    with pytest.raises(NotRetriable, match=r"its metadata were erased on .*REFUNDS_METADATA_DAYS"):
        decisions.retry_one(erased, unknown=True)


def test_retry_decided_before_the_erasure_is_decided_again(world: World) -> None:
    settled(world, end=SHORT)
    before = world.get()
    retry = decisions.retry_one(before, unknown=True)
    world.pass_time(AGE)
    erase_page(world, Status.FAILED)
    kept = world.dump()
    assert world.save(before, retry).result == "stale"
    assert world.dump() == kept


def test_erasure_decided_before_a_retry_changes_nothing(world: World) -> None:
    settled(world, end=SHORT)
    world.pass_time(AGE)
    before = world.get()
    world.save(before, decisions.retry_one(before, unknown=True))
    kept = world.dump()
    assert world.store.run(erasure.erase(before, world.now)).result == "stale"
    assert world.dump() == kept
    assert world.get().metadata == METADATA


@pytest.mark.parametrize("status", ["pending", "queued", "review", ""])
def test_only_lists_of_settled_refunds_are_erased(world: World, status: str) -> None:
    listed = erasure.erasable(Status.FAILED, AGE, most=9, done=1)
    with pytest.raises(NotStorable, match=r"is none of succeeded failed canceled$"):
        world.store.run(replace(listed, arguments=[status, *listed.arguments[1:]]))
    assert world.keys("watch") == []


def test_refunds_that_settled_in_one_millisecond_are_erased_together(world: World) -> None:
    for number in range(5):
        settled(world, f"r{number}", payment_intent=f"pi_{number}")
    world.pass_time(AGE)
    assert erase_page(world, Status.SUCCEEDED, most=2) == [f"r{number}" for number in range(5)]
    assert erase_page(world, Status.SUCCEEDED, most=2) == []


def test_lists_follow_each_other_and_leave_nothing_out(world: World) -> None:
    for number in range(5):
        settled(world, f"r{number}", payment_intent=f"pi_{number}")
        world.pass_time(SECOND)
    world.pass_time(AGE)
    listed = [erase_page(world, Status.SUCCEEDED, most=2) for _ in range(4)]
    assert listed == [["r0", "r1"], ["r2", "r3"], ["r4"], []]


def test_refund_without_metadata_is_passed_over_and_unchanged(world: World) -> None:
    settled(world, metadata={})
    before = world.get()
    world.pass_time(AGE)
    assert erase_page(world, Status.SUCCEEDED) == []
    assert world.get() == before
    assert world.hash("watch") == {"erased:succeeded": str(to_ms(before.updated_at))}


def test_cursor_never_goes_back(world: World) -> None:
    settled(world, "r0", payment_intent="pi_0")
    world.pass_time(SECOND)
    settled(world, "r1", payment_intent="pi_1")
    world.pass_time(AGE)
    slow = world.store.run(erasure.erasable(Status.SUCCEEDED, AGE, most=1))
    erase_all(world)
    cursor = world.hash("watch")
    world.store.run(erasure.erasable(Status.SUCCEEDED, AGE, most=9, done=slow.until))
    assert world.hash("watch") == cursor


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.SETTLED])
def test_refund_in_progress_keeps_its_metadata(world: World, stage: Stage) -> None:
    before = at_stage(world, stage, metadata=METADATA)
    world.pass_time(10 * AGE)
    erase_all(world)
    assert world.get() == before


class Story:
    """One refund in the hands of callers, workers and the erasure, in any order."""

    def __init__(self, client: redis.Redis) -> None:
        self.world = World(client)
        self.request = a_request(metadata=METADATA)
        self.bodies: dict[str, bytes] = {}
        assert self.world.accept(self.request).result == "created"

    def erase(self) -> None:
        erase_all(self.world)

    def repeat(self) -> None:
        assert self.world.accept(self.request).result == "exists"

    def repeat_otherwise(self) -> None:
        for metadata in ({}, {"customer": "another"}):
            assert self.world.accept(metadata=metadata).result == "conflict"

    def retry(self) -> None:
        try:
            step = decisions.retry_one(self.world.get(), unknown=True)
        except NotRetriable:
            return
        assert self.world.save(self.world.get(), step).result == "saved"

    def send(self) -> None:
        claim = self.world.claim()
        if claim.claimed:
            assert claim.refund is not None
            key = claim.refund.idempotency_key
            assert self.bodies.setdefault(key, claim.body) == claim.body
            assert CANARY.encode() in claim.body
            self.world.end(claim, SHORT)

    def wait(self) -> None:
        self.world.pass_time(AGE)


STEPS = [Story.erase, Story.repeat, Story.repeat_otherwise, Story.retry, Story.send, Story.wait]


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=14))
def test_no_order_of_erasure_repeat_and_retry_accepts_a_refund_twice_or_sends_other_bytes(
    redis_server: ThrowawayServer, steps: list[Callable[[Story], None]]
) -> None:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        client.flushall()
        story = Story(client)
        for step in steps:
            step(story)
            story.world.check()
