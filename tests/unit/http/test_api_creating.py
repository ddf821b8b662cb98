"""Refunds that the HTTP API accepts, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.api_door import PAYMENT, Door

CREATE = "/v1/refunds"


def moves_of(api: Door, refund_id: str) -> list[str]:
    return [move["label"] for move in api.refunds.history(refund_id)]


async def test_a_refund_is_accepted_once_and_its_repeat_changes_nothing(api: Door) -> None:
    first = await api.create("order-1", metadata={"order": "1001"}, reason="duplicate")
    assert (first.status, first.headers["Location"]) == (202, "/v1/refunds/order-1")
    assert (first.headers["ETag"], first.headers["Retry-After"]) == ('"1"', "1")
    assert api.nudged == ["order-1"]
    again = await api.create("order-1", metadata={"order": "1001"}, reason="duplicate")
    assert (again.status, again.json) == (202, first.json)
    assert api.refunds.get("order-1").as_dict() == first.json
    assert moves_of(api, "order-1") == ["accepted"]
    assert api.nudged == ["order-1"]


async def test_other_contents_under_the_same_id_are_refused_and_change_nothing(api: Door) -> None:
    await api.create("order-1")
    before = api.refunds.get("order-1")
    got = await api.create("order-1", amount=501)
    assert (got.status, got.code) == (422, "idempotency_conflict")
    assert got.json["detail"].endswith("or see the existing one with GET /v1/refunds/order-1")
    assert api.refunds.get("order-1") == before


async def test_a_settled_refund_is_returned_with_200(api: Door) -> None:
    api.records.succeeded("order-1")
    got = await api.create("order-1")
    assert (got.status, got.json["status"]) == (200, "succeeded")
    assert "Retry-After" not in got.headers


async def test_an_id_that_is_null_is_refused_beside_a_key_too(api: Door) -> None:
    body = {"payment_intent": PAYMENT, "refund_id": None}
    got = await api.post(CREATE, body, Idempotency_Key="order-1")
    assert (got.status, got.fields) == (422, [("refund_id", "refund_id")])


@pytest.mark.parametrize("key", ["order-1", '"order-1"', ' "order-1" '])
async def test_the_idempotency_key_becomes_the_id(api: Door, key: str) -> None:
    got = await api.post(CREATE, {"payment_intent": PAYMENT}, Idempotency_Key=key)
    assert (got.status, got.json["refund_id"], got.json["amount"]) == (202, "order-1", None)
    same = {"refund_id": "order-1", "payment_intent": PAYMENT}
    assert (await api.post(CREATE, same, Idempotency_Key=key)).status == 202
    assert moves_of(api, "order-1") == ["accepted"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({}, {}),
        ({"refund_id": "order-1"}, {"Idempotency_Key": "order-2"}),
        ({"refund_id": 5}, {"Idempotency_Key": "5"}),
        ({}, {"Idempotency_Key": "order 1"}),
        ({}, {"Idempotency_Key": ""}),
        ({}, {"Idempotency_Key": '"'}),
        ({}, {"Idempotency_Key": ".."}),
        ({}, {"Idempotency_Key": "x" * 201}),
    ],
)
async def test_without_one_usable_id_the_request_is_400(
    api: Door, body: dict[str, Any], headers: dict[str, str]
) -> None:
    got = await api.post(CREATE, {"payment_intent": PAYMENT, **body}, **headers)
    assert (got.status, got.code) == (400, "bad_request")
    assert api.nudged == []


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"amount": 5.0}, [("amount", "amount")]),
        ({"amount": True}, [("amount", "amount")]),
        ({"amount": "5"}, [("amount", "amount")]),
        ({"amount": 0}, [("amount", "amount")]),
        ({"amount": None}, [("amount", "amount")]),
        ({"amount": 10**13}, [("amount", "amount")]),
        ({"currency": "dollar"}, [("currency", "currency")]),
        ({"reason": ["duplicate"]}, [("reason", "reason")]),
        ({"metadata": []}, [("metadata", "metadata_type")]),
        ({"metadata": {"order": 5}}, [("metadata.order", "metadata_value")]),
        ({"metadata": {"refund_id": "x"}}, [("metadata", "metadata_reserved")]),
        ({"payment_intent": "pi 1"}, [("payment_intent", "payment_intent")]),
        ({"refund_id": "order 1"}, [("refund_id", "refund_id")]),
        ({"refund_id": 7}, [("refund_id", "refund_id")]),
        ({"refund_id": "."}, [("refund_id", "refund_id")]),
        ({"ammount": 5, "amount": -1}, [("ammount", "unknown_field"), ("amount", "amount")]),
    ],
)
async def test_every_wrong_field_is_named(
    api: Door, fields: dict[str, Any], wrong: list[tuple[str, str]]
) -> None:
    got = await api.create("order-1", **fields)
    assert (got.status, got.code, got.fields) == (422, "invalid_request", wrong)
    assert api.nudged == []


@pytest.mark.parametrize(
    ("data", "status", "wrong"),
    [
        ('{"refund_id":"o"}', 422, [("payment_intent", "payment_intent")]),
        ('{"refund_id":"o","payment_intent":"pi","amount":NaN}', 422, [("amount", "amount")]),
        ('{"refund_id":"o","refund_id":"p"}', 422, [("refund_id", "given_twice")]),
        (
            '{"refund_id":"o","payment_intent":"pi","metadata":{"a":"1","a":"2"}}',
            422,
            [("a", "given_twice")],
        ),
        ("[]", 422, [("body", "type")]),
        ("null", 422, [("body", "type")]),
        ("", 400, None),
        ("{", 400, None),
        ("[" * 60_000, 400, None),
        ('{"amount":' + "9" * 5000 + "}", 400, None),
        (b'{"refund_id":"\xff"}', 400, None),
        ("{}".encode("utf-16"), 400, None),
        ("\ufeff{}".encode(), 400, None),
    ],
)
async def test_a_body_that_is_not_plain_json_is_refused(
    api: Door, data: Any, status: int, wrong: list[tuple[str, str]] | None
) -> None:
    got = await api.post(CREATE, data=data)
    assert got.status == status
    assert wrong is None or got.fields == wrong
    assert api.nudged == []


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "The body is not JSON: it is wrong at character 1."),
        (b'{"amount": 5,}', "The body is not JSON: it is wrong at character 14."),
        (b'{"a":"\xff"}', "The body is not UTF-8: it is wrong at byte 7."),
        (b"[" * 60_000, "The body has a number of too many digits, or is nested too deeply."),
    ],
)
async def test_a_body_that_cannot_be_read_says_where(api: Door, data: bytes, detail: str) -> None:
    assert (await api.post(CREATE, data=data)).json["detail"] == detail


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "multipart/form-data; boundary=x"},
        {"Content_Type": "application/json; charset=latin-1"},
        {"Content_Encoding": "gzip"},
    ],
)
async def test_only_plain_json_is_read(api: Door, headers: dict[str, str]) -> None:
    got = await api.post(CREATE, data=b'{"refund_id":"o","payment_intent":"pi"}', **headers)
    assert (got.status, got.code) == (415, "unsupported_media_type")


async def test_a_body_is_read_up_to_64_kib(api: Door) -> None:
    body = json.dumps({"refund_id": "order-1", "payment_intent": PAYMENT})
    assert (await api.post(CREATE, data=body + " " * (65536 - len(body)))).status == 202
    got = await api.post(CREATE, data=body + " " * (65537 - len(body)))
    assert (got.status, got.code) == (413, "too_large")


@pytest.mark.parametrize("query", ["wait=61", "wiat=1"])
async def test_nothing_is_accepted_with_a_wrong_parameter(api: Door, query: str) -> None:
    body = {"refund_id": "order-1", "payment_intent": PAYMENT}
    got = await api.post(f"{CREATE}?{query}", body)
    assert (got.status, got.code, len(got.json["errors"])) == (422, "invalid_request", 1)
    assert (await api.get("/v1/refunds/order-1")).code == "not_found"
