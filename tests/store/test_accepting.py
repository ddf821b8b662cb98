"""Accepting a refund: once, durably comparable, and never over another one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, MINUTE, NOW, PAYMENT, REFUSED, a_request
from tests.store.world import ID, World
from worker.model import Lane, RefundRequest, Stage, Status, idempotency_key, request_body, to_ms


def test_accepted_refund_stands_as_pending_and_queued_with_all_it_was_asked_with(world: World) -> None:
    request = a_request(reason="duplicate", currency="USD", metadata={"order": "1001"})
    created = world.accept(request)
    refund = world.get()
    assert (created.result, created.now, created.refund) == ("created", NOW, None)
    assert (refund.status, refund.stage, refund.version, refund.attempts, refund.generation) == (
        Status.PENDING,
        Stage.QUEUED,
        1,
        0,
        1,
    )
    assert refund.as_request() == request
    assert (refund.created_at, refund.updated_at, refund.fingerprint) == (NOW, NOW, request.fingerprint)
    assert refund.idempotency_key == idempotency_key(ID, 1)
    assert refund.lane is Lane.SINGLE
    world.check()


@pytest.mark.parametrize(
    "request_",
    [
        a_request(),
        a_request(amount=None),
        a_request(currency="eur", reason="fraudulent", metadata={"ключ": "значение 💶", 'q"': "\\n", "empty": ""}),
        a_request("x" * 200, payment_intent="p" * 200, amount=10**12),
    ],
    ids=["plain", "all that is left", "every field", "at the limits"],
)
def test_record_and_body_give_back_what_was_accepted(world: World, request_: RefundRequest) -> None:
    world.accept(request_)
    refund = world.get(request_.refund_id)
    assert refund.as_request() == request_
    claim = world.claim(request_.refund_id)
    assert claim.body == request_body(request_, 1)


def test_same_id_with_the_same_contents_returns_the_record_and_changes_nothing(world: World) -> None:
    world.accept(metadata={"a": "1", "b": "2"})
    world.claim()
    before = world.dump()
    world.pass_time(MINUTE)
    again = world.accept(metadata={"b": "2", "a": "1"}, lane=Lane.BULK, batch="other")
    assert again.result == "exists"
    assert again.refund == world.get()
    assert world.dump() == before


@pytest.mark.parametrize(
    "fields",
    [{"amount": 501}, {"amount": None}, {"payment_intent": "pi_2"}, {"currency": "usd"}, {"metadata": {"a": "b"}}],
    ids=str,
)
def test_same_id_with_other_contents_conflicts_and_changes_nothing(world: World, fields: dict[str, Any]) -> None:
    world.accept()
    before = world.dump()
    created = world.accept(**fields)
    assert (created.result, created.refund) == ("conflict", None)
    assert world.dump() == before


def test_same_id_is_the_same_refund_after_it_has_settled(world: World) -> None:
    world.accept()
    world.attempt(REFUSED)
    before = world.dump()
    again = world.accept()
    assert again.refund is not None
    assert (again.result, again.refund.status) == ("exists", Status.FAILED)
    assert world.dump() == before


def test_accepted_refund_is_due_when_its_nudge_must_have_been_lost(world: World) -> None:
    world.accept()
    assert world.get().next_check_at == world.score("due", ID) == NOW + timedelta(minutes=10)


def test_record_is_a_flat_hash_that_other_languages_can_read(world: World) -> None:
    world.accept(metadata={"order": "1001"})
    stored = world.hash(f"refund:{ID}")
    assert stored | {"status": "pending", "stage": "queued", "amount": "500", "payment_intent": PAYMENT} == stored
    assert json.loads(stored["metadata"]) == {"order": "1001"}
    assert stored["created_at"] == str(to_ms(NOW))
    assert not {"reason", "currency", "provider_refund_id", "doubt_since"} & set(stored)


def test_history_and_events_begin_with_the_acceptance(world: World) -> None:
    world.accept()
    (entry,) = world.store.history(ID)
    assert entry == {
        "version": 1,
        "at": to_ms(NOW),
        "from": None,
        "to": "queued",
        "status": "pending",
        "label": "accepted",
    }
    (event,) = world.dump()["events"][1]
    assert event[1] == {
        "refund_id": ID,
        "version": "1",
        "at": str(to_ms(NOW)),
        "from": "",
        "to": "queued",
        "status": "pending",
    }


def test_two_refunds_on_one_payment_are_both_accepted(world: World) -> None:
    for number in (1, 2):
        world.accept(f"r{number}")
    assert sorted(world.store.ids_on_payment(PAYMENT)) == ["r1", "r2"]
    world.check()


def test_row_of_a_file_stands_in_the_bulk_lane_and_in_its_batch_in_order(world: World) -> None:
    ids = [f"row-{number}" for number in (3, 1, 2)]
    for refund_id in ids:
        world.accept(refund_id, lane=Lane.BULK, batch="b1")
    assert list(world.store.ids_in_batch("b1")) == ids
    assert {(world.get(refund_id).batch_id, world.get(refund_id).lane) for refund_id in ids} == {("b1", Lane.BULK)}
    assert world.indexes_of("row-1") == ["due", "index:queued.bulk"]
    world.check()


def test_id_handed_in_again_after_a_recovery_begins_in_doubt_until_the_time_for_it_is_over(world: World) -> None:
    since = NOW - HOUR
    world.redis.hset("refunds:meta", "suspect_since", str(to_ms(since)))
    world.redis.hset("refunds:meta", "suspect_until", str(to_ms(NOW + HOUR)))
    world.accept("lost")
    refund = world.get("lost")
    assert (refund.stage, refund.status, refund.attempts) == (Stage.IN_DOUBT, Status.PENDING, 0)
    assert (refund.doubt_since, refund.first_attempt_at, refund.quiet_at) == (since, since, NOW)
    assert world.score("due", "lost") == NOW
    assert world.claim("lost").result == "stage"
    world.pass_time(HOUR)
    world.accept("new", payment_intent="pi_2")
    assert world.get("new").stage is Stage.QUEUED
    world.check()


def test_unknown_id_is_no_refund(world: World) -> None:
    world.accept()
    assert world.store.get("nobody") is None
    assert [refund and refund.refund_id for refund in world.store.get_many(["x", ID, "y", ID])] == [None, ID, None, ID]
    assert world.claim("nobody").result == "missing"


def test_fields_of_a_newer_version_are_left_alone(world: World) -> None:
    world.accept()
    before = world.get()
    world.redis.hset(f"refunds:refund:{ID}", "of_a_newer_version", "x")
    assert world.get() == before
    world.claim()
    assert world.hash(f"refund:{ID}")["of_a_newer_version"] == "x"


def test_records_of_two_prefixes_do_not_know_each_other(world: World) -> None:
    world.accept()
    other = World(world.redis)
    other.store.prefix = "other:"
    assert other.store.get(ID) is None
    assert other.accept(amount=7).result == "created"
    assert world.get().amount == 500
    assert replace(other.get(), amount=500, fingerprint="") == replace(world.get(), fingerprint="")
