"""Proof of what was done is saved whenever it comes, and contradicts what it does not fit."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.factories import (
    HOUR,
    MAYBE,
    MINUTE,
    NOW,
    PAYMENT,
    REFUSED,
    SECOND,
    TRUST,
    VERIFY,
    done_as,
    found,
)
from tests.support.saving import held, settle_by_totals
from tests.support.store_world import ID, LEASE, P, World, at_stage
from worker.errors import NotStorable
from worker.model.answers import Outcome, Readback, ReadbackVerdict
from worker.model.refund import Stage, Status
from worker.model.steps import Step
from worker.rules import decisions, proofs, readback
from worker.store import saves

MILLISECOND = timedelta(milliseconds=1)


def test_proof_is_accepted_after_the_lease_lapsed_and_the_refund_went_into_doubt(
    world: World,
) -> None:
    claim = held(world)
    world.lapse()
    assert world.end(claim, done_as("succeeded")).result == "saved"
    refund = world.get()
    assert (refund.status, refund.provider_refund_id, refund.doubt_since) == (
        Status.SUCCEEDED,
        "re_1",
        None,
    )
    world.check()


@pytest.mark.parametrize("status", ["pending", "succeeded", "failed"])
def test_proof_is_accepted_while_another_attempt_holds_the_claim(world: World, status: str) -> None:
    claim = held(world)
    world.lapse(rules=TRUST)
    other = world.claim(kind="replay")
    assert world.end(claim, done_as(status)).result == "saved"
    assert world.get().stage is (Stage.PROCESSING if status == "pending" else Stage.SETTLED)
    before = world.dump()
    assert world.end(other, REFUSED).result == "stale"
    assert world.end(other, done_as(status)).result == "already"
    assert world.dump() == before
    world.check()


@pytest.mark.parametrize("ends", ["sending", "in doubt"])
@pytest.mark.parametrize("status", ["failed", "canceled", "succeeded"])
def test_late_failure_of_an_earlier_send_says_nothing_of_a_later_one(
    world: World, status: str, ends: str
) -> None:
    claim = held(world)
    world.lapse()
    absent = Readback(verdict=ReadbackVerdict.ABSENT, reason="so")
    for _ in range(2):
        world.pass_time(VERIFY.settle)
        refund = world.get()
        world.save(refund, readback.after_readback(refund, absent, VERIFY, world.now, 0))
    later = world.claim(kind="resend")
    assert later.claimed
    if ends == "in doubt":
        assert world.end(later, MAYBE).result == "saved"
    before = world.dump()
    result = world.end(claim, done_as(status)).result
    # What succeeded so long ago may have failed since: a person has to look at it.
    kept_for_a_person = status == "succeeded"
    assert (result, world.dump()) == ("contradicts" if kept_for_a_person else "stale", before)
    # What the later send made counts.
    assert world.end(later, done_as("succeeded", id="re_2")).result == "saved"
    assert (world.get().status, world.get().provider_refund_id) == (Status.SUCCEEDED, "re_2")
    world.check()


def test_late_pending_of_an_earlier_send_does_not_hide_a_later_one(world: World) -> None:
    claim = held(world)
    world.lapse()
    absent = Readback(verdict=ReadbackVerdict.ABSENT, reason="so")
    for _ in range(2):
        world.pass_time(VERIFY.settle)
        refund = world.get()
        world.save(refund, readback.after_readback(refund, absent, VERIFY, world.now, 0))
    later = world.claim(kind="resend")
    before = world.dump()
    assert world.end(claim, done_as("pending")).result == "contradicts"
    assert world.dump() == before
    assert world.end(later, MAYBE).result == "saved"
    assert world.get().stage is Stage.IN_DOUBT


@pytest.mark.parametrize("stage", [Stage.SENDING, Stage.IN_DOUBT, Stage.REVIEW])
def test_success_that_is_saved_long_after_its_lease_is_kept_and_read_again(
    world: World, stage: Stage
) -> None:
    claim = held(world)
    assert claim.refund is not None
    if stage is not Stage.SENDING:
        world.lapse()
    if stage is Stage.REVIEW:
        world.save(world.get(), proofs.to_review({}, "inconclusive", "so"))
    world.store.now = NOW + LEASE + 2 * MINUTE + MILLISECOND
    before = world.dump()
    late = world.end(claim, done_as("succeeded"))
    assert (late.result, world.dump()) == ("late", before)
    found = done_as("succeeded").found
    assert found is not None
    step = proofs.succeeded_long_ago(claim.refund, found, "reply", late.now)
    assert world.save(claim.refund, step).result == "saved"
    refund = world.get()
    assert (refund.stage, refund.status) == (Stage.PROCESSING, Status.PENDING)
    assert (refund.provider_refund_id, refund.provider_status) == ("re_1", "succeeded")
    assert (refund.processing_since, refund.next_check_at) == (world.now, world.now)
    assert world.claim().result == "stage"
    world.check()
    # Told once more, it changes nothing.
    before = world.dump()
    assert world.end(claim, done_as("succeeded")).result == "late"
    assert world.save(claim.refund, step).result == "already"
    assert world.dump() == before


def test_success_that_is_saved_two_minutes_after_its_lease_settles_the_refund(
    world: World,
) -> None:
    claim = held(world)
    world.store.now = NOW + LEASE + 2 * MINUTE
    assert world.end(claim, done_as("succeeded")).result == "saved"
    assert world.get().status is Status.SUCCEEDED
    assert "settles_until" not in world.hash("refund:order-1001-1")


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_failure_that_is_saved_long_after_its_lease_is_final(world: World, status: str) -> None:
    claim = held(world)
    world.pass_time(HOUR)
    assert world.end(claim, done_as(status)).result == "saved"
    assert world.get().status == status


def test_proof_is_accepted_in_review(world: World) -> None:
    claim = held(world)
    world.lapse()
    refund = world.get()
    world.save(refund, proofs.to_review({}, "inconclusive", "so"))
    assert world.end(claim, done_as("succeeded")).result == "saved"
    assert world.get().status is Status.SUCCEEDED


def test_proof_on_an_unlocked_payment_does_not_free_the_lock_of_another_refund(
    world: World,
) -> None:
    claim = held(world)
    world.lapse()
    world.save(world.get(), proofs.to_review({}, "inconclusive", "so"))
    world.accept("other")
    assert world.claim("other").claimed
    assert world.end(claim, done_as("succeeded")).result == "saved"
    assert world.hash(f"payment:{PAYMENT}")["lock"] == "other"
    world.check()


def test_proof_told_twice_is_already_known_and_changes_nothing(world: World) -> None:
    claim = held(world)
    world.end(claim, done_as("succeeded"))
    before = world.dump()
    world.pass_time(SECOND)
    assert world.end(claim, done_as("succeeded")).result == "already"
    assert world.dump() == before


@pytest.mark.parametrize(
    "second",
    [done_as("succeeded", id="re_2"), done_as("pending", id="re_2"), done_as("failed")],
    ids=["id", "pending id", "status"],
)
def test_proof_that_contradicts_a_settled_record_is_reported_and_changes_nothing(
    world: World, second: Outcome
) -> None:
    claim = held(world)
    world.end(claim, done_as("succeeded"))
    before = world.dump()
    assert world.end(claim, second).result == "contradicts"
    assert world.dump() == before


def test_proof_against_a_failed_record_contradicts_it(world: World) -> None:
    claim = held(world)
    world.end(claim, REFUSED)
    before = world.dump()
    assert world.end(claim, done_as("succeeded")).result == "contradicts"
    assert world.dump() == before


def test_proof_of_an_earlier_generation_does_not_settle_the_retry(world: World) -> None:
    claim = held(world)
    world.end(claim, replace(REFUSED, code="lock_timeout"))
    retry = decisions.retry_failed(world.get())
    assert retry is not None
    assert world.save(world.get(), retry).result == "saved"
    assert world.claim().claimed
    before = world.dump()
    assert world.end(claim, done_as("succeeded")).result == "contradicts"
    assert world.dump() == before


def test_pending_told_twice_is_already_known(world: World) -> None:
    claim = held(world)
    world.end(claim, done_as("pending"))
    before = world.dump()
    assert world.end(claim, done_as("pending")).result == "already"
    assert world.dump() == before


@pytest.mark.parametrize("status", ["pending", "succeeded", "failed"])
def test_second_provider_refund_for_one_processing_record_is_a_contradiction(
    world: World, status: str
) -> None:
    claim = held(world)
    world.end(claim, done_as("pending", id="re_1"))
    before = world.dump()
    assert world.end(claim, done_as(status, id="re_2")).result == "contradicts"
    assert world.dump() == before


@pytest.mark.parametrize("status", ["pending", "succeeded", "failed"])
@pytest.mark.parametrize("word", ["absent", "failed"])
def test_proof_replaces_no_refund_that_the_provider_had_reported_whatever_a_person_says(
    world: World, word: str, status: str
) -> None:
    claim = held(world)
    world.lapse()
    other = done_as("pending", id="re_2").found
    assert other is not None
    refund = world.get()
    assert world.save(refund, proofs.done(refund, other, "list", world.now)).result == "saved"
    world.save(world.get(), proofs.to_review({}, "pending_too_long", "so"))
    refund = world.get()
    decided = (
        decisions.resolve_resend(refund)
        if word == "absent"
        else decisions.resolve_failed(refund, "gone")
    )
    assert world.save(refund, decided).result == "saved"
    before = world.dump()
    assert world.end(claim, done_as(status)).result == "contradicts"
    assert world.dump() == before


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_late_failure_does_not_replace_a_refund_that_a_person_named_before_that_is_read(
    world: World, status: str
) -> None:
    claim = held(world)
    world.lapse()
    world.save(world.get(), proofs.to_review({}, "inconclusive", "so"))
    named = decisions.resolve_succeeded(world.get(), "re_2", world.now)
    assert world.save(world.get(), named).result == "saved"
    before = world.dump()
    assert world.end(claim, done_as(status)).result == "stale"
    assert world.dump() == before
    # Its own failure counts.
    assert world.end(claim, done_as(status, id="re_2")).result == "saved"
    assert world.get().status == status


@pytest.mark.parametrize(
    ("prior_ids", "kept"),
    [(None, ("re_2",)), ("re_0", ("re_0", "re_2")), ("re_2 re_0", ("re_2", "re_0"))],
)
@pytest.mark.parametrize("status", ["pending", "succeeded"])
def test_late_proof_keeps_the_refund_that_a_person_named_as_an_earlier_one(
    world: World, status: str, prior_ids: str | None, kept: tuple[str, ...]
) -> None:
    claim = held(world)
    world.lapse()
    world.save(world.get(), proofs.to_review({}, "inconclusive", "so"))
    named = decisions.resolve_succeeded(world.get(), "re_2", world.now)
    assert world.save(world.get(), named).result == "saved"
    if prior_ids is not None:
        world.redis.hset(f"{P}refund:{ID}", "prior_refund_ids", prior_ids)
    assert world.end(claim, done_as(status)).result == "saved"
    assert (world.get().provider_refund_id, world.get().prior_ids) == ("re_1", kept)
    world.check()


def test_late_proof_that_keeps_the_named_refund_itself_keeps_it_once(world: World) -> None:
    claimed = held(world).refund
    assert claimed is not None
    world.lapse()
    world.save(world.get(), proofs.to_review({}, "inconclusive", "so"))
    named = decisions.resolve_succeeded(world.get(), "re_2", world.now)
    assert world.save(world.get(), named).result == "saved"
    step = proofs.done(claimed, found(), "reply", world.now)
    step = replace(step, changes={**step.changes, "prior_refund_ids": "re_2 re_3"})
    assert world.save(claimed, step).result == "saved"
    assert world.redis.hget(f"{P}refund:{ID}", "prior_refund_ids") == "re_2 re_3"


def test_success_of_the_refund_that_was_pending_is_not_kept_as_an_earlier_one(
    world: World,
) -> None:
    world.end(held(world), done_as("pending"))
    pending = world.get()
    assert world.save(pending, proofs.done(pending, found(), "lookup", world.now)).result == "saved"
    assert (world.get().status, world.get().prior_ids) == ("succeeded", ())


def test_retry_forgets_what_was_named_and_read_in_the_generation_before(world: World) -> None:
    world.end(held(world), done_as("failed"))
    world.redis.hset(f"{P}refund:{ID}", "hints_used", "re_9")
    step = decisions.retry_failed(world.get())
    assert step is not None
    assert world.save(world.get(), step).result == "saved"
    assert (world.get().generation, world.get().ids_named) == (2, ())


def test_late_pending_of_a_refund_that_is_settled_is_already_known(world: World) -> None:
    claim = held(world)
    world.end(claim, done_as("succeeded"))
    before = world.dump()
    assert world.end(claim, done_as("pending")).result == "already"
    assert world.dump() == before


@pytest.mark.parametrize("status", ["pending", "succeeded"])
def test_late_reply_to_what_the_totals_had_found_is_already_known(
    world: World, status: str
) -> None:
    claim = held(world)
    world.end(claim, MAYBE)
    settle_by_totals(world)
    before = world.dump()
    assert world.end(claim, done_as(status)).result == "already"
    assert world.dump() == before


def test_late_failure_of_what_the_totals_had_found_is_a_contradiction(world: World) -> None:
    claim = held(world)
    world.end(claim, MAYBE)
    settle_by_totals(world)
    assert world.end(claim, done_as("failed")).result == "contradicts"


def test_total_settles_only_the_version_that_was_looked_at(world: World) -> None:
    refund = at_stage(world, Stage.IN_DOUBT)
    look = Readback(verdict=ReadbackVerdict.FOUND_IN_TOTALS, reason="so")
    world.save(refund, readback.after_readback(refund, look, VERIFY, world.now, 0))
    world.pass_time(VERIFY.settle)
    seen = world.get()
    assert world.claim(kind="replay").claimed
    before = world.dump()
    step = readback.after_readback(seen, look, VERIFY, world.now, 0)
    assert (step.to, world.save(seen, step).result) == (Stage.SETTLED, "stale")
    assert world.dump() == before


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
@pytest.mark.parametrize(
    ("status", "result"), [(Status.SUCCEEDED, "saved"), (Status.CANCELED, "stale")]
)
def test_what_is_settled_as_done_needs_no_read_of_a_refund_that_was_named_meanwhile(
    world: World, stage: Stage, status: Status, result: str
) -> None:
    refund = at_stage(world, stage)
    world.redis.hset(f"{P}refund:{ID}", "hinted", "re_9")
    step = Step(to=Stage.SETTLED, status=status, label="x")
    assert world.save(refund, step).result == result
    assert world.get().settled is (result == "saved")


def test_time_until_which_a_proof_settles_is_a_number(world: World) -> None:
    claim = held(world)
    assert claim.refund is not None
    shown = done_as().found
    assert shown is not None
    command = saves.save(claim.refund, proofs.done(claim.refund, shown, "reply", world.now))
    before = world.dump()
    with pytest.raises(NotStorable, match="settles_until soon is not a whole number"):
        world.store.run(replace(command, arguments=[*command.arguments, "settles_until", "soon"]))
    assert world.dump() == before
