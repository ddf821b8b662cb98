"""Query parameters and headers, without a server: what is read, and what is refused in them."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict, MultiDict

from worker.http import problems
from worker.http.problems import Problem
from worker.http.queries import Query, has_gone, refund_id_of


def codes(query: Query) -> list[tuple[str, str]]:
    return [(each.field, each.code) for each in query.wrong]


@pytest.mark.parametrize(
    ("sent", "seconds", "limit", "wrong"),
    [
        ({}, 0, 50, []),
        ({"wait": "60", "limit": "100"}, 60, 100, []),
        ({"wait": "0.5", "limit": "1"}, 0.5, 1, []),
        ({"wait": "60.1", "limit": "101"}, 0, 50, [("wait", "seconds"), ("limit", "number")]),
        ({"wait": "", "limit": "0"}, 0, 50, [("wait", "seconds"), ("limit", "number")]),
    ],
)
def test_a_wrong_number_is_noted_and_counts_as_absent(
    sent: dict[str, str], seconds: float, limit: int, wrong: list[tuple[str, str]]
) -> None:
    request = make_mocked_request("GET", "/v1/refunds")
    url = str(request.url.relative().with_query(sent))
    for given in (make_mocked_request("GET", url), MultiDict(sent)):
        query = Query(given, ("wait", "limit"))
        assert (query.seconds(), query.whole("limit", default=50, most=100)) == (seconds, limit)
        assert codes(query) == wrong


def test_a_parameter_is_given_once_unless_it_may_be_repeated() -> None:
    sent = MultiDict([("status", "failed"), ("status", "pending")])
    assert codes(Query(sent, ("status",))) == [("status", "given_twice")]
    assert codes(Query(sent, ("status",), ("other",))) == [("status", "given_twice")]
    assert codes(Query(sent, ("status",), ("status",))) == []


def keyed(*keys: str) -> Any:
    headers = CIMultiDict(("Idempotency-Key", key) for key in keys)
    return make_mocked_request("POST", "/v1/refunds", headers)


@pytest.mark.parametrize("keys", [["a", "a"], ["a", "b"], ["a", "a", "a"]])
@pytest.mark.parametrize("body", [None, "a"])
def test_a_key_that_is_given_twice_is_refused(keys: list[str], body: str | None) -> None:
    with pytest.raises(Problem) as refused:
        refund_id_of(keyed(*keys), body)
    assert refused.value.kind is problems.BAD_REQUEST
    assert refused.value.detail == "The header Idempotency-Key is given twice."


def test_the_id_is_that_of_the_body_or_else_of_the_key_and_is_text() -> None:
    assert refund_id_of(keyed("a")) == "a"
    assert refund_id_of(keyed("a"), "a") == "a"
    assert refund_id_of(keyed(), "a") == "a"
    assert refund_id_of(keyed(), 5) is None
    assert refund_id_of(keyed(), ["a"]) is None


def test_a_client_has_gone_if_its_connection_is_closed_or_closing() -> None:
    request = make_mocked_request("GET", "/v1/refunds/a")
    found = []
    for transport in (None, Mock(is_closing=lambda: True), Mock(is_closing=lambda: False)):
        request.protocol.transport = transport
        found.append(has_gone(request))
    assert found == [True, True, False]
