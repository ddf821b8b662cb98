from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from tests.unit.sandbox.asking import asking, post_headers
from worker.sandbox import schema
from worker.sandbox.__main__ import main

GOOD: dict[str, Any] = {
    "payment_intent": "pi_1",
    "amount": "500",
    "reason": "duplicate",
    "metadata": {"order": "1"},
}


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        {"payment_intent": "pi_1"},
        {"payment_intent": "pi_1", "metadata": {f"k{number}": "" for number in range(50)}},
        {"payment_intent": "pi_1", "metadata": {"k" * 40: "v" * 500}},
    ],
)
def test_a_request_as_the_endpoint_wants_it_breaks_nothing(body: dict[str, Any]) -> None:
    assert (
        schema.validate_request(
            {"accept": "*/*", "content-type": "application/json"}, json.dumps(body).encode()
        )
        == []
    )


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"payment_intent": None}, "body.payment_intent: is not of type string"),
        ({"payment_intent": ""}, "body.payment_intent: is shorter than 1"),
        ({"amount": 500}, "body.amount: is not of type string"),
        ({"amount": "0"}, "body.amount: does not match"),
        ({"amount": "-5"}, "body.amount: does not match"),
        ({"amount": "1e3"}, "body.amount: does not match"),
        ({"amount": "5.0"}, "body.amount: does not match"),
        ({"amount": "5\n"}, "body.amount: does not match"),
        ({"amount": "\u0665"}, "body.amount: does not match"),
        ({"reason": "expired_uncaptured_charge"}, "body.reason: is not one of duplicate"),
        ({"metadata": []}, "body.metadata: is not of type object"),
        ({"metadata": {"order": 1}}, "body.metadata.order: is not of type string"),
        ({"metadata": {"k" * 41: "v"}}, f"name of body.metadata.{'k' * 41}: is longer than 40"),
        ({"metadata": {"k": "v" * 501}}, "body.metadata.k: is longer than 500"),
        (
            {"metadata": {f"k{number}": "" for number in range(51)}},
            "body.metadata: has more than 50 fields",
        ),
        ({"currency": "usd"}, "body.currency: is not a known field"),
    ],
)
def test_each_rule_of_the_body_is_held_and_the_sandbox_refuses_what_breaks_it(
    change: dict[str, Any], broken: str
) -> None:
    body = json.dumps(GOOD | change).encode()
    (told,) = schema.validate_request({"accept": "*/*", "content-type": "application/json"}, body)
    assert told.startswith(broken)
    with asking() as provider:
        seen = provider.ask("POST", "/v1/refunds", headers=post_headers(), body=body)
        assert (seen.status, seen.json["error"]["message"]) == (400, told)
        assert provider.sandbox.ledger() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"pi_1"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with asking() as provider:
        assert provider.ask("POST", "/v1/refunds", headers=post_headers(), body=body).status == 400
        assert provider.sandbox.ledger() == []


@pytest.mark.parametrize(
    ("headers", "broken"),
    [
        ({"content-type": "application/json"}, "header.accept: is missing"),
        ({"accept": "application/json"}, "header.content-type: is missing"),
        (
            {"accept": "text/html", "content-type": "application/json"},
            "header.accept: does not match",
        ),
        ({"accept": "*/*", "content-type": "text/json"}, "header.content-type: does not match"),
    ],
)
def test_the_headers_that_the_endpoint_requires_are_held(
    headers: dict[str, str], broken: str
) -> None:
    (told,) = schema.validate_request(headers, json.dumps(GOOD).encode())
    assert told.startswith(broken)


def test_a_missing_payment_is_named() -> None:
    told = schema.validate_request({"accept": "*/*", "content-type": "application/json"}, b"{}")
    assert told == ["body.payment_intent: is missing"]


@pytest.mark.parametrize(
    ("shape", "broken"),
    [
        ({"amount": "500"}, "body.amount: is not of type integer"),
        ({"amount": True}, "body.amount: is not of type integer"),
        ({"status": "done"}, "body.status: is not one of pending"),
        ({"currency": "USD"}, "body.currency: does not match"),
        ({"reason": 5}, "body.reason: is not of type string"),
        ({"reason": None}, "body.reason: is not of type string"),
    ],
)
def test_each_rule_of_the_reply_is_held(shape: dict[str, Any], broken: str) -> None:
    (told,) = schema.validate_response(shape)
    assert told.startswith(broken)


def test_every_keyword_of_the_file_has_a_sentence() -> None:
    def keywords(part: dict[str, Any]) -> set[str]:
        inner = [*part.get("properties", {}).values()]
        inner += [
            part[name]
            for name in ("additionalProperties", "propertyNames")
            if isinstance(part.get(name), dict)
        ]
        return {*part}.union(*map(keywords, inner))

    for validator in schema.validators().values():
        held = keywords(dict(validator.schema)) - {"description", "properties", "propertyNames"}
        assert held <= {*schema._RULES, "required", "additionalProperties"}


def test_sandbox_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    schema.validators.cache_clear()
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    ended = CliRunner().invoke(main, ["--port", "0"])
    assert ended.exit_code == 2
    assert "needs the extra demo: run pip install 'refund-worker[demo]'" in ended.output
