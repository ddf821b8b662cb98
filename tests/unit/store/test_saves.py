"""Saving what was decided: by version for a verdict, at any version for a proof, and never half."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.factories import (
    BLIND,
    HOUR,
    MAYBE,
    MINUTE,
    NOT_DONE,
    NOT_SENT,
    NOW,
    PAYMENT,
    REFUSED,
    SECOND,
    TRUST,
    VERIFY,
    a_reply,
    an_error,
    done_as,
    found,
    refund_payload,
)
from tests.support.store_world import ID, LEASE, World, at_stage
from worker.model.answers import Outcome, Readback, ReadbackVerdict
from worker.model.refund import Lane, Refund, Retriable, Stage, Status
from worker.model.request import idempotency_key
from worker.model.steps import Step
from worker.model.times import to_ms
from worker.rules import attempts, decisions, readback, transitions
from worker.rules.rechecks import changed_by_provider
from worker.store.scripts import Claim


def held(world: World, refund_id: str = ID) -> Claim:
    world.accept(refund_id)
    return world.claim(refund_id)


def settle_by_totals(world: World) -> None:
    """Two looks at the payment's total, a settle time apart, that show our amount."""
    for _ in range(2):
        refund = world.get()
        look = Readback(verdict=ReadbackVerdict.FOUND_IN_TOTALS, reason="so")
        assert (
            world.save(refund, readback.after_readback(refund, look, VERIFY, world.now, 0)).result
            == "saved"
        )
        world.pass_time(VERIFY.settle)
    assert (world.get().status, world.get().evidence) == (Status.SUCCEEDED, "totals")


def verdict(claim: Claim, outcome: Outcome, world: World) -> tuple[Refund, Step]:
    assert claim.refund is not None
    return claim.refund, attempts.after_attempt(claim.refund, outcome, VERIFY, world.now, 0)


def test_save_moves_the_record_and_writes_it_into_history_and_events(world: World) -> None:
    claim = held(world)
    world.pass_time(SECOND)
    assert claim.refund is not None
    step = attempts.after_attempt(claim.refund, NOT_DONE, VERIFY, world.now, 0)
    saved = world.save(claim.refund, step, {"http_status": 429, "note": 'q"\\é', "nothing": None})
    assert (saved.result, saved.now, saved.woken) == ("saved", world.now, None)
    refund = world.get()
    assert (refund.stage, refund.version, refund.updated_at, refund.error_code) == (
        Stage.WAITING,
        3,
        world.now,
        "rate_limited",
    )
    assert step.delay is not None
    assert refund.next_check_at == world.now + step.delay
    assert world.store.history(ID)[-1] == {
        "version": 3,
        "at": to_ms(world.now),
        "from": "sending",
        "to": "waiting",
        "status": "pending",
        "label": "rate_limited",
        "attempt": 1,
        "http_status": 429,
        "source": "reply",
        "note": 'q"\\é',
        "nothing": None,
    }
    assert world.dump()["events"][1][-1][1] == {
        "refund_id": ID,
        "version": "3",
        "at": str(to_ms(world.now)),
        "from": "sending",
        "to": "waiting",
        "status": "pending",
    }
    assert "claim" not in world.hash(f"refund:{ID}")
    world.check()


@pytest.mark.parametrize("code", ['odd "quotes" and \\', "ключ", "a'b", "}{", "%d %s"])
def test_providers_code_cannot_break_the_history(world: World, code: str) -> None:
    claim = held(world)
    assert world.end(claim, replace(REFUSED, code=code)).result == "saved"
    assert world.store.history(ID)[-1]["label"] == code
    assert world.get().error_code == code


