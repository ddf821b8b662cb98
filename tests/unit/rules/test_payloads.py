"""What is read of a provider's JSON, value by value: typed, bounded, and never more than that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import PAYMENT, error_in, payment_in, refund_in, refund_payload
from tests.strategies import json_values
from worker.model.answers import Page, Payload, PaymentView, ProviderError
from worker.model.request import MAX_AMOUNT
from worker.rules.codes import CODES
from worker.rules.payloads import CODE, LONGEST_TEXT, STATUSES, read

law = settings(deadline=None, max_examples=300)


def refund_with(**said: Any) -> Any:
    """The refund that is read in one that differs from ours in these fields."""
    found = refund_in(refund_payload() | said)
    assert found is not None
    return found


@pytest.mark.parametrize("value", [None, [], "x", 7, True, [refund_payload()]])
def test_what_is_not_an_object_says_nothing(value: Any) -> None:
    assert read(value) is None


def test_empty_object_says_nothing() -> None:
    assert read({}) == Payload(payment=PaymentView(problem="the payment shows no refunded total"))


@pytest.mark.parametrize(
    ("value", "kind"),
    [("refund", "refund"), (None, None), ("", ""), (7, ""), ("two words", ""), ("x" * 41, "")],
)
def test_kind_of_an_object_is_a_name(value: Any, kind: str | None) -> None:
    shown = read({"object": value})
    assert shown is not None
    assert shown.kind == kind


@pytest.mark.parametrize(
    ("value", "identity"),
    [
        (PAYMENT, PAYMENT),
        ({"id": PAYMENT, "object": "payment_intent"}, PAYMENT),
        (None, None),
        ("", ""),
        (7, ""),
        ({}, ""),
        ({"id": {"id": PAYMENT}}, ""),
        ("../x", ""),
        ("x" * 201, ""),
        ([PAYMENT], ""),
    ],
)
def test_reference_is_an_id_plain_or_expanded(value: Any, identity: str | None) -> None:
    shown = read({"id": value, "payment_intent": value, "latest_charge": value})
    assert shown is not None
    assert (shown.id, shown.payment_intent, shown.latest_charge) == (identity, identity, identity)
    assert refund_with(payment_intent=value).payment_intent == identity


@pytest.mark.parametrize(
    ("value", "currency"),
    [
        ("usd", "usd"),
        ("USD", "usd"),
        (None, None),
        ("", ""),
        ("us", ""),
        ("usdx", ""),
        ("u d", ""),
        (840, ""),
        ([], ""),
    ],
)
def test_currency_is_three_letters_and_what_is_not_agrees_with_none(
    value: Any, currency: str | None
) -> None:
    assert refund_with(currency=value).currency == currency


@pytest.mark.parametrize(
    ("metadata", "ours"),
    [
        ({"refund_id": "a-1", "refund_generation": "2"}, ("a-1", "2")),
        ({"refund_id": "a-1", "refund_generation": 2}, ("a-1", "2")),
        ({"refund_id": None}, (None, None)),
        ({"refund_id": "", "refund_generation": ""}, ("", "")),
        ({"refund_id": "a b", "refund_generation": "x"}, ("", "")),
        ({"refund_id": 7, "refund_generation": -1}, ("", "")),
        ({"refund_id": "x" * 201, "refund_generation": "1" * 10}, ("", "")),
        ({"refund_id": ["a-1"], "refund_generation": True}, ("", "")),
        ({"refund_generation": "0" * 9}, (None, "000000000")),
        (None, (None, None)),
        ([], (None, None)),
        ("x", (None, None)),
    ],
)
def test_our_own_id_is_read_from_the_metadata_or_agrees_with_none(
    metadata: Any, ours: tuple[Any, Any]
) -> None:
    found = refund_with(metadata=metadata)
    assert (found.refund_id, found.generation) == ours


@pytest.mark.parametrize(
    ("reason", "code", "words"),
    [
        (None, None, None),
        ("lost_or_stolen_card", "lost_or_stolen_card", None),
        ("Some.Code-7", "Some.Code-7", None),
        (4001, "4001", None),
        (4001.0, "4001", None),
        (40.5, None, None),
        (True, None, None),
        (10**18, None, None),
        (10**18 - 1, "9" * 18, None),
        ("", None, None),
        ("the card is closed", None, "the card is closed"),
        ("x" * 61, None, "x" * 61),
        ("x" * 60, "x" * 60, None),
        ({"code": "x"}, None, None),
        ("sk_live_0123456789", None, "***"),
        ("{", None, None),
    ],
)
def test_reason_of_a_failure_is_a_code_or_else_words(
    reason: Any, code: str | None, words: str | None
) -> None:
    found = refund_with(failure_reason=reason)
    assert (found.failure_reason, found.failure_words) == (code, words)


def test_known_words_stay_what_they_are_though_a_caller_used_them_too() -> None:
    hide = ["succeeded", "card_declined", "jane_doe"]
    shown = read(refund_payload(failure_reason="card_declined"), hide)
    assert shown is not None
    assert shown.refund is not None
    assert (shown.refund.status, shown.refund.failure_reason) == ("succeeded", "card_declined")
    assert error_in({"code": "card_declined", "message": "succeeded"}, *hide) == (
        None,
        "card_declined",
        "***",
    )
    assert error_in({"code": "jane_doe", "message": "m"}, *hide) == (None, None, "***: m")


def test_values_of_a_refunds_own_metadata_are_hidden_in_what_it_says() -> None:
    metadata = {"refund_id": "order-1", "name": "Jane Doe", "pin": "123", "age": 7}
    found = refund_with(
        metadata=metadata, failure_reason="Jane Doe with 123 of order-1", status="Jane Doe"
    )
    assert (found.failure_words, found.status) == ("*** with 123 of order-1", "***")


def test_metadata_beyond_what_a_caller_may_have_costs_nothing() -> None:
    metadata = {f"n{number}": f"value-{number:06d}" for number in range(100_000)}
    found = refund_with(metadata=metadata, failure_reason="value-000059 and value-000060")
    assert found.failure_words == "*** and value-000060"


@pytest.mark.parametrize(
    ("word", "status"),
    [
        *((status, status) for status in sorted(STATUSES)),
        ("Requires Action", "requires_action"),
        ("requires-action", "requires_action"),
        ("CANCELLED", "canceled"),
        ("on hold", "on hold"),
        ("", ""),
        (None, None),
        (7, ""),
        ("x" * 100, "x" * 60),
        ("succeeded" + " " * 100, "succeeded"),
    ],
)
def test_status_is_a_known_word_or_the_providers_own(word: Any, status: str | None) -> None:
    assert refund_with(status=word).status == status


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (
            {"errors": ["a is bad", "b is bad", "c", "d", "e", "f"]},
            (None, None, "a is bad; b is bad; c; d; e"),
        ),
        (
            {"errors": {"a": ["is bad", "is odd"], "b": "no list", "c": []}},
            (None, None, "a: is bad, is odd"),
        ),
        ({"errors": {"a": ["is bad", 7, {"odd": 1}]}}, (None, None, "a: is bad")),
        ({"errors": {"a": ["x"], "message": "m"}}, (None, None, "a: x; m")),
        ({"errors": [{"code": "c1"}, {"code": "c2", "message": "m"}]}, (None, "c1", "m")),
        ({"errors": [7, {"detail": "d"}]}, (None, None, "d")),
        ({"errors": "text of it"}, (None, None, "text of it")),
        ({"error": [["deep"]]}, (None, None, "deep")),
        ({"error": 404}, (None, "404", None)),
        ({"error": True, "message": "m"}, (None, None, "m")),
        ({"error": {"code": "c", "message": "m", "msg": "n"}}, (None, "c", "m")),
        ({"error": {"code": "c", "message": {}, "msg": "n"}}, (None, "c", "n")),
        ({"type": "about:blank", "title": "t"}, (None, None, "t")),
        ({"code": "", "message": "m"}, (None, None, "m")),
        ({"code": "odd one", "message": ""}, (None, None, "odd one")),
        ({"code": "odd one", "error": "words of it"}, (None, None, "odd one: words of it")),
        ({"message": "x" * 1000}, (None, None, "x" * 200)),
        ({"message": 'no: {"body": 1}'}, (None, None, "no:")),
        ({"foo": "bar"}, None),
        ({"error": {"foo": "bar"}}, None),
        ({"error": 7.5}, None),
    ],
)
def test_error_is_read_in_each_of_its_shapes(payload: Any, error: Any) -> None:
    assert error_in(payload) == error


@pytest.mark.parametrize(
    ("payload", "page"),
    [
        ({"data": [], "has_more": False}, Page(entries=(), more=False)),
        ({"data": [], "has_more": True}, Page(entries=(), more=True)),
        ({"data": [], "has_more": "false"}, Page(entries=(), more=None)),
        ({"data": []}, Page(entries=(), more=None)),
        ({"data": [7, {}, {"id": "a b"}]}, Page(entries=(None, None, None), more=None)),
        ({"data": {}}, None),
        ({"data": None}, None),
    ],
)
def test_page_of_a_list_says_what_it_holds_and_whether_there_is_more(
    payload: Any, page: Page | None
) -> None:
    shown = read(payload)
    assert shown is not None
    assert shown.page == page


def test_entries_of_a_list_are_read_as_refunds_with_what_is_to_be_hidden() -> None:
    entry = refund_payload(failure_reason="Jane Doe moved")
    shown = read({"data": [entry]}, ["Jane Doe"])
    assert shown is not None
    assert shown.page is not None
    (read_entry,) = shown.page.entries
    assert read_entry is not None
    assert read_entry.failure_words == "*** moved"


@pytest.mark.parametrize("currency", ["", 7, "dollars"])
def test_payment_or_charge_whose_currency_cannot_be_read_confirms_nothing(currency: Any) -> None:
    charge = {"id": "ch_1", "amount_refunded": 5, "amount": 10, "currency": "usd"}
    unreadable = PaymentView(currency="", problem="the currency cannot be read")
    assert payment_in(charge | {"currency": currency}) == unreadable
    for inside in (
        {"latest_charge": charge | {"currency": currency}},
        {"charges": {"data": [{"currency": currency}] * 2}},
    ):
        assert payment_in(inside) == PaymentView(
            currency="", problem="payment and charge differ in currency"
        )


@pytest.mark.parametrize(
    "payment",
    [
        {"currency": "usd", "amount_refunded": 5, "latest_charge": {"currency": "eur"}},
        {"currency": "usd", "amount_refunded": 5, "charges": {"data": [{"currency": "eur"}]}},
        {
            "currency": "usd",
            "charges": {"data": [{"amount_refunded": 5}]},
            "latest_charge": {"currency": "eur"},
        },
        {"currency": "usd", "charges": {"data": [{"currency": "usd"}, {"currency": "eur"}]}},
        {
            "charges": {"data": [{"amount_refunded": 5, "currency": "usd"}]},
            "latest_charge": {"currency": "eur"},
        },
        {"charges": {"data": [{"currency": "usd"}, {"currency": "eur"}]}},
    ],
)
def test_payment_that_shows_two_currencies_anywhere_confirms_neither(
    payment: dict[str, Any],
) -> None:
    assert payment_in(payment) == PaymentView(
        currency="", problem="payment and charge differ in currency"
    )


def test_charge_that_is_no_object_contradicts_no_currency() -> None:
    assert payment_in({"currency": "usd", "charges": {"data": ["ch_1", "ch_2"]}}).currency == "usd"
    assert (
        payment_in({"currency": "usd", "charges": {"data": {"currency": "eur"}}}).currency == "usd"
    )


@pytest.mark.parametrize("whose", ["charges", "latest_charge", "named"])
def test_total_that_the_payment_leaves_empty_is_the_one_of_its_charge(whose: str) -> None:
    charge = {"id": "ch_1", "amount_refunded": 5, "amount_captured": 10}
    by_whose: dict[str, dict[str, Any]] = {
        "charges": {"charges": {"data": [charge]}},
        "latest_charge": {"latest_charge": charge},
        "named": {"charges": None, "latest_charge": "ch_1"},
    }
    shown = by_whose[whose]
    seen = payment_in({"id": "pi_1", "amount": 10, "amount_refunded": None, **shown})
    assert seen == payment_in({"id": "pi_1", "amount": 10, **shown})
    assert (seen.refunded, seen.charge) == ((None, "ch_1") if whose == "named" else (5, None))


def test_total_that_a_charge_leaves_empty_is_not_read() -> None:
    problem = "the charge shows no readable refunded total"
    assert payment_in({"id": "ch_1", "amount_refunded": None}).problem == problem
    assert payment_in({"latest_charge": {"amount_refunded": None}}).problem == problem


def test_total_beyond_what_can_be_counted_is_not_read() -> None:
    most = {"amount_refunded": MAX_AMOUNT, "amount": MAX_AMOUNT, "currency": "usd"}
    assert payment_in(most) == PaymentView(refunded=MAX_AMOUNT, captured=MAX_AMOUNT, currency="usd")
    assert payment_in(most | {"amount": MAX_AMOUNT + 1}).captured is None
    assert payment_in(most | {"amount_refunded": MAX_AMOUNT + 1}).refunded is None


def test_numbers_are_read_by_their_paths_for_a_probe_alone() -> None:
    value = {
        "a": {"b": [1, "2", {"c": 3.0}], "odd name": 4, "d": -1, "e": "x"},
        "live": True,
        "deep": deep(9),
    }
    expected = {"a.b[0]": 1, "a.b[1]": 2, "a.b[2].c": 3, "live": True, "deep.a.a.a.a": 1}
    shown, probed = read(value), read(value, numbers=True)
    assert shown is not None
    assert probed is not None
    assert shown.numbers == {}
    assert {
        path: number for path, number in probed.numbers.items() if not path.startswith("deep")
    } == {path: number for path, number in expected.items() if not path.startswith("deep")}
    assert probed.numbers["live"] is True
    assert not [path for path in probed.numbers if path.count(".") > 6]


def deep(levels: int) -> dict[str, Any]:
    return {"a": deep(levels - 1)} if levels else {"a": 1}


def test_numbers_are_bounded_in_their_count() -> None:
    probed = read({"a": [*range(5000)]}, numbers=True)
    assert probed is not None
    assert len(probed.numbers) == 2000


def nested(levels: int, wrap: Callable[[Any], Any], value: Any) -> Any:
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    ("wrap", "path"),
    [(lambda inner: {"a": inner}, ".a.a.a.a.a"), (lambda inner: [inner], "[0][0][0][0][0]")],
    ids=["objects", "lists"],
)
@pytest.mark.parametrize("levels", [5, 6, 7, 8])
def test_numbers_are_read_down_to_the_sixth_level(
    wrap: Callable[[Any], Any], path: str, levels: int
) -> None:
    probed = read({"x": nested(levels, wrap, 7)}, numbers=True)
    assert probed is not None
    assert probed.numbers == ({f"x{path}": 7} if levels == 5 else {})


def test_zero_is_a_number() -> None:
    probed = read({"fee": 0, "debt": -1}, numbers=True)
    assert probed is not None
    assert probed.numbers == {"fee": 0}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            {"latest_charge": {"amount_refunded": 0, "payment_intent": "pi_2"}, "id": PAYMENT},
            "the payment shows a charge of another payment",
        ),
        (
            {"amount_refunded": 5, "latest_charge": {"amount_refunded": 6}},
            "payment and charge differ in the refunded total",
        ),
        ({"amount_refunded": 0, "captured": False}, "the charge was not captured"),
        (
            {"amount_refunded": 9, "amount_captured": 5},
            "the charge's refunded total contradicts its other figures",
        ),
        ({"amount_refunded": "x"}, "the charge shows no readable refunded total"),
    ],
)
def test_payment_without_a_total_shows_its_currency(value: dict[str, Any], problem: str) -> None:
    assert payment_in(value | {"currency": "usd"}) == PaymentView(currency="usd", problem=problem)


@pytest.mark.parametrize("captured", [1, 2])
def test_flag_of_a_charge_says_whether_all_of_it_is_refunded(captured: int) -> None:
    charge = {"amount_refunded": captured, "amount_captured": captured}
    assert payment_in(charge | {"refunded": True}) == PaymentView(
        refunded=captured, captured=captured
    )
    assert payment_in(charge | {"refunded": False}).refunded is None


def texts(value: object) -> list[str]:
    """Every text in what was read, however deep."""
    if isinstance(value, str):
        return [value]
    if is_dataclass(value):
        return [text for field in fields(value) for text in texts(getattr(value, field.name))]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts(part)]
    return [text for each in value for text in texts(each)] if isinstance(value, tuple) else []


names = st.sampled_from(
    [
        *refund_payload(),
        "failure_reason",
        "error",
        "errors",
        "code",
        "type",
        "message",
        "data",
        "charges",
        "has_more",
    ]
)
objects = st.dictionaries(
    names, st.one_of(json_values, st.text(max_size=400), st.just("\x1b[2J" * 200)), max_size=6
)


@law
@given(
    value=st.dictionaries(
        names, st.one_of(json_values, objects, st.lists(objects, max_size=3)), max_size=8
    )
)
def test_whatever_is_read_is_bounded_printable_and_stable(value: dict[str, Any]) -> None:
    shown = read(value, ["secret of the caller"], numbers=True)
    assert shown is not None
    assert all(text.isprintable() and len(text) <= LONGEST_TEXT for text in texts(shown))
    if shown.refund is not None:
        assert shown.refund.amount is None or -1 <= shown.refund.amount <= MAX_AMOUNT
        assert shown.refund.currency in {None, ""} or len(str(shown.refund.currency)) == 3
    if shown.error is not None:
        assert shown.error != ProviderError()
        assert all(
            code is None or CODE.fullmatch(code) for code in (shown.error.kind, shown.error.code)
        )


def test_every_code_of_the_table_has_the_alphabet_of_codes() -> None:
    assert all(CODE.fullmatch(code) for code in CODES)
