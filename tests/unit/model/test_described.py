"""Every request for a refund is one that the provider's own description of the endpoint allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.described import broken_by_reply, broken_by_request
from worker.model.request import MAX_AMOUNT, REASONS, RESERVED_METADATA, RefundRequest, request_body

HEADERS = {
    "accept": "application/json",
    "content-type": "application/json",
    "authorization": "Basic eDo=",
}
GOOD = {
    "payment_intent": "pi_1",
    "amount": "500",
    "reason": "duplicate",
    "metadata": {"order": "1"},
}

texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)
requests = st.builds(
    RefundRequest,
    refund_id=st.from_regex(r"[A-Za-z0-9._:-]{1,200}", fullmatch=True),
    payment_intent=st.from_regex(r"[A-Za-z0-9_-]{1,200}", fullmatch=True),
    amount=st.none() | st.integers(1, MAX_AMOUNT),
    currency=st.sampled_from([None, "usd"]),
    reason=st.sampled_from([None, *REASONS]),
    metadata=st.dictionaries(
        texts.filter(lambda name: name not in RESERVED_METADATA), texts, max_size=5
    ),
)


@settings(deadline=None, max_examples=200)
@given(requests)
def test_whatever_is_asked_for_leaves_as_the_endpoint_describes_it(request: RefundRequest) -> None:
    assert broken_by_request(HEADERS, request_body(request, 1)) == []


@pytest.mark.parametrize(
    "wrong", [{"amount": 500}, {"reason": "other"}, {"reason": None}, {"metadata": None}]
)
def test_body_that_is_described_otherwise_is_noticed(wrong: dict[str, Any]) -> None:
    assert broken_by_request(HEADERS, json.dumps(GOOD).encode()) == []
    assert len(broken_by_request(HEADERS, json.dumps(GOOD | wrong).encode())) >= 1


@pytest.mark.parametrize("name", HEADERS)
def test_header_that_is_missing_is_noticed(name: str) -> None:
    headers = {each: HEADERS[each] for each in HEADERS if each != name}
    (told,) = broken_by_request(headers, json.dumps(GOOD).encode())
    assert told.startswith(name)


@pytest.mark.parametrize(
    "wrong", [{"description": None}, {"amount": "500"}, {"failure_reason": "odd"}]
)
def test_reply_that_is_described_otherwise_is_noticed(wrong: dict[str, Any]) -> None:
    shape = {
        "object": "refund",
        "id": "re_1",
        "amount": 500,
        "status": "failed",
        "failure_reason": "unknown",
    }
    assert broken_by_reply(shape) == broken_by_reply({"object": "list", "data": [shape]}) == []
    assert broken_by_reply(shape | wrong) != []
    assert broken_by_reply({"object": "list", "data": [shape, shape | wrong]}) != []
