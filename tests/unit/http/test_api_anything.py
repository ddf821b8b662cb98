"""Whatever is sent, the API refuses it in one of its own ways, or reads it as it was meant."""

from __future__ import annotations

import json
from typing import Any

from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from tests.support.api_door import PAYMENT
from worker.errors import InvalidRequest
from worker.http.bodies import parsed
from worker.http.problems import KINDS, Problem, answer, of_error
from worker.http.queries import Query
from worker.http.refunds import FIELDS, RESOLVING, _decision_in, request_in

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def body(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=8), JSON, max_size=6)


HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


@given(st.binary(max_size=200))
def test_bytes_are_an_object_or_refused(sent: bytes) -> None:
    try:
        assert isinstance(parsed(sent), dict)
    except (Problem, InvalidRequest):
        return


@given(JSON)
def test_json_is_read_as_it_is(value: Any) -> None:
    sent = json.dumps(value).encode()
    try:
        found = parsed(sent)
    except (Problem, InvalidRequest):
        assert not isinstance(value, dict)
    else:
        assert json.dumps(found).encode() == sent


@given(body(FIELDS), st.none() | HEADER)
def test_a_request_is_accepted_only_with_what_it_states(
    fields: dict[str, Any], key: str | None
) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    request = make_mocked_request("POST", "/v1/refunds", headers=headers)
    for sent in (fields, {"refund_id": "order-1", "payment_intent": PAYMENT, **fields}):
        try:
            made = request_in(request, sent)
        except (Problem, InvalidRequest):
            continue
        assert made.payment_intent == sent["payment_intent"]
        assert made.amount == sent.get("amount")
        assert type(made.amount) in {int, type(None)}
        assert made.refund_id == sent.get("refund_id", (key or "").strip().strip('"'))
        assert set(sent) <= set(FIELDS)


@given(body(RESOLVING))
def test_a_decision_is_whole_or_refused(fields: dict[str, Any]) -> None:
    sent = {"decision": "resend", "note": "seen", "version": 1, **fields}
    try:
        decision = _decision_in(sent)
    except InvalidRequest as error:
        shown = answer(of_error(error), "id")
        assert shown.status == 422
        return
    assert decision["decision"] in {"succeeded", "failed", "resend"}
    assert type(decision["version"]) is int
    assert decision["version"] >= 1


@given(st.text(max_size=30))
def test_a_wait_is_a_number_from_0_to_60_or_refused(text: str) -> None:
    request = make_mocked_request("GET", "/v1/refunds/order-1")
    url = request.url.with_query({"wait": text})
    query = Query(make_mocked_request("GET", str(url.relative())), ("wait",))
    assert 0 <= query.seconds() <= 60
    try:
        query.check()
    except InvalidRequest:
        return
    assert float(text) == query.seconds()


def test_every_kind_of_problem_is_answered_as_described() -> None:
    for kind in KINDS.values():
        shown = answer(Problem(kind), "id")
        assert (shown.status, shown.content_type) == (kind.status, "application/problem+json")
        assert shown.body is not None
        body = json.loads(bytes(shown.body))  # type: ignore[arg-type]
        assert body["type"] == f"/problems/{kind.name}"
        assert body["detail"]
