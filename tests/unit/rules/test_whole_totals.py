"""What a payment's totals are read as, in full."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import (
    a_refund,
    payment_in,
)
from worker.model.answers import (
    PaymentView,
)
from worker.model.refund import Baseline

REFUND = a_refund()
ERROR = {"type": "api_error", "code": "broken", "message": "because"}


@pytest.mark.parametrize(
    ("payload", "view"),
    [
        (
            {"currency": "USD", "charges": {"data": [{}, {}]}},
            PaymentView(currency="usd", problem="the payment has several charges"),
        ),
        (
            {"currency": "usd", "charges": {"data": [{"amount_refunded": 0}], "has_more": True}},
            PaymentView(currency="usd", problem="the payment has several charges"),
        ),
        (
            {"currency": "usd"},
            PaymentView(currency="usd", problem="the payment shows no refunded total"),
        ),
        (
            {"currency": "usd", "charges": {"data": ["ch_1"]}, "latest_charge": "ch_1"},
            PaymentView(currency="usd", charge="ch_1"),
        ),
        (
            {"currency": "usd", "latest_charge": 7},
            PaymentView(currency="usd", problem="the payment's charges cannot be read"),
        ),
        (
            {"currency": "usd", "latest_charge": ""},
            PaymentView(currency="usd", problem="the payment's charges cannot be read"),
        ),
        (
            {"charges": "many"},
            PaymentView(problem="the payment's charges cannot be read"),
        ),
        (
            {"charges": {"data": {}}},
            PaymentView(problem="the payment's charges cannot be read"),
        ),
        ({"charges": {"data": []}}, PaymentView(problem="the payment shows no refunded total")),
        (
            {"currency": "usd", "amount_refunded": "?"},
            PaymentView(currency="usd", problem="the charge shows no readable refunded total"),
        ),
        (
            {"currency": "usd", "amount_refunded": None},
            PaymentView(currency="usd", problem="the charge shows no readable refunded total"),
        ),
        (
            {"currency": "usd", "latest_charge": {"amount_refunded": 1, "currency": "EUR"}},
            PaymentView(currency="", problem="payment and charge differ in currency"),
        ),
        (
            {"latest_charge": {"amount_refunded": 1, "currency": "EUR", "amount": 9}},
            PaymentView(refunded=1, captured=9, currency="eur"),
        ),
        (
            {"currency": "usd", "amount_refunded": 0, "amount_captured": "?"},
            PaymentView(refunded=0, captured=None, currency="usd"),
        ),
        (
            {
                "currency": "usd",
                "amount_refunded": 0,
                "amount_captured": 1,
                "amount_received": 2,
                "amount": 3,
            },
            PaymentView(refunded=0, captured=1, currency="usd"),
        ),
        (
            {"currency": "usd", "amount_refunded": 0, "amount_received": 2, "amount": 3},
            PaymentView(refunded=0, captured=2, currency="usd"),
        ),
        (
            {"currency": "usd", "amount_refunded": 0, "amount_captured": 0, "amount": 3},
            PaymentView(refunded=0, captured=0, currency="usd"),
        ),
    ],
)
def test_totals_are_read_as_this_and_nothing_else(
    payload: dict[str, Any], view: PaymentView
) -> None:
    assert payment_in(payload) == view


@pytest.mark.parametrize(
    ("view", "baseline"),
    [
        (PaymentView(problem="why"), None),
        (
            PaymentView(refunded=0, currency="usd"),
            Baseline(refunded=0, currency="usd", remaining=None),
        ),
        (PaymentView(refunded=3, captured=10), Baseline(refunded=3, currency=None, remaining=7)),
    ],
)
def test_baseline_is_this_and_nothing_else(view: PaymentView, baseline: Baseline | None) -> None:
    assert view.baseline == baseline
