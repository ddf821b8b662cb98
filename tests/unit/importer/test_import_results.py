"""Files for a person: columns and rows in their order, each row with its result, and valid as
input.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from tests.factories import a_refund
from tests.support.files import HEADER, Files, workbook
from worker.errors import InputError
from worker.importer import SameRefund
from worker.importer.cells import guarded, unguarded
from worker.model.refund import Stage, Status

BEFORE = [
    "status",
    "stage",
    "provider_refund_id",
    "error_code",
    "error_message",
    "attempts",
    "updated_at",
]
ADDED = [*BEFORE, "amount_refunded", "currency_refunded"]


def parsed(text: str, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


def test_a_result_has_the_inputs_rows_and_columns_in_order(files: Files) -> None:
    settled = a_refund(Stage.SETTLED, refund_id="b", status=Status.SUCCEEDED)
    failed = a_refund(
        Stage.SETTLED,
        refund_id="a",
        status=Status.FAILED,
        error_code="card_declined",
        error_message="=no\nway",
    )
    text = (
        "note,id,pi,amount\nx,b,pi_1,500\n\ny,a,pi_2,500\n"
        "z,bad,pi_3,1e3\n=w,c,pi_4,500\nv,b,pi_1,500\n"
    )
    header, *rows = parsed(files.result(text, [settled, failed], ignore_extra=True))
    assert header == ["note", "id", "pi", "amount", *ADDED]
    assert [row[:7] for row in rows] == [
        ["x", "b", "pi_1", "500", "succeeded", "settled", "re_1"],
        ["y", "a", "pi_2", "500", "failed", "settled", "re_1"],
        ["z", "bad", "pi_3", "1e3", "invalid", "", ""],
        ["'=w", "c", "pi_4", "500", "", "", ""],
        ["v", "b", "pi_1", "500", "succeeded", "settled", "re_1"],
    ]
    assert rows[0][7:] == ["", "", "1", "2026-01-31T08:59:00.000Z", "500", "usd"]
    assert rows[1][7:] == ["card_declined", "'=no\nway", "1", "2026-01-31T08:59:00.000Z", "", ""]
    assert rows[2][7] == "amount_exponent"
    assert "'1e3'" in rows[2][8]


def test_made_ids_in_a_result_are_recognized(files: Files) -> None:
    text = "order,pi,amount\n7,pi_1,5\n7,pi_1,5\n8,pi_1,x\n"
    taken = files.take(text, id_from=("order",))
    result = files.result(text, id_from=("order",))
    header, *rows = parsed(result)
    assert header == ["order", "pi", "amount", "refund_id", *ADDED]
    assert [row[3] for row in rows] == [*taken.ids, ""]
    assert files.take(result, id_from=("order",)).requests == taken.requests
    plain = files.take(result, ignore_extra=True).requests
    assert all(map(SameRefund(), plain, taken.requests))


def test_a_result_of_a_result_replaces_the_earlier_columns(files: Files) -> None:
    first = files.result(HEADER + "a,pi_1,500,usd,,7\n")
    second = files.result(first, [a_refund(Stage.SETTLED, refund_id="a", status=Status.SUCCEEDED)])
    assert parsed(second)[0] == parsed(first)[0]
    assert parsed(first)[1][6] == ""
    assert parsed(second)[1][6] == "succeeded"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_result_keeps_the_inputs_delimiter_and_byte_order_mark(
    delimiter: str, files: Files
) -> None:
    text = f"\ufeffid{delimiter}pi\na{delimiter}pi_1\n"
    result = files.result(text)
    assert result.startswith("\ufeff")
    assert parsed(result.removeprefix("\ufeff"), delimiter)[1][:2] == ["a", "pi_1"]


def test_a_workbooks_result_is_a_csv_with_its_cells_as_text(files: Files) -> None:
    book = workbook(
        [["id", "pi", "amount", "note"], [1001.0, "pi_1", 5, 1.5], ["=x", "pi_1", 5, True]]
    )
    result = files.result(book, name="refunds.xlsx", ignore_extra=True)
    rows = parsed(result.removeprefix("\ufeff"))
    assert [row[:5] for row in rows[1:]] == [
        ["1001", "pi_1", "5", "1.5", ""],
        ["'=x", "pi_1", "5", "True", "invalid"],
    ]


def test_json_lines_come_back_as_json_lines(files: Files) -> None:
    lines: list[dict[str, Any]] = [
        {"pi": "pi_1", "id": "a", "extra": [1, {"x": 2.5}]},
        {"id": "b", "pi": "pi_2", "amount": 1.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    refund = a_refund(Stage.PROCESSING, refund_id="a")
    result = files.result(text, [refund], "refunds.jsonl", ignore_extra=True)
    first, second = map(json.loads, result.splitlines())
    assert list(first) == ["pi", "id", "extra", *ADDED]
    assert first == lines[0] | {
        "status": "pending",
        "stage": "processing",
        "provider_refund_id": "re_1",
        "error_code": None,
        "error_message": None,
        "attempts": 1,
        "updated_at": "2026-01-31T08:59:00.000Z",
        "amount_refunded": None,
        "currency_refunded": None,
    }
    assert (second["amount"], second["status"], second["error_code"]) == (
        1.5,
        "invalid",
        "not_whole",
    )
    again = files.take(result, "again.jsonl", ignore_extra=True)
    assert (again.ids, again.codes) == (["a"], ["not_whole"])


def test_failed_rows_have_line_and_rules_and_can_be_fixed_and_imported(files: Files) -> None:
    text = "id,pi,amount\na,pi_1,500\nb,p/2,1e3\nc,pi_3,500\nc,pi_3,501\n"
    failed = files.failed_rows(text)
    header, *rows = parsed(failed)
    assert header == ["line", "column", "code", "value", "rule", "id", "pi", "amount"]
    assert [(row[0], row[1], row[2], row[3]) for row in rows] == [
        ("3", "amount; pi", "amount_exponent; payment_intent", "'1e3'; 'p/2'"),
        ("4", "id", "duplicate_id", "'c'"),
        ("5", "id", "duplicate_id", "'c'"),
    ]
    assert [row[5:] for row in rows] == [
        ["b", "p/2", "1e3"],
        ["c", "pi_3", "500"],
        ["c", "pi_3", "501"],
    ]
    fixed = failed.replace("b,p/2,1e3", "b,pi_2,1000").replace("c,pi_3,501", "d,pi_3,501")
    assert files.take(fixed).ids == ["b", "c", "d"]
    assert parsed(files.failed_rows(fixed.replace("pi_2", "p/2")))[0] == header


def test_failed_json_lines_can_be_fixed_and_imported(files: Files) -> None:
    text = '{"id": "a", "pi": "pi_1"}\n{"pi": "pi_2", "id": "b", "amount": "1e3"}\n'
    failed = files.failed_rows(text, "refunds.jsonl")
    assert json.loads(failed)["line"] == 2
    assert files.take(failed.replace("1e3", "1000"), "fixed.jsonl").ids == ["b"]


def test_the_files_own_columns_stay_beside_result_columns_of_one_name(files: Files) -> None:
    failed = files.failed_rows("id,pi,code\na,p/1,mine\n", ignore_extra=True)
    header, row = parsed(failed)
    assert header == ["line", "column", "code", "value", "rule", "id", "pi", "code (file)"]
    assert row[-1] == "mine"


def test_a_files_own_column_line_is_not_the_line_of_a_failed_row(files: Files) -> None:
    text = "order,line,pi,amount\n7,1,pi_1,5\n7,2,pi_1,x\n"
    options: dict[str, Any] = {"id_from": ("order", "line")}
    fixed = files.failed_rows(text, **options).replace("pi_1,x", "pi_1,6")
    assert (
        files.take(fixed, **options).requests
        == files.take(text.replace("x", "6"), **options).requests[1:]
    )


def test_a_result_of_an_earlier_version_gets_the_missing_columns(files: Files) -> None:
    text = f"id,pi,amount,{','.join(BEFORE)}\na,pi_1,500,failed,settled,re_1,card,no,3,now\n"
    done = a_refund(Stage.SETTLED, refund_id="a", status=Status.SUCCEEDED)
    header, row = parsed(files.result(text, [done]))
    assert header == ["id", "pi", "amount", *ADDED]
    assert row[-2:] == ["500", "usd"]


def test_a_files_own_column_amount_refunded_is_kept(files: Files) -> None:
    text = "id,pi,amount,Amount Refunded\na,pi_1,500,70\n"
    with pytest.raises(InputError, match="'Amount Refunded' is not a known column"):
        files.take(text)
    done = a_refund(Stage.SETTLED, refund_id="a", status=Status.SUCCEEDED)
    result = files.result(text, [done], ignore_extra=True)
    header, row = parsed(result)
    assert header == ["id", "pi", "amount", "Amount Refunded (file)", *ADDED]
    assert (row[3], row[-2]) == ("70", "500")
    assert (
        files.take(result, ignore_extra=True).requests
        == files.take(text, ignore_extra=True).requests
    )


@pytest.mark.parametrize("name", ["refunds.csv", "refunds.jsonl"])
def test_a_files_own_status_is_kept_and_its_result_is_valid_input(name: str, files: Files) -> None:
    text = "id,pi,amount,Status\na,pi_1,500,Paid\n"
    if name.endswith("jsonl"):
        text = json.dumps({"id": "a", "pi": "pi_1", "amount": 500, "Status": "Paid"}) + "\n"
    done = a_refund(Stage.SETTLED, refund_id="a", status=Status.SUCCEEDED)
    result = files.result(text, [done], name)
    again = files.result(result, [done], name)
    for written in (result, again):
        assert "Status (file)" in written
        assert written.count("Paid") == written.count("succeeded") == 1
        assert files.take(written, name).requests == files.take(text, name).requests
    broken = files.failed_rows(result.replace("500", "1.5", 1), name)
    assert files.take(broken.replace("1.5", "500"), name).ids == ["a"]
    assert again == result


@pytest.mark.parametrize(
    ("amount", "currency", "decimal", "written"),
    [
        (123456, "eur", "point", "1234.56"),
        (123456, "eur", "comma", "1234,56"),
        (500, "jpy", "point", "500"),
        (12345, "kwd", "comma", "12,345"),
        # All that was left of a payment in a currency that no row states.
        (500, "isk", "point", "500 minor units"),
    ],
)
def test_the_refunded_amount_is_written_like_the_files_amounts(
    amount: int, currency: str, decimal: str, written: str, files: Files
) -> None:
    refund = a_refund(
        Stage.SETTLED,
        refund_id="a",
        status=Status.SUCCEEDED,
        amount=amount,
        currency=currency,
        all_remaining=True,
    )
    options: dict[str, Any] = {"amount_unit": "major", "decimal": decimal}
    _, row = parsed(files.result("id,pi,amount\na,pi_1,\n", [refund], **options))
    assert (row[2], row[-2:]) == ("", [written, currency])


def test_an_unsettled_refund_has_no_refunded_amount(files: Files) -> None:
    for status, stage in ((Status.PENDING, Stage.PROCESSING), (Status.FAILED, Stage.SETTLED)):
        _, row = parsed(
            files.result("id,pi\na,pi_1\n", [a_refund(stage, refund_id="a", status=status)])
        )
        assert row[-2:] == ["", ""]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\n=1", "\uff1d1", "'=1", "''@x", "'''-"]
)
def test_a_formula_cell_is_guarded_and_reads_back(text: str) -> None:
    assert guarded(text) == f"'{text}"
    assert unguarded(guarded(text)) == text


@pytest.mark.parametrize("text", ["", "x=1", "'", "''", "'x", " =1", "pi_1"])
def test_a_harmless_cell_is_unchanged(text: str) -> None:
    assert guarded(text) == unguarded(text) == text


def test_a_repeated_row_does_not_show_the_refunded_amount_again(files: Files) -> None:
    settled = a_refund(Stage.SETTLED, refund_id="a", status=Status.SUCCEEDED)
    text = "id,pi,amount\na,pi_1,500\na,pi_1,500\n"
    header, *rows = parsed(files.result(text, [settled]))
    amounts = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["status"] for row in amounts] == ["succeeded", "succeeded"]
    assert [row["amount_refunded"] for row in amounts] == ["500", ""]
    assert [row["currency_refunded"] for row in amounts] == ["usd", ""]