def test_record_holds_what_the_step_said_field_by_field(world: World) -> None:
    claim = held(world)
    world.end(
        claim, done_as("failed", failure_reason="lost_or_stolen_card", currency="eur", amount=499)
    )
    refund = world.get()
    assert (refund.status, refund.failure_reason, refund.retriable) == (
        Status.FAILED,
        "lost_or_stolen_card",
        Retriable.NO,
    )
    assert (refund.provider_refund_id, refund.amount, refund.currency) == ("re_1", 499, "eur")
    assert (refund.next_check_at, refund.doubt_since, refund.verdicts) == (None, None, 0)


def test_field_that_a_step_removes_is_gone_from_the_hash(world: World) -> None:
    at_stage(world, Stage.IN_DOUBT)
    assert "doubt_since" in world.hash(f"refund:{ID}")
    world.save(world.get(), attempts.done(world.get(), found(), "list", world.now))
    assert not {"doubt_since", "quiet_at", "error_code", "error_message", "retriable"} & set(
        world.hash(f"refund:{ID}")
    )


# Not done needs the version


@pytest.mark.parametrize(
    "late", [NOT_SENT, NOT_DONE, REFUSED, MAYBE], ids=lambda outcome: outcome.code
)
def test_verdict_on_an_older_version_is_refused_and_changes_nothing(
    world: World, late: Outcome
) -> None:
    claim = held(world)
    world.lapse()
    before = world.dump()
    assert world.end(claim, late).result == "stale"
    assert world.dump() == before


def test_verdict_saved_twice_is_saved_once(world: World) -> None:
    claim = held(world)
    assert world.end(claim, REFUSED).result == "saved"
    before = world.dump()
    world.pass_time(SECOND)
    assert world.end(claim, REFUSED).result == "stale"
    assert world.dump() == before


def test_late_refusal_does_not_fail_what_another_attempt_is_sending(world: World) -> None:
    claim = held(world)
    world.lapse(rules=TRUST)
    assert world.claim(kind="replay").claimed
    assert world.end(claim, REFUSED).result == "stale"
    assert world.get().stage is Stage.SENDING


# Done does not


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


def test_proof_is_accepted_in_review(world: World) -> None:
    claim = held(world)
    world.lapse()
    refund = world.get()
    world.save(refund, attempts.to_review({}, "inconclusive", "so"))
    assert world.end(claim, done_as("succeeded")).result == "saved"
    assert world.get().status is Status.SUCCEEDED


def test_proof_on_an_unlocked_payment_does_not_free_the_lock_of_another_refund(
    world: World,
) -> None:
    claim = held(world)
    world.lapse()
    world.save(world.get(), attempts.to_review({}, "inconclusive", "so"))
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


# One provider refund, one record


def test_provider_refund_that_belongs_to_another_record_is_refused_with_its_owner(
    world: World,
) -> None:
    at_stage(world, Stage.SETTLED, "first")
    claim = held(world, "second")
    before = world.dump()
    saved = world.end(claim, done_as("succeeded", id="re_first"))
    assert (saved.result, saved.other) == ("owned", "first")
    assert world.dump() == before


@pytest.mark.parametrize("first", [Stage.PROCESSING, Stage.SETTLED])
def test_provider_refund_belongs_to_one_record_whatever_their_payments(
    world: World, first: Stage
) -> None:
    # The reply to the second payment's POST is the first payment's refund: same amount, no payment,
    # no metadata.
    at_stage(world, first, "first", payment_intent="pi_one")
    world.accept("second", payment_intent="pi_two")
    claim = world.claim("second")
    before = world.dump()
    saved = world.end(claim, done_as("succeeded", id="re_first"))
    assert (saved.result, saved.other) == ("owned", "first")
    assert world.dump() == before
    world.check()


def test_refund_of_another_payment_that_a_person_names_is_refused_too(world: World) -> None:
    at_stage(world, Stage.SETTLED, "first", payment_intent="pi_one")
    refund = at_stage(world, Stage.REVIEW, "second", payment_intent="pi_two")
    saved = world.save(refund, decisions.resolve_succeeded(refund, "re_first", world.now))
    assert (saved.result, saved.other) == ("owned", "first")


