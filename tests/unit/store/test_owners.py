"""One provider refund belongs to one record."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import redis

from tests.factories import (
    BLIND,
    HOUR,
    MINUTE,
    PAYMENT,
    VERIFY,
    a_reply,
    an_error,
    done_as,
    found,
    refund_payload,
)
from tests.support.saving import held, verdict
from tests.support.store_world import ID, P, World, at_stage
from worker.model.answers import Readback, ReadbackVerdict
from worker.model.refund import Stage, Status
from worker.rules import decisions, polls, proofs, readback


def test_provider_refund_that_belongs_to_another_record_is_refused_with_its_owner(
    world: World,
) -> None:
    at_stage(world, Stage.SETTLED, "first")
    claim = held(world, "second")
    before = world.dump()
    saved = world.end(claim, done_as("succeeded", id="re_first"))
    assert (saved.result, saved.other) == ("owned", "first")
    assert world.dump() == before


def test_owner_of_a_provider_refund_is_told_if_it_has_one(world: World) -> None:
    at_stage(world, Stage.SETTLED, "first")
    assert world.store.owner_of("re_first") == "first"
    assert world.store.owner_of("re_other") is None


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
        world.save(world.get(), polls.after_poll(world.get(), an_error(404), world.now, 0))
        world.pass_time(MINUTE)
    assert (world.get().stage, world.get().provider_refund_id) == (Stage.REVIEW, None)
    rightful = at_stage(world, Stage.PROCESSING, "1")
    assert rightful.provider_refund_id == "re_1"
    world.check()


def test_provider_refund_that_a_person_named_is_owned_once_it_is_final(world: World) -> None:
    refund = at_stage(world, Stage.REVIEW)
    world.save(refund, decisions.resolve_succeeded(refund, "re_1", world.now))
    step = polls.after_poll(world.get(), a_reply(200), world.now, 0)
    assert world.save(world.get(), step).result == "saved"
    assert world.hash(f"payment:{PAYMENT}")["owner:re_1"] == ID


def test_provider_refund_that_a_person_named_is_owned_once_the_provider_says_pending(
    world: World,
) -> None:
    refund = at_stage(world, Stage.REVIEW)
    world.save(refund, decisions.resolve_succeeded(refund, "re_1", world.now))
    pending = a_reply(200, refund_payload(status="pending"))
    world.save(world.get(), polls.after_poll(world.get(), pending, world.now, 0))
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
    proof = proofs.done(refund, found(id=f"re_{ID}"), "reply", world.now)
    assert world.save(refund, proof).result == "saved"
    assert world.get().status is Status.SUCCEEDED


def test_earlier_refund_of_the_provider_stays_owned_while_its_record_is_open(world: World) -> None:
    world.accept()
    world.attempt(done_as("failed", id="re_1"))
    assert world.expires("owner:re_1")
    retry = decisions.retry_failed(world.get())
    assert retry is not None
    assert world.save(world.get(), retry).result == "saved"
    assert world.get().prior_ids == ("re_1",)
    assert not world.expires("owner:re_1")
    world.check()
    world.attempt(done_as("succeeded", id="re_2"))
    world.check()
    assert [world.expires(f"owner:re_{number}") for number in (1, 2)] == [True, True]


@pytest.mark.parametrize("kept", [0, 1])
def test_owner_goes_with_its_record_however_short_that_is_kept(
    sync_redis: redis.Redis, kept: int
) -> None:
    world = World(sync_redis, retention=timedelta(milliseconds=kept))
    claim = held(world)
    assert world.end(claim, done_as("succeeded", id="re_1")).result == "saved"
    # Gone, or within what is left of a millisecond.
    left = [int(sync_redis.pttl(f"{P}{name}")) for name in (f"refund:{ID}", "owner:re_1")]
    assert set(left) <= {-2, 0, 1}
