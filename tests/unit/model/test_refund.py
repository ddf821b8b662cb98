"""The record as callers see it: its fields, its times, and what survives pickling."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import NOW, a_refund, a_request
from worker.errors import FieldError, IdempotencyConflict, IllegalMove, InvalidRequest, RefundError
from worker.model.refund import PUBLIC_FIELDS, Lane, Refund, Retriable, Stage, Status
from worker.model.request import request_body
from worker.model.times import from_ms, rfc3339, to_ms

law = settings(deadline=None, max_examples=100)


@pytest.mark.parametrize(
    "fields", [{}, {"metadata": {"order": "1001"}}], ids=["without metadata", "with metadata"]
)
def test_pickled_record_comes_back_equal(fields: dict[str, Any]) -> None:
    refund = a_refund(**fields)
    assert pickle.loads(pickle.dumps(refund)) == refund


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest([FieldError(field="amount", code="amount", value="0", rule="must be more")]),
        IdempotencyConflict("order-1001-1"),
        IllegalMove("order-1001-1", "queued", "review"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pickled_error_keeps_its_text_and_its_facts(error: RefundError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


CONTRACT_FIELDS = """
refund_id status stage payment_intent amount currency reason metadata provider_refund_id
provider_status failure_reason error_code error_message retriable evidence doubt_since attempts
generation batch_id
created_at updated_at next_check_at version contradicted_by reversed_at metadata_erased_at
"""


def test_refund_as_a_dict_has_exactly_the_fields_of_the_contract_in_its_order() -> None:
    assert list(a_refund().as_dict()) == CONTRACT_FIELDS.split() == list(PUBLIC_FIELDS)


def test_refund_as_a_dict_is_plain_json_with_integer_amounts_and_utc_times() -> None:
    refund = a_refund(
        Stage.IN_DOUBT,
        metadata={"a": "b"},
        retriable=Retriable.NO,
        doubt_since=datetime(2026, 1, 31, 10, 0, 0, 5000, tzinfo=timezone(timedelta(hours=1))),
    )
    seen = json.loads(json.dumps(refund.as_dict()))
    assert seen == refund.as_dict()
    assert (
        seen | {"amount": 500, "metadata": {"a": "b"}, "retriable": "no", "stage": "in_doubt"}
        == seen
    )
    assert seen["doubt_since"] == "2026-01-31T09:00:00.005Z"
    assert seen["created_at"] == "2026-01-31T08:00:00.000Z"
    assert seen["provider_refund_id"] is None
    assert type(seen["metadata"]) is dict


def test_statuses_stages_and_lanes_are_the_contracts() -> None:
    assert [status.value for status in Status] == ["pending", "succeeded", "failed", "canceled"]
    assert [stage.value for stage in Stage] == [
        "queued",
        "sending",
        "waiting",
        "in_doubt",
        "processing",
        "review",
        "settled",
    ]
    assert [lane.value for lane in Lane] == ["refunds", "refunds.bulk"]
    assert [answer.value for answer in Retriable] == ["yes", "no", "unknown"]


@pytest.mark.parametrize("amount", [500, None])
def test_record_gives_back_what_was_asked_even_after_the_provider_named_the_amount(
    amount: int | None,
) -> None:
    request = a_request(amount=amount, metadata={"a": "b"})
    settled = a_refund(
        Stage.SETTLED, amount=500, all_remaining=amount is None, metadata={"a": "b"}, currency="usd"
    )
    assert settled.as_request() == request
    assert request_body(settled.as_request(), 1) == request_body(request, 1)


@law
@given(milliseconds=st.integers(0, 10**14))
def test_times_travel_through_milliseconds_exactly(milliseconds: int) -> None:
    assert to_ms(from_ms(milliseconds)) == milliseconds
    assert from_ms(milliseconds).tzinfo is UTC


@pytest.mark.parametrize("milliseconds", [10**15, 10**30, -(10**15)])
def test_milliseconds_that_are_not_a_time_are_refused(milliseconds: int) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        from_ms(milliseconds)


STATED: dict[str, Any] = {
    "refund_id": "order-1001-1",
    "status": Status.PENDING,
    "stage": Stage.QUEUED,
    "payment_intent": "pi_1",
    "created_at": NOW,
    "updated_at": NOW,
    "version": 1,
    "fingerprint": "f",
    "idempotency_key": "k",
}
NAMES = [each.name for each in fields(Refund)]


@pytest.mark.parametrize("name", NAMES)
def test_record_of_stated_fields_is_the_constructors(name: str) -> None:
    values = STATED | {name: {"a": "b"} if name == "metadata" else f"a {name}"}
    made = Refund.of(values)
    assert made == Refund(**values)
    assert {each: getattr(made, each) for each in NAMES} == vars(Refund(**values))
    assert replace(made, version=7) == Refund(**values | {"version": 7})


@pytest.mark.parametrize("name", STATED)
def test_record_without_a_field_that_it_needs_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        Refund.of({each: value for each, value in STATED.items() if each != name})


def test_record_with_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="colour"):
        Refund.of(STATED | {"colour": "red"})


def test_records_of_stated_fields_share_nothing_and_cannot_be_changed() -> None:
    one, other = Refund.of(STATED), Refund.of(STATED)
    assert one.metadata == other.metadata == {}
    assert one.metadata is not other.metadata
    with pytest.raises(FrozenInstanceError):
        one.version = 2  # type: ignore[misc]  # what is tested


def test_time_is_written_with_milliseconds_and_z() -> None:
    assert rfc3339(NOW) == "2026-01-31T09:00:00.000Z"