def test_person_cannot_give_one_provider_refund_to_two_records(world: World) -> None:
    at_stage(world, Stage.SETTLED, "first")
    refund = at_stage(world, Stage.REVIEW, "second")
    before = world.dump()
    saved = world.save(refund, decisions.resolve_succeeded(refund, "re_first", world.now))
    assert (saved.result, saved.other) == ("owned", "first")
    assert world.dump() == before


def test_provider_refund_that_a_person_only_names_is_not_owned_before_the_provider_says_so(
    world: World,
) -> None:
    refund = at_stage(world, Stage.REVIEW)
    assert (
        world.save(refund, decisions.resolve_succeeded(refund, "re_1", world.now)).result == "saved"
    )
    world.check()
    assert "owner:re_1" not in world.hash(f"payment:{PAYMENT}")
    for _ in range(2):
        world.save(world.get(), readback.after_poll(world.get(), an_error(404), world.now, 0))
        world.pass_time(MINUTE)
    assert (world.get().stage, world.get().provider_refund_id) == (Stage.REVIEW, None)
    rightful = at_stage(world, Stage.PROCESSING, "1")
    assert rightful.provider_refund_id == "re_1"
    world.check()


def test_provider_refund_that_a_person_named_is_owned_once_it_is_final(world: World) -> None:
    refund = at_stage(world, Stage.REVIEW)
    world.save(refund, decisions.resolve_succeeded(refund, "re_1", world.now))
    step = readback.after_poll(world.get(), a_reply(200), world.now, 0)
    assert world.save(world.get(), step).result == "saved"
    assert world.hash(f"payment:{PAYMENT}")["owner:re_1"] == ID


def test_provider_refund_that_a_person_named_is_owned_once_the_provider_says_pending(
    world: World,
) -> None:
    refund = at_stage(world, Stage.REVIEW)
    world.save(refund, decisions.resolve_succeeded(refund, "re_1", world.now))
    pending = a_reply(200, refund_payload(status="pending"))
    world.save(world.get(), readback.after_poll(world.get(), pending, world.now, 0))
    assert world.get().operator_says is None
    assert world.hash(f"payment:{PAYMENT}").get("owner:re_1") == ID


@pytest.mark.parametrize("status", ["pending", "succeeded"])
def test_late_proof_takes_the_place_of_what_a_person_had_named(world: World, status: str) -> None:
    claim = held(world)
    world.lapse(ID, BLIND)
    reviewed = world.get()
    world.save(reviewed, decisions.resolve_succeeded(reviewed, "re_wrong", world.now))
    refund, step = verdict(claim, done_as(status), world)
    assert world.save(refund, step).result == "saved"
    assert (world.get().provider_refund_id, world.get().operator_says) == ("re_1", None)
    assert world.hash(f"payment:{PAYMENT}").get("owner:re_1") == ID
    world.check()


def test_proof_of_what_is_not_final_contradicts_a_refund_that_was_given_up(world: World) -> None:
    claim = held(world)
    world.lapse(ID, BLIND)
    reviewed = world.get()
    world.save(reviewed, decisions.resolve_failed(reviewed, "gone", unverified=True))
    told = world.get()
    absent = replace(told, absent_at=world.now - HOUR, quiet_at=world.now - HOUR)
    totals = replace(VERIFY, readback="totals")
    world.save(
        told,
        readback.after_readback(
            absent, Readback(verdict=ReadbackVerdict.ABSENT, reason="so"), totals, world.now, 0
        ),
    )
    assert (world.get().status, world.get().evidence) == (Status.FAILED, "totals")
    assert world.save(*verdict(claim, done_as("pending"), world)).result == "contradicts"


def test_owner_may_name_its_own_provider_refund_again(world: World) -> None:
    at_stage(world, Stage.PROCESSING)
    refund = world.get()
    proof = attempts.done(refund, found(id=f"re_{ID}"), "reply", world.now)
    assert world.save(refund, proof).result == "saved"
    assert world.get().status is Status.SUCCEEDED


