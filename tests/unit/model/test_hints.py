"""The ids that an event names, whatever else is in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import json_values
from worker.model.hints import MOST, Hint, read, read_all
from worker.model.request import is_provider_id, is_refund_id

law = settings(deadline=None, max_examples=200)
UPDATED = "charge.refund.updated"


def an_event(shown: object, kind: object = UPDATED) -> dict[str, Any]:
    return {"id": "evt_1", "object": "event", "type": kind, "data": {"object": shown}}


def a_refund(**fields: Any) -> dict[str, Any]:
    metadata = {"refund_id": "order-1", "refund_generation": "2", "order": "1001"}
    return {
        "id": "re_1",
        "object": "refund",
        "payment_intent": "pi_1",
        "status": "succeeded",
        "metadata": metadata,
        **fields,
    }


OURS = Hint(
    provider_refund_id="re_1",
    refund_id="order-1",
    generation=2,
    payment_intent="pi_1",
    status="succeeded",
)


def test_a_refund_gives_its_ids() -> None:
    assert read(an_event(a_refund())) == OURS


def test_a_refund_is_known_by_its_id_or_by_its_kind() -> None:
    assert read(an_event(a_refund(object="charge_refund"))) == OURS
    assert read(an_event(a_refund(id="200123"))) == replace(OURS, provider_refund_id="200123")


@pytest.mark.parametrize("kind", ["refund.created", "anything", None, 7])
def test_a_refund_is_read_from_an_event_of_any_type(kind: object) -> None:
    assert read(an_event(a_refund(), kind)) == OURS


@pytest.mark.parametrize("number", ["2", 2, 1, 10**9 - 1])
def test_a_generation_is_read_from_a_number_or_its_text(number: Any) -> None:
    hint = read(an_event(a_refund(metadata={"refund_generation": number})))
    assert hint is not None
    assert hint.generation == int(number)


@pytest.mark.parametrize("number", ["0", "-1", "1.0", "\u0662", "1" * 10, 0, 10**9, True, 2.0, [2]])
def test_a_generation_of_another_form_is_dropped(number: object) -> None:
    hint = read(an_event(a_refund(metadata={"refund_generation": number})))
    assert hint == replace(OURS, refund_id=None, generation=None)


@pytest.mark.parametrize("bad", ["", "../re_1", "re_1?x", "r" * 201, 7, None, ["re_1"]])
def test_an_id_that_cannot_be_one_is_dropped_alone(bad: object) -> None:
    assert read(an_event(a_refund(id=bad))) == replace(OURS, provider_refund_id=None)
    assert read(an_event(a_refund(payment_intent=bad))) == replace(OURS, payment_intent=None)


@pytest.mark.parametrize("bad", ["", "order 1", "o" * 201, "order\n1", 7, None])
def test_our_own_id_of_another_form_is_dropped_alone(bad: object) -> None:
    assert read(an_event(a_refund(metadata={"refund_id": bad}))) == replace(
        OURS, refund_id=None, generation=None
    )


@pytest.mark.parametrize("bad", ["", "Succeeded", "a b", "s" * 41, 7, None, ["succeeded"]])
def test_a_status_of_another_form_is_dropped_alone(bad: object) -> None:
    assert read(an_event(a_refund(status=bad))) == replace(OURS, status=None)


def test_an_expanded_payment_gives_its_id() -> None:
    assert read(an_event(a_refund(payment_intent={"id": "pi_1", "object": "payment_intent"}))) == (
        OURS
    )


@pytest.mark.parametrize("wrap", [lambda entries: {"data": entries}, lambda entries: entries])
def test_a_charge_gives_each_refund_that_it_lists_with_the_charges_payment(wrap: Any) -> None:
    second = {"id": "re_2", "metadata": None}
    entries = [a_refund(payment_intent=None), second, second, {"id": "py_1"}, "re_3"]
    charge = {"id": "ch_1", "object": "charge", "payment_intent": "pi_1", "refunds": wrap(entries)}
    other = Hint(provider_refund_id="re_2", payment_intent="pi_1")
    assert read_all(an_event(charge, "charge.refunded")) == (OURS, other)
    assert read(an_event(charge, "charge.refunded")) == OURS


def test_a_charge_of_many_refunds_gives_all_of_them() -> None:
    charge = {"object": "charge", "refunds": {"data": [a_refund(id=f"re_{n}") for n in range(50)]}}
    found = [hint.provider_refund_id for hint in read_all(an_event(charge))]
    assert found == [f"re_{number}" for number in range(50)]


@pytest.mark.parametrize(
    "shown",
    [
        {"object": "charge", "id": "ch_1", "payment_intent": "pi_1"},
        {"object": "charge", "id": "ch_1", "payment_intent": "pi_1", "refunds": {"data": []}},
        {"object": "payment_intent", "id": "pi_1"},
    ],
)
def test_an_event_that_lists_no_refund_gives_the_payment(shown: object) -> None:
    assert read_all(an_event(shown)) == (Hint(payment_intent="pi_1"),)


@pytest.mark.parametrize("shown", [None, [], "re_1", {}, {"object": "charge"}])
def test_a_refunds_event_that_names_nothing_gives_an_empty_hint(shown: object) -> None:
    assert read_all(an_event(shown)) == (Hint(),)


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        "charge.refund.updated",
        {},
        an_event({"object": "charge", "id": "ch_1", "payment_intent": "pi_1"}, "charge.succeeded"),
        an_event({"object": "payment_intent", "id": "pi_1"}, "payment_intent.succeeded"),
        an_event({"object": "payment_intent", "id": "pi_1"}, None),
    ],
)
def test_an_event_that_is_not_about_a_refund_gives_nothing(event: object) -> None:
    assert read(event) is None
    assert read_all(event) == ()


shapes = st.recursive(
    json_values | st.sampled_from(["refund", "re_1", "pi_1", "charge", UPDATED]),
    lambda inner: st.dictionaries(
        st.sampled_from(
            [
                "type",
                "data",
                "object",
                "id",
                "refunds",
                "metadata",
                "payment_intent",
                "refund_id",
                "refund_generation",
            ]
        ),
        inner | st.lists(inner, max_size=3),
        max_size=5,
    ),
    max_leaves=12,
)


@law
@given(json_values | shapes | shapes.map(an_event))
def test_any_json_gives_hints_of_usable_ids_only(event: object) -> None:
    found = read_all(event)
    assert read(event) == (found[0] if found else None)
    for hint in found:
        assert hint.provider_refund_id is None or is_provider_id(hint.provider_refund_id)
        assert hint.payment_intent is None or is_provider_id(hint.payment_intent)
        assert hint.refund_id is None or is_refund_id(hint.refund_id)
        assert hint.generation is None or hint.generation > 0


@law
@given(json_values, json_values)
def test_no_status_and_no_amount_of_an_event_changes_which_refund_is_read(
    status: object, amount: object
) -> None:
    hint = read(an_event(a_refund(status=status, amount=amount)))
    assert hint is not None
    assert replace(hint, status="succeeded") == OURS


def test_ten_refunds_of_an_event_are_read() -> None:
    assert MOST == 10
