"""What `refunds.submit` is sent with: fields that a refund has, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from worker.broker.inbox import requested
from worker.errors import InvalidRequest

GOOD = {"refund_id": "order-1", "payment_intent": "pi_1"}


def told(args: list[Any], kwargs: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        requested(args, kwargs)
    return "; ".join(f"{each.field}: {each.rule}" for each in caught.value.errors)


def test_the_fields_of_a_refund_make_a_request() -> None:
    assert requested([], {**GOOD, "amount": 500}).amount == 500


def test_an_unknown_field_is_named_with_those_that_are_known() -> None:
    assert told([], {**GOOD, "ammount": 500}) == (
        "ammount: is not a field of a refund; "
        "the fields are refund_id, payment_intent, amount, currency, reason, metadata"
    )


def test_a_field_that_is_missing_is_named() -> None:
    assert told([], {"amount": 500}) == (
        "refund_id: is missing from kwargs; payment_intent: is missing from kwargs"
    )


def test_an_amount_of_null_is_no_request_for_all_that_is_left() -> None:
    assert told([], {**GOOD, "amount": None}) == (
        "amount: must not be null: leave it out to refund all that is left"
    )
    assert requested([], GOOD).amount is None
    assert requested([], {**GOOD, "reason": None}).reason is None


def test_fields_in_args_are_sent_to_kwargs() -> None:
    assert told([GOOD], {**GOOD}) == "args: must be empty: the fields of a refund go into kwargs"


def test_a_key_in_the_name_of_a_field_is_not_repeated() -> None:
    assert "planted" not in told([], {**GOOD, "sk_test_planted": 1})