# After a recovery


def test_verdict_of_an_attempt_that_the_restored_server_never_saw_changes_nothing(
    world: World,
) -> None:
    world.accept()
    snapshot = world.dump()
    claim = world.claim()
    world.restore(snapshot)
    step = decisions.recovered(world.get(), world.now, world.now)
    assert step is not None
    world.save(world.get(), step)
    assert world.end(claim, REFUSED).result == "stale"
    assert world.get().doubt_since is not None


@pytest.mark.parametrize("status", ["pending", "succeeded"])
def test_proof_of_an_attempt_that_the_restored_server_never_saw_is_accepted(
    world: World, status: str
) -> None:
    world.accept()
    snapshot = world.dump()
    claim = world.claim()
    world.restore(snapshot)
    step = decisions.recovered(world.get(), world.now, world.now)
    assert step is not None
    world.save(world.get(), step)
    assert world.end(claim, done_as(status)).result == "saved"
    assert (world.get().provider_refund_id, world.get().doubt_since) == ("re_1", None)
    world.check()


# Quiet steps


def test_quiet_step_moves_only_the_time(world: World) -> None:
    refund = at_stage(world, Stage.IN_DOUBT)
    before = world.dump()
    look = Readback(verdict=ReadbackVerdict.ABSENT, reason="too early")
    step = readback.after_readback(refund, look, VERIFY, world.now, 0)
    assert step.quiet
    assert step.delay is not None
    assert world.save(refund, step).result == "saved"
    after = world.dump()
    due = to_ms(world.now + step.delay)
    assert after[f"refund:{ID}"][1] == before[f"refund:{ID}"][1] | {"next_check_at": str(due)}
    assert dict(after["due"][1]) == dict(after["index:in_doubt"][1]) == {ID: due}
    untouched = set(before) - {f"refund:{ID}", "due", "index:in_doubt"}
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    assert set(after) == set(before)


def test_quiet_step_may_count_and_clear_without_a_version(world: World) -> None:
    refund = at_stage(world, Stage.IN_DOUBT)
    world.pass_time(VERIFY.settle)
    absent = readback.after_readback(
        refund, Readback(verdict=ReadbackVerdict.ABSENT, reason="so"), VERIFY, world.now, 0
    )
    world.save(refund, absent)
    refund = world.get()
    assert refund.absent_at == world.now
    step = readback.after_readback(
        refund, Readback(verdict=ReadbackVerdict.INCONCLUSIVE, reason="so"), VERIFY, world.now, 0
    )
    world.save(refund, step)
    after = world.get()
    assert (after.version, after.looks, after.absent_at) == (refund.version, 1, None)
    world.check()


def test_quiet_step_on_another_stage_or_version_changes_nothing(world: World) -> None:
    refund = at_stage(world, Stage.PROCESSING)
    quiet = Step(
        to=Stage.IN_DOUBT,
        status=Status.PENDING,
        label="x",
        delay=MINUTE,
        quiet=True,
        changes={"looks": 1},
    )
    before = world.dump()
    assert world.save(refund, quiet).result == "illegal"
    stale = replace(refund, version=refund.version - 1)
    assert world.save(stale, replace(quiet, to=Stage.PROCESSING)).result == "stale"
    assert world.dump() == before


# Illegal moves


@pytest.mark.parametrize("source", Stage)
@pytest.mark.parametrize("target", Stage)
def test_move_outside_the_table_changes_nothing_at_all(
    world: World, source: Stage, target: Stage
) -> None:
    if target in transitions.TRANSITIONS[source]:
        return
    refund = at_stage(world, source)
    before = world.dump()
    status = Status.FAILED if target is Stage.SETTLED else Status.PENDING
    changes = {"error_code": "x", "provider_refund_id": "re_x", "generation": 9}
    saved = world.save(
        refund, Step(to=target, status=status, label="x", changes=changes, delay=MINUTE)
    )
    assert (saved.result, saved.other) == ("illegal", source.value)
    assert world.dump() == before


