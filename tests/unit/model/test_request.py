"""What a request may hold, the bytes it becomes, and the texts that are kept of others."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import PAYMENT, a_request
from worker.errors import FieldError, InvalidRequest
from worker.model.request import (
    MAX_AMOUNT,
    idempotency_key,
    is_provider_id,
    request_body,
    scrubbed,
    shown,
)

law = settings(deadline=None, max_examples=100)


def rejected(**fields: Any) -> tuple[FieldError, ...]:
    with pytest.raises(InvalidRequest) as caught:
        a_request(**fields)
    return caught.value.errors


BAD_AMOUNTS = [
    pytest.param(0, id="zero"),
    pytest.param(-1, id="negative"),
    pytest.param(1.5, id="fractional"),
    pytest.param(500.0, id="float that is whole"),
    pytest.param(True, id="bool"),
    pytest.param("500", id="text"),
    pytest.param("1e3", id="scientific"),
    pytest.param("\u0665\u0660\u0660", id="unicode digits"),
    pytest.param(MAX_AMOUNT + 1, id="over the limit"),
]


@pytest.mark.parametrize("amount", BAD_AMOUNTS)
def test_amount_that_is_not_a_whole_positive_number_within_the_limit_is_refused(
    amount: Any,
) -> None:
    (error,) = rejected(amount=amount)
    assert (error.field, error.code, error.value) == ("amount", "amount", repr(amount))
    assert error.rule == "must be a whole number of minor units from 1 to 1000000000000"


@pytest.mark.parametrize("amount", [1, MAX_AMOUNT, None])
def test_amount_within_its_limits_or_left_out_is_accepted(amount: int | None) -> None:
    assert a_request(amount=amount).amount == amount


def test_amount_too_long_to_be_written_down_is_refused_without_being_shown() -> None:
    (error,) = rejected(amount=10**5000)
    assert (error.code, error.value) == ("amount", "<int>")


BAD_REFUND_IDS = [
    pytest.param("", id="empty"),
    pytest.param("a b", id="space"),
    pytest.param(" a", id="leading space"),
    pytest.param("a/b", id="slash"),
    pytest.param("a\\b", id="backslash"),
    pytest.param("a\n", id="trailing line end"),
    pytest.param("a\x00", id="NUL"),
    pytest.param("x" * 201, id="201 characters"),
    pytest.param("réf", id="accent"),
    pytest.param("\uff11", id="wide digit"),
    pytest.param("\ud800", id="lone surrogate"),
    pytest.param(b"a", id="bytes"),
    pytest.param(7, id="number"),
    pytest.param(None, id="nothing"),
]


@pytest.mark.parametrize("refund_id", BAD_REFUND_IDS)
def test_refund_id_outside_its_alphabet_or_length_is_refused(refund_id: Any) -> None:
    (error,) = rejected(refund_id=refund_id)
    assert (error.field, error.code, error.value) == ("refund_id", "refund_id", shown(refund_id))
    assert error.rule == "must be 1 to 200 of A-Z a-z 0-9 . _ : -"


@pytest.mark.parametrize("refund_id", ["a", "x" * 200, "A-z.0_9:-"])
def test_refund_id_of_its_whole_alphabet_is_accepted(refund_id: str) -> None:
    assert a_request(refund_id).refund_id == refund_id


PATH_CHANGERS = [
    "",
    "pi/../re",
    "..",
    "pi%2F1",
    "pi?x=1",
    "pi#x",
    "pi 1",
    "pi.1",
    "pi\r\n",
    "pi\u2215",
    "p" * 201,
    3,
    None,
]


@pytest.mark.parametrize("payment_intent", PATH_CHANGERS)
def test_payment_intent_that_could_alter_a_url_path_is_refused(payment_intent: Any) -> None:
    (error,) = rejected(payment_intent=payment_intent)
    assert (error.field, error.code, error.value) == (
        "payment_intent",
        "payment_intent",
        shown(payment_intent),
    )
    assert error.rule == "must be the provider's id, 1 to 200 of A-Z a-z 0-9 _ -"
    assert not is_provider_id(payment_intent)


@pytest.mark.parametrize("reason", ["", "Duplicate", "expired_uncaptured_charge", "because", 1])
def test_reason_the_endpoint_does_not_know_is_refused(reason: Any) -> None:
    (error,) = rejected(reason=reason)
    assert (error.field, error.code, error.value) == ("reason", "reason", repr(reason))
    assert (
        error.rule
        == "must be one of duplicate, fraudulent, requested_by_customer, resolved_dispute"
    )


@pytest.mark.parametrize("currency", ["", "us", "usdt", "u$d", "123", "\uff35\uff33\uff24", 840])
def test_currency_that_is_no_three_letter_code_is_refused(currency: Any) -> None:
    (error,) = rejected(currency=currency)
    assert (error.field, error.code) == ("currency", "currency")


def test_a_wrong_currency_is_shown_as_it_was_written() -> None:
    (error,) = rejected(currency="US Dollar")
    assert error.value == "'US Dollar'"


def test_currency_is_kept_in_lower_case_and_never_sent() -> None:
    request = a_request(currency="USD")
    assert request.currency == "usd"
    assert b"usd" not in request_body(request, 1)


BAD_METADATA = [
    pytest.param(
        {f"k{n}": "v" for n in range(49)},
        "metadata",
        "metadata_keys",
        "49 keys",
        "48 keys",
        id="49 keys",
    ),
    pytest.param(
        {"refund_id": "x"},
        "metadata",
        "metadata_reserved",
        "'refund_id'",
        "reserved",
        id="reserved id",
    ),
    pytest.param(
        {"refund_generation": "2"},
        "metadata",
        "metadata_reserved",
        "'refund_generation'",
        "reserved",
        id="reserved generation",
    ),
    pytest.param(
        {"k" * 41: "v"}, "metadata", "metadata_key", repr("k" * 41), "40 characters", id="key of 41"
    ),
    pytest.param(
        {"": "v"}, "metadata", "metadata_key", "''", "at least one character", id="empty key"
    ),
    pytest.param(
        {7: "v"}, "metadata", "metadata_key", "7", "must be text", id="key that is no text"
    ),
    pytest.param(
        {"a\tb": "v"},
        "metadata",
        "metadata_key",
        r"'a\tb'",
        "control characters",
        id="control in a key",
    ),
    pytest.param(
        {"a\ud800": "v"},
        "metadata",
        "metadata_key",
        r"'a\ud800'",
        "broken Unicode",
        id="surrogate in a key",
    ),
    pytest.param(
        {"note": "v" * 501},
        "metadata.note",
        "metadata_value",
        "'" + "v" * 58 + "…",
        "500 characters",
        id="value of 501",
    ),
    pytest.param(
        {"note": "a\x00b"},
        "metadata.note",
        "metadata_value",
        r"'a\x00b'",
        "control characters",
        id="NUL in a value",
    ),
    pytest.param(
        {"note": "a\x85"},
        "metadata.note",
        "metadata_value",
        r"'a\x85'",
        "control characters",
        id="C1 in a value",
    ),
    pytest.param(
        {"note": "\udfff"},
        "metadata.note",
        "metadata_value",
        r"'\udfff'",
        "broken Unicode",
        id="surrogate in a value",
    ),
    pytest.param(
        {"note": 5},
        "metadata.note",
        "metadata_value",
        "5",
        "must be text",
        id="value that is a number",
    ),
    pytest.param(
        {"note": None},
        "metadata.note",
        "metadata_value",
        "None",
        "must be text",
        id="value that is null",
    ),
    pytest.param(
        [("a", "b")], "metadata", "metadata_type", "[('a', 'b')]", "must be a mapping", id="pairs"
    ),
    pytest.param((), "metadata", "metadata_type", "()", "must be a mapping", id="empty tuple"),
    pytest.param("", "metadata", "metadata_type", "''", "must be a mapping", id="empty text"),
    pytest.param(None, "metadata", "metadata_type", "None", "must be a mapping", id="null"),
]


@pytest.mark.parametrize(("metadata", "field", "code", "value", "rule"), BAD_METADATA)
def test_metadata_that_breaks_a_rule_is_refused_with_field_value_and_rule(
    metadata: Any, field: str, code: str, value: str, rule: str
) -> None:
    (error,) = rejected(metadata=metadata)
    assert (error.field, error.code, error.value) == (field, code, value)
    assert rule in error.rule


def test_refusal_of_a_value_is_printable_whatever_its_key_holds() -> None:
    with pytest.raises(InvalidRequest) as caught:
        a_request(metadata={"a\x1b[31m\ud800": 5})
    assert str(caught.value).isprintable()
    assert {error.code for error in caught.value.errors} == {"metadata_key", "metadata_value"}


def test_metadata_at_its_limits_is_accepted() -> None:
    metadata = {f"{n:02}".ljust(40, "k"): "é" * 500 for n in range(48)}
    assert a_request(metadata=metadata).metadata == metadata


def test_every_broken_rule_is_named_at_once() -> None:
    errors = rejected(
        refund_id="a b",
        payment_intent="../x",
        amount=0,
        reason="x",
        currency="x",
        metadata={"k": 1},
    )
    assert [error.field for error in errors] == [
        "refund_id",
        "payment_intent",
        "amount",
        "currency",
        "reason",
        "metadata.k",
    ]


def test_refused_request_reads_as_field_value_and_rule_in_one_sentence() -> None:
    with pytest.raises(
        InvalidRequest, match=r"^amount 0: must be a whole number .*; reason 'x': must be one of "
    ):
        a_request(amount=0, reason="x")


def test_shown_value_is_short_and_printable() -> None:
    text = shown("\x1b[31m\ud800" + "x" * 1000)
    assert len(text) == 60
    assert text.isprintable()


def test_metadata_is_copied_and_cannot_be_changed_afterwards() -> None:
    given_metadata = {"order": "1001"}
    request = a_request(metadata=given_metadata)
    given_metadata["order"] = "other"
    assert request.metadata == {"order": "1001"}
    with pytest.raises(TypeError):
        request.metadata["order"] = "other"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.amount = 1  # type: ignore[misc]


def test_body_is_byte_for_byte_what_the_endpoint_wants() -> None:
    request = a_request(reason="duplicate", currency="usd", metadata={"b": "é", "a": 'quote"'})
    assert (
        request_body(request, 1)
        == b'{"payment_intent":"pi_1787730829493927936","amount":"500","reason":"duplicate",'
        b'"metadata":{"a":"quote\\"","b":"\\u00e9","refund_id":"order-1001-1","refund_generation":"1"}}'
    )


def test_body_without_an_amount_leaves_it_out() -> None:
    body = json.loads(request_body(a_request(amount=None), 2))
    assert body == {
        "payment_intent": PAYMENT,
        "metadata": {"refund_id": "order-1001-1", "refund_generation": "2"},
    }


METADATA = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40).filter(
        lambda key: key not in {"refund_id", "refund_generation"}
    ),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=500),
    max_size=48,
)


@law
@given(metadata=METADATA, data=st.data())
def test_order_of_metadata_changes_neither_body_nor_fingerprint(
    metadata: dict[str, str], data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(list(metadata.items()))))
    one, other = a_request(metadata=metadata), a_request(metadata=shuffled)
    assert request_body(one, 1) == request_body(other, 1)
    assert one.fingerprint == other.fingerprint


@law
@given(metadata=METADATA, amount=st.one_of(st.none(), st.integers(1, MAX_AMOUNT)))
def test_body_is_ascii_json_that_carries_text_only(
    metadata: dict[str, str], amount: int | None
) -> None:
    body = json.loads(request_body(a_request(metadata=metadata, amount=amount), 1).decode("ascii"))
    assert body.pop("amount", None) == (None if amount is None else str(amount))
    assert body.pop("payment_intent") == PAYMENT
    assert body == {"metadata": metadata | {"refund_id": "order-1001-1", "refund_generation": "1"}}


@pytest.mark.parametrize(
    "change",
    [
        {"payment_intent": "pi_2"},
        {"amount": 501},
        {"amount": None},
        {"currency": "usd"},
        {"reason": "duplicate"},
        {"metadata": {"a": "b"}},
    ],
)
def test_fingerprint_changes_with_every_field_but_the_id(change: dict[str, Any]) -> None:
    assert a_request(**change).fingerprint != a_request().fingerprint
    assert a_request("another-id", **change).fingerprint == a_request(**change).fingerprint


def test_fingerprint_tells_metadata_apart_that_joins_to_the_same_text() -> None:
    assert (
        a_request(metadata={"a": "b,c"}).fingerprint != a_request(metadata={"a,b": "c"}).fingerprint
    )


def test_idempotency_key_depends_on_id_and_generation_alone_and_fits_a_header() -> None:
    keys = {
        idempotency_key(refund_id, number)
        for refund_id in ("a", "b", "a1")
        for number in (1, 2, 11)
    }
    assert len(keys) == 9
    assert idempotency_key("a", 1) == idempotency_key("a", 1)
    assert all(key.isascii() and key.isprintable() and len(key) <= 64 for key in keys)


def test_body_and_key_of_a_known_refund_never_change_between_versions() -> None:
    assert idempotency_key("order-1001-1", 1) == "refund-111c08727f2ce03e81cb185e24f5d84dffb8538a"
    assert a_request().fingerprint == "dd000778a306c67eaed2745d66850892"


def test_pickled_request_comes_back_equal_with_its_metadata() -> None:
    request = a_request(metadata={"order": "1001"})
    copy = pickle.loads(pickle.dumps(request))
    assert copy == request
    assert copy.metadata == {"order": "1001"}


@law
@given(text=st.text(max_size=2000))
def test_foreign_text_becomes_one_short_printable_line(text: str) -> None:
    line = scrubbed(text)
    assert len(line) <= 300
    assert not line or line.isprintable()
    assert scrubbed(line) == line.strip() or len(line) == 300


@pytest.mark.parametrize(
    "secret",
    [
        "sk_test_abcDEF123",
        "sk_live_abc",
        "rk_live_abc-def.ghi",
        "sk_test_ab***yz",
        "Basic c2tfdGVzdF94Og==",
    ],
)
def test_foreign_text_is_kept_without_secret_keys(secret: str) -> None:
    line = scrubbed(f"Invalid API key {secret} provided\nsee the manual")
    assert line == "Invalid API key *** provided see the manual"
