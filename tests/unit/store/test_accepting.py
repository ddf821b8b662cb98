"""Accepting a refund: once, durably comparable, and never over another one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.factories import HOUR, MINUTE, NOW, PAYMENT, REFUSED, a_request, done_as
from tests.support.store_world import ID, World
from worker.client import record_of
from worker.errors import NotStorable
from worker.model.answers import Outcome
from worker.model.refund import Lane, Stage, Status
from worker.model.request import RefundRequest, idempotency_key, request_body
from worker.model.times import to_ms
from worker.rules import decisions
from worker.store import creations


def test_accepted_refund_stands_as_pending_and_queued_with_all_it_was_asked_with(
    world: World,
) -> None:
    request = a_request(reason="duplicate", currency="USD", metadata={"order": "1001"})
    created = world.accept(request)
    assert set(world.redis.keys()) == set(world.keys())
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
    assert (refund.created_at, refund.updated_at, refund.fingerprint) == (
        NOW,
        NOW,
        request.fingerprint,
    )
    assert refund.idempotency_key == idempotency_key(ID, 1)
    assert refund.lane is Lane.SINGLE
    world.check()


@pytest.mark.parametrize(
    "request_",
    [
        a_request(),
        a_request(amount=None),
        a_request(
            currency="eur",
            reason="fraudulent",
            metadata={"ключ": "значение 💶", 'q"': "\\n", "empty": ""},
        ),
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


def test_same_id_with_the_same_contents_returns_the_record_and_changes_nothing(
    world: World,
) -> None:
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
    [
        {"amount": 501},
        {"amount": None},
        {"payment_intent": "pi_2"},
        {"currency": "usd"},
        {"metadata": {"a": "b"}},
    ],
    ids=str,
)
def test_same_id_with_other_contents_conflicts_and_changes_nothing(
    world: World, fields: dict[str, Any]
) -> None:
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


EVERY_FIELD: dict[str, Any] = {
    "amount": 500,
    "currency": "usd",
    "reason": "duplicate",
    "metadata": {"a": "1", "ключ": 'q"\\'},
}


@pytest.mark.parametrize("end", [REFUSED, done_as("succeeded")], ids=["failed", "succeeded"])
def test_settled_record_tells_the_same_refund_by_what_it_keeps_of_the_request(
    world: World, end: Outcome
) -> None:
    world.accept(**EVERY_FIELD)
    world.attempt(end)
    assert "fingerprint" not in world.hash(f"refund:{ID}")
    assert world.get().fingerprint == a_request(**EVERY_FIELD).fingerprint
    before = world.dump()
    assert world.accept(**EVERY_FIELD).result == "exists"
    assert world.accept(**EVERY_FIELD | {"metadata": {"ключ": 'q"\\', "a": "1"}}).result == "exists"
    assert world.dump() == before


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 501},
        {"amount": None},
        {"payment_intent": "pi_2"},
        {"currency": None},
        {"reason": None},
        {"reason": "fraudulent"},
        {"metadata": {}},
        {"metadata": {"a": "1"}},
        {"metadata": EVERY_FIELD["metadata"] | {"b": "1"}},
        {"metadata": EVERY_FIELD["metadata"] | {"a": "2"}},
    ],
    ids=str,
)
def test_settled_record_conflicts_with_other_contents(world: World, change: dict[str, Any]) -> None:
    world.accept(**EVERY_FIELD)
    world.attempt(done_as("succeeded"))
    before = world.dump()
    assert world.accept(**EVERY_FIELD | change).result == "conflict"
    assert world.dump() == before


@pytest.mark.parametrize("broken", ["{", "5"])
def test_settled_record_whose_metadata_cannot_be_read_conflicts_with_any_others(
    world: World, broken: str
) -> None:
    world.accept(**EVERY_FIELD)
    world.attempt(done_as("succeeded"))
    world.redis.hset(f"refunds:refund:{ID}", "metadata", broken)
    assert world.accept(**EVERY_FIELD).result == "conflict"


@pytest.mark.parametrize("amount", [500, None])
def test_refund_of_all_that_was_left_is_the_same_whatever_it_came_to(
    world: World, amount: int | None
) -> None:
    world.accept(amount=None)
    world.attempt(done_as("succeeded"))
    assert world.get().amount == 500
    assert world.accept(amount=amount).result == ("exists" if amount is None else "conflict")


def test_refund_that_goes_again_after_it_failed_is_still_the_same(world: World) -> None:
    world.accept(**EVERY_FIELD)
    step = decisions.retry_failed(world.attempt(replace(REFUSED, code="balance_insufficient")))
    assert step is not None
    world.save(world.get(), step)
    assert world.accept(**EVERY_FIELD).result == "exists"
    assert world.accept(**EVERY_FIELD | {"amount": 1}).result == "conflict"
    world.check()


def test_refunds_of_one_script_are_answered_one_by_one(world: World) -> None:
    world.accept("old")
    world.accept("other", amount=1)
    requests = [a_request(name) for name in ("new", "old", "other", "new")]
    requests += [a_request("new", amount=2), a_request("last", payment_intent="pi_2")]
    created = world.store.run(creations.create_several(requests, Lane.BULK, "b1"))
    assert [one.result for one in created] == [
        "created",
        "exists",
        "conflict",
        "exists",
        "conflict",
        "created",
    ]
    assert [one.refund.refund_id for one in created if one.refund is not None] == ["old", "new"]
    assert list(world.store.ids_in_batch("b1")) == ["new", "last"]
    assert world.hash("batch:b1") == {"stage:queued": "2", "status:pending": "2"}
    world.check()


def test_a_new_id_for_a_payment_and_amount_that_stand_is_left_out_if_repeats_are_refused(
    world: World,
) -> None:
    world.accept("old")
    world.accept("rest", payment_intent="pi_2", amount=None)
    requests = [
        a_request("old"),
        a_request("again"),
        a_request("again"),
        a_request("more", amount=501),
        a_request("all", payment_intent="pi_2", amount=None),
        a_request("part", payment_intent="pi_2"),
    ]
    commands = [
        creations.create_several(requests, Lane.BULK, refuse_repeats=is_refused)
        for is_refused in (True, False)
    ]
    assert [[one.result for one in world.store.run(command)] for command in commands] == [
        ["exists", "repeat", "repeat", "created", "repeat", "created"],
        ["exists", "created", "exists", "exists", "created", "exists"],
    ]
    world.check()


def queued(world: World, *names: str, queue: str = "refunds", message: str = "of ") -> list[str]:
    """Accept refunds together with their messages; what became of each."""
    requests = [a_request(name, payment_intent=f"pi_{name}") for name in names]
    messages = [message and message + name for name in names]
    command = creations.create_several(requests, Lane.SINGLE, queue=queue, messages=messages)
    return [one.result for one in world.store.run(command)]


def test_message_is_queued_with_each_refund_that_is_new_and_with_no_other(world: World) -> None:
    assert queued(world, "a", "b", "a") == ["created", "created", "exists"]
    assert queued(world, "b", "c") == ["exists", "created"]
    world.accept("d")
    assert world.redis.lrange("refunds", 0, -1) == ["of c", "of b", "of a"]
    assert world.get("c").stage is Stage.QUEUED


def test_message_is_queued_with_a_refund_that_begins_in_doubt_after_a_recovery(
    world: World,
) -> None:
    world.redis.hset(
        "refunds:meta",
        mapping={"suspect_since": to_ms(NOW - HOUR), "suspect_until": to_ms(NOW + HOUR)},
    )
    assert queued(world, "a", "b") == ["created", "created"]
    assert world.redis.lrange("refunds", 0, -1) == ["of b", "of a"]
    assert world.get("a").stage is Stage.IN_DOUBT
    assert world.get("a").retry_may_be_lost


def test_queue_of_an_installation_begins_with_its_prefix(world: World) -> None:
    assert queued(world, "a", queue="refunds:refunds") == ["created"]
    assert world.redis.lrange("refunds:refunds", 0, -1) == ["of a"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"queue": "refunds.bulk"}, "the queue is not that of the lane"),
        ({"queue": "refunds:due"}, "the queue is not that of the lane"),
        ({"message": ""}, "a row has no message"),
    ],
)
def test_message_that_no_worker_of_the_lane_would_find_is_refused_and_nothing_is_accepted(
    world: World, given: dict[str, str], why: str
) -> None:
    before = world.dump()
    with pytest.raises(NotStorable, match=why):
        queued(world, "a", **given)
    assert world.dump() == before


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (0, "a b", "a row has an invalid id"),
        (0, "a" * 201, "a row has an invalid id"),
        (3, "pi 1", "a row has no valid payment"),
        (3, "p" * 201, "a row has no valid payment"),
        (5, "0", "a row has the amount 0"),
        (5, "1.5", r" amount 1\.5 is not a whole number"),
        (6, "EUR", "a currency is not three letters"),
        (6, "euro", "a currency is not three letters"),
        (7, "because", "because"),
        (8, "[]", "the metadata of a row is not a JSON object"),
    ],
)
def test_row_with_a_value_that_no_record_may_have_is_refused_and_nothing_is_accepted(
    world: World, place: int, value: str, why: str
) -> None:
    command = creations.create_several([a_request("a")], Lane.SINGLE)
    before_row = len(command.arguments) - 10
    arguments = [*command.arguments]
    arguments[before_row + place] = value
    before = world.dump()
    with pytest.raises(NotStorable, match=why):
        world.store.run(replace(command, arguments=arguments))
    assert world.dump() == before


def test_refund_for_a_lane_that_does_not_exist_is_refused(world: World) -> None:
    command = creations.create(a_request("a"), Lane.SINGLE)
    arguments = [*command.arguments]
    arguments[1] = "refunds.odd"
    with pytest.raises(NotStorable, match=r"refunds\.odd is none of"):
        world.store.run(replace(command, arguments=arguments))
    assert not world.keys("refund:*")


def test_no_rows_are_accepted_as_none(world: World) -> None:
    assert world.store.run(creations.create_several([], Lane.BULK)) == []


def test_doubts_of_another_type_concern_no_refund_that_is_new(world: World) -> None:
    world.redis.set(f"refunds:doubts:{PAYMENT}", "text")
    assert world.accept().result == "created"


@pytest.mark.parametrize(("since", "told"), [({}, "nothing"), ({"suspect_since": "odd"}, "odd")])
def test_recovery_whose_begin_cannot_be_read_accepts_nothing(
    world: World, since: dict[Any, Any], told: str
) -> None:
    until: dict[Any, Any] = {"suspect_until": to_ms(NOW + HOUR)}
    world.redis.hset("refunds:meta", mapping={**since, **until})
    before = world.dump()
    with pytest.raises(NotStorable, match=f"suspect_since {told} is not a whole number"):
        world.accept()
    assert world.dump() == before


@pytest.mark.parametrize("name", ["open", "seq"])
def test_payment_whose_count_cannot_be_read_is_refused_and_nothing_is_accepted(
    world: World, name: str
) -> None:
    world.redis.hset("refunds:payment:pi_b", name, "odd")
    before = world.dump()
    requests = [a_request(each, payment_intent=f"pi_{each}") for each in "ab"]
    with pytest.raises(NotStorable, match=f"{name} odd is not a whole number"):
        world.store.run(creations.create_several(requests, Lane.SINGLE))
    assert world.dump() == before


def test_queue_that_is_not_a_list_is_noticed_before_anything_is_accepted(world: World) -> None:
    world.redis.set("refunds", "a text")
    before = world.dump()
    with pytest.raises(NotStorable):
        queued(world, "a")
    assert world.dump() == before


def test_refunds_of_one_script_after_a_recovery_all_begin_in_doubt(world: World) -> None:
    world.redis.hset(
        "refunds:meta",
        mapping={"suspect_since": to_ms(NOW - HOUR), "suspect_until": to_ms(NOW + HOUR)},
    )
    requests = [a_request(f"r{number}", payment_intent=f"pi_{number}") for number in range(3)]
    made = world.store.run(creations.create_several(requests, Lane.BULK))
    assert [one.result for one in made] == ["created"] * 3
    assert {world.get(request.refund_id).stage for request in requests} == {Stage.IN_DOUBT}
    # The result of each submission says so.
    for request, one in zip(requests, made, strict=True):
        assert record_of(request, Lane.BULK, one) == world.get(request.refund_id)
    world.check()


def test_accepted_refund_is_due_when_its_nudge_must_have_been_lost(world: World) -> None:
    world.accept()
    assert world.get().next_check_at == world.score("due", ID) == NOW + timedelta(minutes=10)


def test_record_is_a_flat_hash_that_other_languages_can_read(world: World) -> None:
    world.accept(metadata={"order": "1001"})
    stored = world.hash(f"refund:{ID}")
    assert (
        stored
        | {"status": "pending", "stage": "queued", "amount": "500", "payment_intent": PAYMENT}
        == stored
    )
    assert json.loads(stored["metadata"]) == {"order": "1001"}
    assert stored["created_at"] == str(to_ms(NOW))
    assert stored["idempotency_key"] == world.get().idempotency_key
    assert not {"reason", "currency", "provider_refund_id", "doubt_since"} & set(stored)


def test_history_names_who_submitted_a_refund(world: World) -> None:
    for refund_id, name in (("shop", "shop"), ("two", "ann@shop.example"), ("three", "x" * 100)):
        world.store.run(creations.create(a_request(refund_id), Lane.SINGLE, by=name))
        assert world.store.history(refund_id)[0]["by"] == name
    # A repeat by another one changes nothing.
    world.store.run(creations.create(a_request("shop"), Lane.SINGLE, by="another"))
    assert [entry["by"] for entry in world.store.history("shop")] == ["shop"]


@pytest.mark.parametrize("by", ['"', "a b", "x" * 101, "\n", "é", ","])
def test_name_that_does_not_fit_into_the_history_is_refused(world: World, by: str) -> None:
    before = world.dump()
    with pytest.raises(NotStorable, match="the caller has an invalid name"):
        world.store.run(creations.create(a_request("new"), Lane.SINGLE, by=by))
    assert world.dump() == before


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
    assert {(world.get(refund_id).batch_id, world.get(refund_id).lane) for refund_id in ids} == {
        ("b1", Lane.BULK)
    }
    assert world.indexes_of("row-1") == ["due", "index:queued.bulk"]
    world.check()


def test_id_handed_in_again_after_a_recovery_begins_in_doubt_until_the_time_for_it_is_over(
    world: World,
) -> None:
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


def test_rows_of_a_file_begun_before_a_recovery_begin_in_doubt_however_late_they_come(
    world: World,
) -> None:
    """The restored server knows the batch, and may have lost these rows after they were sent."""
    since, recovered_at = NOW - 2 * HOUR, NOW - HOUR
    meta = {"suspect_since": since, "suspect_until": NOW, "recovered_at": recovered_at}
    world.redis.hset("refunds:meta", mapping={name: to_ms(at) for name, at in meta.items()})
    world.redis.hset("refunds:batch:b1", "created_at", to_ms(recovered_at))
    world.redis.hset("refunds:batch:b2", "created_at", to_ms(recovered_at) + 1)
    for name, batch in (("lost", "b1"), ("later", "b2"), ("single", None)):
        world.accept(name, payment_intent=f"pi_{name}", batch=batch)
    lost = world.get("lost")
    assert (lost.stage, lost.doubt_since) == (Stage.IN_DOUBT, since)
    assert {world.get(name).stage for name in ("later", "single")} == {Stage.QUEUED}
    world.check()


def test_unknown_id_is_no_refund(world: World) -> None:
    world.accept()
    assert world.store.get("nobody") is None
    assert [refund and refund.refund_id for refund in world.store.get_many(["x", ID, "y", ID])] == [
        None,
        ID,
        None,
        ID,
    ]
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