def test_step_for_a_record_that_is_not_there_changes_nothing(world: World) -> None:
    refund = at_stage(world, Stage.QUEUED)
    world.redis.flushall()
    assert world.save(refund, decisions.cancel(refund)).result == "missing"
    assert world.dump() == {}


# Cancel, retry, reversal


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.WAITING])
def test_canceled_refund_is_settled_and_can_no_longer_be_claimed(
    world: World, stage: Stage
) -> None:
    refund = at_stage(world, stage)
    assert world.save(refund, decisions.cancel(refund)).result == "saved"
    assert (world.get().stage, world.get().status) == (Stage.SETTLED, Status.CANCELED)
    world.pass_time(HOUR)
    assert world.claim().result == "stage"
    assert world.swept(dry=frozenset(Lane)) == []
    world.check()


def test_cancel_that_comes_after_the_claim_changes_nothing(world: World) -> None:
    refund = at_stage(world, Stage.QUEUED)
    step = decisions.cancel(refund)
    assert world.claim().claimed
    before = world.dump()
    assert world.save(refund, step).result == "stale"
    assert world.dump() == before


def test_retry_is_a_new_generation_with_its_own_key_and_body_due_for_its_nudge(
    world: World,
) -> None:
    world.accept(amount=None)
    world.attempt(replace(REFUSED, code="balance_insufficient"))
    old = world.get()
    step = decisions.retry_failed(old)
    assert step is not None
    assert world.save(old, step).result == "saved"
    refund = world.get()
    assert (refund.stage, refund.status, refund.generation) == (Stage.QUEUED, Status.PENDING, 2)
    assert refund.idempotency_key == idempotency_key(ID, 2) != old.idempotency_key
    assert refund.next_check_at == world.now + timedelta(minutes=10)
    assert (refund.error_code, refund.first_attempt_at) == (None, None)
    world.check()
    claim = world.claim()
    assert json.loads(claim.body)["metadata"] == {"refund_id": ID, "refund_generation": "2"}
    assert claim.refund is not None
    assert (claim.refund.attempts, claim.refund.first_attempt_at) == (2, NOW)


def test_retry_asked_twice_makes_one_new_generation(world: World) -> None:
    world.accept()
    world.attempt(replace(REFUSED, code="lock_timeout"))
    refund = world.get()
    step = decisions.retry_failed(refund)
    assert step is not None
    assert [world.save(refund, step).result for _ in range(2)] == ["saved", "stale"]
    assert world.get().generation == 2


def test_reversal_moves_a_settled_refund_from_one_final_index_to_the_other(world: World) -> None:
    refund = at_stage(world, Stage.SETTLED)
    world.pass_time(HOUR)
    step = changed_by_provider(refund, found(id=f"re_{ID}", status="failed"), "list", NOW)
    assert step is not None
    assert world.save(refund, step).result == "saved"
    assert (world.get().stage, world.get().status) == (Stage.SETTLED, Status.FAILED)
    assert world.indexes_of(ID) == ["index:failed"]
    world.check()


def test_lease_that_lapses_is_saved_once(world: World) -> None:
    held(world)
    refund = world.get()
    world.pass_time(LEASE)
    step = attempts.after_lapse(refund, VERIFY, world.now, 0)
    assert [world.save(refund, step).result for _ in range(2)] == ["saved", "stale"]
    assert (world.get().lapses, world.get().quiet_at) == (1, NOW + LEASE)


def test_body_is_dropped_when_the_refund_settles_and_not_before(world: World) -> None:
    for stage in Stage:
        at_stage(world, stage, stage.value, payment_intent=f"pi_{stage}")
        assert (f"refunds:body:{stage}" in world.keys("body:*")) is (stage is not Stage.SETTLED)
