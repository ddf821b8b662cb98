"""Saving what was decided: by version for a verdict, at any version for a proof, and never half."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.factories import (
    HOUR,
    MAYBE,
    MINUTE,
    NOT_DONE,
    NOT_SENT,
    NOW,
    REFUSED,
    SECOND,
    TRUST,
    VERIFY,
    a_request,
    done_as,
    found,
)
from tests.support.saving import held
from tests.support.store_world import ID, LEASE, World, at_stage
from worker.model.answers import Outcome, Readback, ReadbackVerdict
from worker.model.refund import Lane, Retriable, Stage, Status
from worker.model.request import idempotency_key, request_body
from worker.model.steps import Step
from worker.model.times import to_ms
from worker.rules import attempts, decisions, proofs, readback, transitions
from worker.rules.rechecks import changed_by_provider


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
    world.save(world.get(), proofs.done(world.get(), found(), "list", world.now))
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


@pytest.mark.parametrize("stage", [Stage.SETTLED, Stage.REVIEW])
def test_send_that_was_decided_before_the_recovery_is_decided_again(
    world: World, stage: Stage
) -> None:
    world.accept()
    world.attempt(replace(REFUSED, code="lock_timeout"))
    if stage is Stage.REVIEW:
        retry = decisions.retry_failed(world.get())
        assert retry is not None
        world.save(world.get(), retry)
        world.save(world.get(), proofs.to_review({}, "currency_unconfirmed", "so"))
    refund = world.get()
    again = (
        decisions.retry_failed(refund)
        if stage is Stage.SETTLED
        else decisions.resolve_resend(refund, by="ann")
    )
    assert again is not None
    step = decisions.recovered(refund, world.now, world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"
    before = world.dump()
    assert (world.save(refund, again).result, world.dump()) == ("stale", before)
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


def test_doubt_that_a_quiet_step_notes_is_remembered(world: World) -> None:
    refund = at_stage(world, Stage.WAITING)
    world.save(
        refund,
        Step(
            to=Stage.WAITING,
            status=Status.PENDING,
            label="x",
            quiet=True,
            delay=HOUR,
            changes={"doubt_since": world.now},
        ),
    )
    assert world.get().doubted


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


def test_quiet_step_of_a_settled_refund_may_only_remove_a_field(world: World) -> None:
    world.accept()
    refund = world.attempt(REFUSED)
    quiet = Step(
        to=Stage.SETTLED,
        status=Status.FAILED,
        label="x",
        quiet=True,
        changes={"error_message": None},
    )
    assert world.save(refund, quiet).result == "saved"
    assert world.get() == replace(refund, error_message=None)


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
        body = world.redis.get(f"refunds:body:{stage}")
        accepted = request_body(a_request(stage.value, payment_intent=f"pi_{stage}"), 1)
        assert body == (None if stage is Stage.SETTLED else accepted.decode())
