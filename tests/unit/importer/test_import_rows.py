"""From a row to a request: column aliases, ids made from columns, and an error for every broken
rule.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.support.files import HEADER, Files
from worker.errors import InputError
from worker.importer import ALIASES, RowError, open_source, read_rows, requests_of
from worker.importer.options import ImportOptions
from worker.model.request import RefundRequest

ID_FROM = ("order", "payment_intent")


def derived(*pairs: tuple[str, str]) -> str:
    text = json.dumps(sorted(pairs), separators=(",", ":"))
    return "f-" + hashlib.sha256(text.encode()).hexdigest()[:32]


@pytest.mark.parametrize(
    "header",
    [
        "refund_id,payment_intent,amount,currency,reason,metadata.Order No",
        "id,pi,amount_minor,currency_code,refund_reason,metadata.Order No",
        "Refund,Payment,Amount,Currency,Reason, Metadata.Order No ",
        "Refund ID,Payment Intent,AMOUNT,currency code,Refund-Reason,METADATA.Order No",
        "refund-id,payment-intent-id,Amount Minor,CURRENCY,reason,metadata.Order No",
    ],
)
def test_columns_are_known_by_their_aliases_whatever_the_case(header: str, files: Files) -> None:
    taken = files.take(f"{header}\na,pi_1,500,USD,duplicate,7\n")
    assert taken.requests == [
        RefundRequest(
            refund_id="a",
            payment_intent="pi_1",
            amount=500,
            currency="usd",
            reason="duplicate",
            metadata={"Order No": "7"},
        )
    ]


def test_every_alias_that_the_documentation_names_is_known(files: Files) -> None:
    for alias, field in ALIASES.items():
        if field == "metadata":
            continue
        values = {
            "refund_id": "a",
            "payment_intent": "pi_1",
            "amount": "5",
            "currency": "usd",
            "reason": "duplicate",
        }
        names = [alias if name == field else name for name in values]
        assert files.take(f"{','.join(names)}\n{','.join(values.values())}\n").ids == ["a"]


def test_columns_can_be_in_any_order_and_blank_cells_are_absent(files: Files) -> None:
    taken = files.take("metadata.b,reason,pi,metadata.a,amount,id\n,,pi_1,x,,r-1\n")
    assert taken.requests == [
        RefundRequest(refund_id="r-1", payment_intent="pi_1", metadata={"a": "x"})
    ]


def test_every_broken_rule_is_reported_under_the_files_own_header(files: Files) -> None:
    text = (
        "ID,pi,amount_minor,currency,reason,metadata.refund_id\na"
        " b,p/1,1e3,dollar,because,x\n,,5,,,\n"
    )
    taken = files.take(text)
    assert [(error.line, error.column, error.code, error.value) for error in taken.errors] == [
        (2, "amount_minor", "amount_exponent", "'1e3'"),
        (2, "ID", "refund_id", "'a b'"),
        (2, "pi", "payment_intent", "'p/1'"),
        (2, "currency", "currency", "'dollar'"),
        (2, "reason", "reason", "'because'"),
        (2, "metadata.refund_id", "metadata_reserved", "'refund_id'"),
        (3, "ID", "refund_id", "''"),
        (3, "pi", "payment_intent", "''"),
    ]
    assert all(error.rule for error in taken.errors)
    assert (taken.summary.refused, taken.summary.errors, taken.requests) == (2, 8, [])


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("metadata.order", "x" * 501, "metadata_value"),
        ("metadata.order", "a\x07b", "metadata_value"),
        ("metadata." + "k" * 41, "x", "metadata_key"),
        ("metadata.", "x", "metadata_key"),
    ],
)
def test_metadata_beyond_the_providers_limits_is_refused(
    column: str, value: str, code: str, files: Files
) -> None:
    assert files.take(f"id,pi,{column}\na,pi_1,{value}\n").codes == [code]


def test_a_row_with_more_than_48_keys_is_refused(files: Files) -> None:
    keys = ",".join(f"metadata.k{number}" for number in range(49))
    text = f"id,pi,{keys}\na,pi_1,{','.join('x' * 49)}\nb,pi_1,{','.join('x' * 48)},\n"
    taken = files.take(text)
    assert (taken.codes, taken.ids) == (["metadata_keys"], ["b"])


def test_a_long_value_is_shortened_in_its_error(files: Files) -> None:
    (error,) = files.take(f"id,pi\na,{'p' * 5000}\n").errors
    assert len(error.value) <= 60


def test_the_columns_of_a_result_file_are_skipped(files: Files) -> None:
    text = (
        "id,pi,status,stage,provider_refund_id,error_code,error_message,attempts,updated_at\n"
        "a,pi_1,failed,settled,re_1,card,'=no,3,now\n"
    )
    assert files.take(text).requests == [RefundRequest(refund_id="a", payment_intent="pi_1")]


def test_an_id_is_the_documented_digest_of_its_columns(files: Files) -> None:
    taken = files.take("Order,pi,amount\n1001,pi_1,0500\n", id_from=ID_FROM)
    assert taken.ids == [derived(("order", "1001"), ("payment_intent", "pi_1"))]
    # This must never change: a file imported earlier would count as a new one.
    assert taken.ids == ["f-1b68f62b40c680c7812e0cdc5ab4f227"]


def test_an_id_does_not_depend_on_column_order_names_or_amount_format(files: Files) -> None:
    ways: list[tuple[str, dict[str, Any]]] = [
        ("order,pi,amount,currency\n1001,pi_1,150,usd\n", {"id_from": ("order", "pi", "amount")}),
        (
            "amount,Order,currency,payment\n0150,1001,USD,pi_1\n",
            {"id_from": ("Amount", "payment", "ORDER")},
        ),
        (
            "order,currency,pi,amount\n1001,usd,pi_1,1.50\n",
            {"id_from": ("amount", "order", "payment_intent"), "amount_unit": "major"},
        ),
    ]
    found = {tuple(files.take(text, **options).ids) for text, options in ways}
    assert len(found) == 1


def test_an_id_can_be_made_from_metadata_and_from_json_objects(files: Files) -> None:
    options: dict[str, Any] = {"id_from": ("metadata.order", "line")}
    one = files.take("metadata.order,line,pi\n7,2,pi_1\n", **options)
    line = {"pi": "pi_1", "line": 2, "metadata": {"order": "7"}}
    other = files.take(json.dumps(line) + "\n", "refunds.jsonl", **options)
    assert one.requests == other.requests
    assert one.ids == [derived(("line", "2"), ("metadata.order", "7"))]


def test_a_blank_cell_cannot_make_an_id(files: Files) -> None:
    taken = files.take("order,pi,amount\n,pi_1,5\n7,pi_1,\n", id_from=("order", "amount"))
    assert [(error.line, error.column, error.code) for error in taken.errors] == [
        (2, "order", "id_missing"),
        (3, "amount", "id_missing"),
    ]


def test_a_blank_id_cell_is_reported_with_every_other_error(files: Files) -> None:
    taken = files.take(
        "order,pi,amount,reason\n,,x,why\n", id_from=("order", "payment_intent", "amount")
    )
    assert [(error.column, error.code) for error in taken.errors] == [
        ("amount", "amount_format"),
        ("order", "id_missing"),
        ("pi", "id_missing"),
        ("reason", "reason"),
    ]


def test_a_column_of_the_id_must_be_in_the_file(files: Files) -> None:
    with pytest.raises(InputError, match=r"line 1: column 'order_id' is missing"):
        files.take("pi,amount\npi_1,5\n", id_from=("Order ID",))


def test_a_stated_id_must_match_the_made_id(files: Files) -> None:
    own = derived(("order", "7"))
    text = f"order,pi,id\n7,pi_1,{own}\n7,pi_1,{own}-2\n8,pi_1,mine\n9,pi_1,{own}\n7,pi_1,{own}-1\n"
    taken = files.take(text, id_from=("order",))
    assert taken.ids == [own, f"{own}-2"]
    assert taken.codes == ["refund_id_mismatch"] * 3


def test_rows_become_requests_without_validating_the_whole_file(files: Files) -> None:
    with open_source(files.write(HEADER + "a,pi_1,5,,,\nb,pi_1,x,,,\n"), ImportOptions()) as source:
        good, bad = requests_of(read_rows(source), source)
    assert good[1] == RefundRequest(refund_id="a", payment_intent="pi_1", amount=5)
    assert [error.code for error in bad if isinstance(error, RowError)] == ["amount_format"]
