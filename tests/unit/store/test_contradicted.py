"""What a proof against the record leaves behind: found by whoever looks for it, and counted
once.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, NOW, PAYMENT, REFUSED, done_as, found
from tests.support.store_world import ID, World, at_stage
from worker.model.refund import Refund, Stage, Status
from worker.model.times import to_ms
from worker.rules import contradictions, decisions, proofs
from worker.rules.rechecks import changed_by_provider
from worker.store.records import Moves

FAILED = replace(REFUSED, code="balance_insufficient")


def contradict(world: World, refund: Refund, identity: str = "re_late", **shown: Any) -> Refund:
    """The record once the provider has shown another refund for it."""
    proof = proofs.done(refund, found(id=identity, **shown), "reply", world.now)
    assert world.save(refund, proof).result == "contradicts"
    step = contradictions.contradicted(refund, proof, world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"
    world.check()
    return world.get()


def open_ones(world: World) -> list[tuple[str, float]]:
    members: Any = world.redis.zrange("refunds:contradicted", 0, -1, withscores=True)
    return [*members]


def test_settled_refund_keeps_its_status_and_its_counts(world: World) -> None:
    world.accept(batch="b1")
    world.attempt(FAILED)
    counters, batch = world.hash("counters"), world.hash("batch:b1")
    world.pass_time(HOUR)
    refund = contradict(world, world.get())
    assert (refund.stage, refund.status, refund.contradicted_by) == (
        Stage.SETTLED,
        Status.FAILED,
        "re_late",
    )
    told = {"contradicted": "1", "move:settled:settled": "1"}
    assert world.hash("counters") == counters | told
    assert world.hash("batch:b1") == batch
    assert open_ones(world) == [(ID, float(to_ms(world.now)))]
    assert world.indexes_of(ID) == ["index:failed"]
    *_, last = Moves().read(world.redis.lrange(f"refunds:history:{ID}", 0, -1))  # type: ignore[arg-type]
    assert (last["from"], last["to"], last["label"], last["source"]) == (
        "settled",
        "settled",
        "contradicted",
        "reply",
    )


def test_failure_that_follows_a_success_is_counted_and_one_that_stays_is_not(world: World) -> None:
    refund = at_stage(world, Stage.SETTLED)
    step = changed_by_provider(refund, found(id=f"re_{ID}", status="failed"), "list", NOW)
    assert step is not None
    world.save(refund, step)
    assert world.hash("counters")["failed:unknown"] == "1"
    contradict(world, world.get())
    assert world.hash("counters")["failed:unknown"] == "1"


def test_proof_that_contradicts_is_owned_unless_another_record_owns_it(world: World) -> None:
    world.accept()
    world.attempt(FAILED)
    contradict(world, world.get())
    assert world.redis.get("refunds:owner:re_late") == ID
    assert world.hash(f"payment:{PAYMENT}")["owner:re_late"] == ID
    ttl: Any = world.redis.pttl("refunds:owner:re_late")
    assert ttl > 0
    at_stage(world, Stage.SETTLED, "other", payment_intent="pi_other")
    world.accept("third", payment_intent="pi_third")
    world.attempt(FAILED, "third")
    refund = world.get("third")
    proof = proofs.done(refund, found(id="re_other"), "reply", world.now)
    step = contradictions.contradicted(refund, proof, world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"
    assert world.redis.get("refunds:owner:re_other") == "other"


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.SENDING, Stage.PROCESSING, Stage.REVIEW])
def test_refund_under_way_is_not_sent_any_more(world: World, stage: Stage) -> None:
    refund = at_stage(world, stage)
    late = replace(refund, generation=refund.generation + 1)
    proof = proofs.done(late, found(id="re_late"), "reply", world.now)
    assert world.save(late, proof).result == "contradicts"
    step = contradictions.contradicted(refund, proof, world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"
    world.check()
    assert (world.get().stage, world.get().contradicted_by) == (Stage.REVIEW, "re_late")
    assert not world.claim(ID, "send").claimed
    assert [name for name, _ in open_ones(world)] == [ID]


@pytest.mark.parametrize(
    ("evidence", "resends", "left"),
    [("reply", 0, None), ("list", 0, "re_1"), ("reply", 1, "re_1"), ("list", 1, "re_1")],
)
def test_only_the_reply_to_the_latest_send_clears_the_refund_that_it_shows(
    world: World, evidence: str, resends: int, left: str | None
) -> None:
    world.accept()
    refund = world.claim().refund
    assert refund is not None
    fields: dict[Any, Any] = {"contradicted_by": "re_1", "resends": str(resends)}
    world.redis.hset(f"refunds:refund:{ID}", mapping=fields)
    proof = proofs.done(refund, found(id="re_1"), evidence, world.now)
    assert world.save(refund, proof).result == "saved"
    assert world.hash(f"refund:{ID}").get("contradicted_by") == left


def test_end_of_a_contradiction_takes_it_off_the_list(world: World) -> None:
    world.accept()
    world.attempt(FAILED)
    refund = contradict(world, world.get())
    named = decisions.resolve_succeeded(refund, "re_late", world.now, by="ann")
    assert world.save(refund, named).result == "saved"
    world.check()
    assert [name for name, _ in open_ones(world)] == [ID]
    refund = world.get()
    assert (refund.stage, refund.status) == (Stage.PROCESSING, Status.PENDING)
    assert (
        world.save(refund, proofs.done(refund, found(id="re_late"), "lookup", world.now)).result
        == "saved"
    )
    world.check()
    assert (world.get().status, world.get().contradicted_by) == (Status.SUCCEEDED, None)
    assert open_ones(world) == []


@pytest.mark.parametrize("is_kept", [False, True])
def test_list_of_contradictions_lives_as_long_as_the_records(
    world: World, *, is_kept: bool
) -> None:
    for number in (1, 2):
        world.accept(f"r{number}", payment_intent=f"pi_{number}")
        world.attempt(FAILED, f"r{number}")
        refund = world.get(f"r{number}")
        proof = proofs.done(refund, found(id=f"re_{number}"), "reply", world.now)
        step = contradictions.contradicted(refund, proof, world.now)
        assert step is not None
        world.save(refund, step)
        world.pass_time(timedelta(days=400, milliseconds=1))
        if number == 1 and not is_kept:
            # The server's own clock has not moved, so it expires no key.
            world.redis.delete("refunds:refund:r1")
    if is_kept:
        # A later move keeps a record for longer, and only this list shows that it is contradicted.
        assert world.store.ids_contradicted() == ["r2", "r1"]
        return
    assert [name for name, _ in open_ones(world)] == ["r2"]
    assert world.store.ids_contradicted() == ["r2"]


def test_contradictions_are_listed_the_latest_first(world: World) -> None:
    world.redis.zadd("refunds:contradicted", {"oldest": 1, "old": 2, "new": 3})
    assert world.store.ids_contradicted() == ["new", "old", "oldest"]


def test_attempt_that_ends_after_its_refund_was_contradicted_is_still_recorded(
    world: World,
) -> None:
    world.accept()
    claim = world.claim()
    assert claim.refund is not None
    late = replace(claim.refund, generation=2)
    step = contradictions.contradicted(
        claim.refund, proofs.done(late, found(id="re_late"), "reply", NOW), world.now
    )
    assert step is not None
    world.save(claim.refund, step)
    assert world.end(claim, done_as("succeeded")).result == "saved"
    world.check()
    assert (world.get().status, world.get().contradicted_by) == (Status.SUCCEEDED, "re_late")


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_nobody_can_resolve_any_more_is_forgotten(world: World, *, is_kept: bool) -> None:
    """Else it is counted for good, with an alarm. A later move keeps a record for longer."""
    world.accept()
    world.attempt(FAILED)
    contradict(world, world.get())
    world.pass_time(timedelta(milliseconds=world.store.retention_ms) + HOUR)
    world.sweep()
    assert [refund_id for refund_id, _ in open_ones(world)] == [ID]
    if not is_kept:
        # The server's own clock has not moved, so it expires no key.
        world.redis.delete(f"refunds:refund:{ID}")
    world.sweep()
    assert [refund_id for refund_id, _ in open_ones(world)] == ([ID] if is_kept else [])
