"""What a payment's reply shows of its totals and currency."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import payment_in
from tests.strategies import json_values
from worker.model.answers import PaymentView
from worker.model.refund import Baseline

law = settings(deadline=None, max_examples=100)
CHARGE = {
    "id": "ch_1",
    "amount": 1000,
    "amount_captured": 900,
    "amount_refunded": 100,
    "currency": "usd",
}


@pytest.mark.parametrize(
    ("payload", "view"),
    [
        (CHARGE, PaymentView(refunded=100, captured=900, currency="usd", shown_by="ch_1")),
        (
            {"amount_refunded": "100", "amount_received": "900", "currency": "USD"},
            PaymentView(refunded=100, captured=900, currency="usd"),
        ),
        ({"amount_refunded": 0, "amount": 900}, PaymentView(refunded=0, captured=900)),
        ({"amount_refunded": 0}, PaymentView(refunded=0)),
        (
            {"currency": "usd", "charges": {"data": [CHARGE], "has_more": False}},
            PaymentView(refunded=100, captured=900, currency="usd", shown_by="ch_1"),
        ),
        (
            {"latest_charge": CHARGE},
            PaymentView(refunded=100, captured=900, currency="usd", shown_by="ch_1"),
        ),
        ({"latest_charge": "ch_1", "currency": "usd"}, PaymentView(charge="ch_1", currency="usd")),
        ({"charges": {"data": []}, "latest_charge": "ch_1"}, PaymentView(charge="ch_1")),
    ],
    ids=[
        "a charge",
        "amounts as text",
        "only an amount",
        "no amount",
        "one charge inside",
        "latest charge expanded",
        "latest charge by id",
        "no charges but a latest one",
    ],
)
def test_totals_are_read_by_the_names_that_providers_use(
    payload: dict[str, Any], view: PaymentView
) -> None:
    assert payment_in(payload) == view


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({}, "no refunded total"),
        ({"charges": {"data": [CHARGE, CHARGE]}}, "several charges"),
        ({"charges": {"data": [CHARGE], "has_more": True}}, "several charges"),
        ({"amount_refunded": None}, "no readable refunded total"),
        ({"amount_refunded": -1}, "no readable refunded total"),
        ({"amount_refunded": 1.5}, "no readable refunded total"),
        ({"amount_refunded": True}, "no readable refunded total"),
        ({"currency": "eur", "latest_charge": CHARGE}, "differ in currency"),
        (
            {"currency": "eur", "latest_charge": CHARGE | {"amount_refunded": None}},
            "differ in currency",
        ),
        (
            {"currency": "eur", "charges": {"data": [CHARGE | {"currency": "eur"}, CHARGE]}},
            "differ in currency",
        ),
    ],
)
def test_totals_that_cannot_be_told_say_why(payload: dict[str, Any], problem: str) -> None:
    view = payment_in(payload)
    assert view.refunded is None
    assert view.baseline is None
    assert problem in str(view.problem)


@law
@given(
    payload=st.dictionaries(
        st.sampled_from(
            ["amount_refunded", "charges", "latest_charge", "currency", "amount", "amount_captured"]
        ),
        json_values,
    )
)
def test_every_payload_is_a_view_or_a_problem(payload: dict[str, Any]) -> None:
    view = payment_in(payload)
    assert (view.refunded is not None) or view.charge or view.problem
    assert view.refunded is None or view.refunded >= 0


@pytest.mark.parametrize(
    ("payload", "currency"),
    [
        ({"currency": "USD"}, "usd"),
        ({"currency": "usd", "charges": {"data": []}}, "usd"),
        ({"currency": 1}, ""),
        ({"latest_charge": CHARGE}, "usd"),
        ({"currency": "usd", "charges": {"data": [CHARGE, CHARGE]}}, "usd"),
        ({"currency": "usd", "charges": {"data": [CHARGE, {}, "ch_2"]}}, "usd"),
        ({"currency": "usd", "charges": {"data": [CHARGE, {"currency": 1}]}}, ""),
        ({"charges": {"data": [CHARGE, CHARGE]}}, None),
        ({"currency": "usd", "latest_charge": CHARGE | {"currency": None}}, "usd"),
        ({"currency": "usd", "latest_charge": CHARGE | {"amount_refunded": None}}, "usd"),
        ({"latest_charge": CHARGE | {"amount_refunded": None}}, "usd"),
        ({"currency": "eur", "latest_charge": CHARGE}, ""),
        ({"currency": "eur", "charges": {"data": [CHARGE, CHARGE]}}, ""),
    ],
)
def test_currency_is_the_payments_unless_a_charge_contradicts_it(
    payload: dict[str, Any], currency: str | None
) -> None:
    assert payment_in(payload).currency == currency


def test_baseline_is_the_total_and_what_was_left() -> None:
    assert payment_in(CHARGE).baseline == Baseline(
        refunded=100, currency="usd", remaining=800, shown_by="ch_1"
    )
    assert payment_in({"amount_refunded": 5}).baseline == Baseline(
        refunded=5, currency=None, remaining=None
    )
