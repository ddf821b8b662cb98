"""Made ids: they never change, further attempts, and their columns sent along as metadata."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.files import Files
from worker.errors import InputError
from worker.importer import ImportOptions, MadeId, SameRefund, made_id
from worker.model.request import MAX_METADATA_KEYS, RefundRequest

ORDERS = "Order No,pi,amount,currency\n1001,pi_1,500,usd\n1002,pi_2,700,usd\n"
BY_ORDER: dict[str, Any] = {"id_from": ("order no",)}


def same_refund(row: RefundRequest, recorded: RefundRequest) -> bool:
    return SameRefund()(row, recorded)


def plain(request: RefundRequest) -> RefundRequest:
    """The request of a version that did not send the columns of an id along."""
    return replace(request, metadata={})


def test_the_columns_that_make_an_id_are_sent_along_under_their_plain_names(files: Files) -> None:
    found = files.take(ORDERS, id_from=("order no", "payment_intent", "amount"))
    assert [dict(each.metadata) for each in found.requests] == [
        {"order_no": "1001"},
        {"order_no": "1002"},
    ]
    renamed = files.take(
        ORDERS.replace("Order No", "ORDER-NO"), id_from=("order no", "payment_intent", "amount")
    )
    assert renamed.requests == found.requests


def test_sent_along_metadata_does_not_change_the_id(files: Files) -> None:
    # These are the ids of the first version: a file imported then must find its refunds.
    assert files.take(
        "Order,pi,amount\n1001,pi_1,0500\n", id_from=("order", "payment_intent")
    ).ids == ["f-1b68f62b40c680c7812e0cdc5ab4f227"]


@pytest.mark.parametrize(
    ("header", "row", "id_from", "metadata"),
    [
        ("order,refund_generation", "1,2", ("order", "refund_generation"), {}),
        ("order,note", f"1,{'x' * 501}", ("order", "note"), {}),
        ("order,note", '1,"x\ny"', ("order", "note"), {}),
        (f"order,{'k' * 41}", "1,2", ("order", "k" * 41), {}),
        ("order,line [no]", "1,2", ("order", "line [no]"), {}),
        ("order,metadata.order", "1,2", ("order",), {"order": "2"}),
        ("order,metadata.order", "1,1", ("order",), {"order": "1"}),
        ("order,line", "1,2", ("order", "line"), {"order": "1", "line": "2"}),
    ],
)
def test_all_columns_of_an_id_are_sent_along_or_none_and_no_row_is_refused(
    header: str, row: str, id_from: tuple[str, ...], metadata: dict[str, str], files: Files
) -> None:
    taken = files.take(f"pi,amount,{header}\npi_1,5,{row}\n", id_from=id_from)
    assert taken.errors == []
    assert dict(taken.requests[0].metadata) == metadata


def test_a_row_with_the_most_metadata_keys_sends_nothing_along(files: Files) -> None:
    for own, sent in ((MAX_METADATA_KEYS - 1, True), (MAX_METADATA_KEYS, False)):
        keys = ",".join(f"metadata.k{number}" for number in range(own))
        taken = files.take(
            f"order,pi,amount,{keys}\n1,pi_1,5,{','.join('x' * own)}\n", id_from=("order",)
        )
        assert ("order" in taken.requests[0].metadata, taken.errors) == (sent, [])


def test_a_refund_without_sent_along_metadata_is_the_same_refund(files: Files) -> None:
    text = (
        "order,line,pi,amount,currency,reason,metadata.a,metadata.b\n1,2,pi_1,5,usd,duplicate,x,y\n"
    )
    for id_from in (
        ("order",),
        ("order", "line"),
        ("order", "payment_intent", "amount", "currency", "reason"),
        ("line", "metadata.a", "metadata.b"),
    ):
        (request,) = files.take(text, id_from=id_from, ignore_extra=True).requests
        before = replace(request, metadata={"a": "x", "b": "y"})
        assert request.metadata != before.metadata
        assert same_refund(request, before)
        assert same_refund(before, request)
        assert same_refund(request, request)


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 501},
        {"payment_intent": "pi_2"},
        {"currency": "eur"},
        {"reason": "duplicate"},
        {"metadata": {"order_no": "1002"}},
        {"metadata": {"order_no": "1001", "more": "x"}},
        {"metadata": {"more": "x"}},
    ],
)
def test_a_request_with_any_other_difference_is_another_refund(
    change: dict[str, Any], files: Files
) -> None:
    request = files.take(ORDERS, **BY_ORDER).requests[0]
    other = replace(request, **change)
    assert not same_refund(request, other)
    assert not same_refund(plain(request), other)
    assert not same_refund(other, plain(request))


def test_the_callers_own_id_never_counts_as_made() -> None:
    request = RefundRequest(refund_id="mine", payment_intent="pi_1", metadata={"order": "1"})
    assert not same_refund(request, plain(request))


def test_metadata_of_the_file_does_not_hide_what_was_sent_along(files: Files) -> None:
    text = "order,line,pi,amount,metadata.order\n1,2,pi_1,5,1\n"
    (request,) = files.take(text, id_from=("order", "line")).requests
    assert same_refund(request, replace(request, metadata={"order": "1"}))


def test_sent_along_metadata_is_found_among_much_metadata(files: Files) -> None:
    keys = ",".join(f"metadata.k{number}" for number in range(40))
    rows = "".join(f"{row},pi_{row},5,{','.join('x' * 40)}\n" for row in range(500))
    found = files.take(
        f"order,pi,amount,{keys}\n{rows}", id_from=("order", "pi", "metadata.k39")
    ).requests
    same = SameRefund()
    own = {f"k{number}": "x" for number in range(40)}
    assert all(same(request, replace(request, metadata=own)) for request in found)
    assert len(found) == 500


def test_the_search_for_the_columns_of_an_id_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.importer.ids._MOST_TRIES", 3_000)
    monkeypatch.setattr("worker.importer.ids._MOST_TRIES_A_ROW", 1_000)
    digests: list[object] = []

    def none(pairs: object) -> str:
        digests.append(pairs)
        return "f-"

    monkeypatch.setattr("worker.importer.ids.base_of", none)
    same, own = SameRefund(), {f"k{number}": "x" for number in range(30)}
    for _ in range(5):
        request = RefundRequest(refund_id="f-" + "0" * 32, payment_intent="pi_1", metadata=own)
        assert not same(request, replace(request, metadata={**own, "order": "1"}))
    assert len(digests) == 3_000


def test_a_further_attempt_has_new_ids_from_the_same_columns(files: Files) -> None:
    text = ORDERS + "1001,pi_1,500,usd\n"
    first = files.take(text, **BY_ORDER).ids
    second = files.take(text, **BY_ORDER, attempt=2).ids
    assert second == [f"{first[0]}-a2", f"{first[1]}-a2", f"{first[0]}-a2-2"]
    assert first[2] == f"{first[0]}-2"
    # The same again: a further attempt is as repeatable as a file.
    assert files.take(text, **BY_ORDER, attempt=2).ids == second


def test_a_result_can_be_imported_as_the_same_or_the_next_attempt(files: Files) -> None:
    second = files.take(ORDERS, **BY_ORDER, attempt=2)
    result = files.result(ORDERS, **BY_ORDER, attempt=2)
    assert files.take(result, **BY_ORDER).requests == second.requests
    assert files.take(result, **BY_ORDER, attempt=2).requests == second.requests
    third = files.take(result, **BY_ORDER, attempt=3).ids
    assert third == [refund_id.replace("-a2", "-a3") for refund_id in second.ids]
    first = files.result(ORDERS + "1001,pi_1,500,usd\n", **BY_ORDER)
    assert files.take(first, **BY_ORDER, attempt=2).ids == [*second.ids, f"{second.ids[0]}-2"]


def test_a_result_of_a_further_attempt_states_the_ids_of_that_attempt(files: Files) -> None:
    first = files.result(ORDERS, **BY_ORDER)
    second = files.result(first, **BY_ORDER, attempt=2)
    ids = files.take(first, **BY_ORDER, attempt=2).ids
    assert [line.split(",")[4] for line in second.splitlines()[1:]] == ids
    assert files.take(second, **BY_ORDER).ids == ids


@given(st.integers(1, 99), st.integers(1, 10**9 - 1))
def test_the_parts_of_a_made_id_are_read_back(attempt: int, occurrence: int) -> None:
    made = MadeId("f-" + "0a" * 16, attempt, occurrence)
    assert made_id(made.text) == made


@pytest.mark.parametrize(
    "refund_id", ["order-1", "f-" + "0" * 31, "f-" + "0" * 32 + "-a1", "f-" + "0" * 32 + "-1"]
)
def test_any_other_id_is_not_a_made_id(refund_id: str) -> None:
    assert made_id(refund_id) is None


@pytest.mark.parametrize(
    "options", [{"attempt": 2}, {"attempt": 0, **BY_ORDER}, {"attempt": 100, **BY_ORDER}]
)
def test_an_attempt_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ImportOptions(**options)
