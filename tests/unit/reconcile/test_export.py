"""The provider's file: units, signs and times as stated, in every format."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.files import workbook
from worker.errors import InputError
from worker.importer import ImportOptions, RowError, open_source
from worker.importer.cells import cell_problem
from worker.model.request import shown
from worker.reconcile.export import Export, Reading, Theirs, moment_of
from worker.reconcile.mapping import ExportMapping
from worker.reconcile.window import zone_of

AT = 1_769_850_000_000  # 2026-01-31T09:00:00Z
HEADER = "id,amount,currency,status"
DECIMALS, PERCENT = 2, 9
"""Formats of numbers: `0.00` and `0%`."""
ROW = "re_1,5,usd,failed"
MISSING = "must not be blank"
LINE: dict[str, Any] = {"id": "re_1", "amount": 5, "currency": "usd", "status": "failed"}


def rows_of(path: Path, content: str | bytes, **how: Any) -> tuple[list[Theirs], Export]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with open_source(path, ImportOptions()) as source:
        values: dict[str, Any] = {
            "mapping": ExportMapping(),
            "zone": UTC,
            "unit": "minor",
            "decimal": "point",
            "negative": False,
            "currency": None,
            "status": None,
        }
        reading = Reading(**values | how)
        export = Export(source=source, reading=reading)
        return list(export.rows()), export


def test_json_lines_may_have_the_metadata_as_an_object(tmp_path: Path) -> None:
    lines = [
        {
            "id": "re_1",
            "amount": 5,
            "currency": "USD",
            "status": "cancelled",
            "fee": 1,
            "created": AT // 1000,
            "metadata": {"refund_id": "order-1"},
        },
        {"id": "re_2", "amount": 7, "currency": "usd", "status": "Succeeded", "created": AT},
    ]
    text = "\n".join(map(json.dumps, lines))
    rows, export = rows_of(tmp_path / "a.jsonl", text)
    assert [(row.currency, row.status, row.created, row.named) for row in rows] == [
        ("usd", "canceled", AT, "order-1"),
        ("usd", "succeeded", AT, None),
    ]
    assert export.unused == ("fee",)


def test_metadata_object_may_stand_before_the_other_keys_of_a_line(tmp_path: Path) -> None:
    line = {"fee": 1, "metadata": {"refund_id": "order-1"}} | LINE | {"status": "odd"}
    rows, export = rows_of(tmp_path / "a.jsonl", json.dumps(line))
    assert (rows, export.unused) == ([], ("fee",))
    assert [(error.column, error.code) for error in export.errors] == [("status", "status")]


@pytest.mark.parametrize("metadata", [None, "order-1", {}, {"refund_id": ""}, {"refund_id": 5}])
def test_metadata_without_our_id_as_a_text_name_no_refund(tmp_path: Path, metadata: object) -> None:
    rows, _ = rows_of(tmp_path / "a.jsonl", json.dumps({"metadata": metadata} | LINE))
    assert rows == [Theirs(1, "re_1", None, 5, "usd", "failed", None, None)]


def test_line_with_two_keys_of_one_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2: has several columns for id: name the right one"):
        rows_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, [LINE, {"ID": "re_2"} | LINE])))


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [("id", True, "cell_type"), ("id", 10.5, "not_whole"), ("amount", 1e20, "not_exact")],
)
def test_value_that_is_not_a_text_is_refused_once_with_its_rule(
    tmp_path: Path, name: str, value: object, code: str
) -> None:
    rows, export = rows_of(tmp_path / "a.jsonl", json.dumps(LINE | {name: value}))
    problem = cell_problem(value)
    assert problem is not None
    assert (rows, export.broken) == ([], 1)
    assert export.errors == [RowError(1, name, code, shown(value), problem[1])]


def test_each_wrong_cell_of_a_row_is_refused(tmp_path: Path) -> None:
    lines = [LINE | {"id": True, "amount": "x"}, LINE | {"id": "", "status": 1.5}]
    _, export = rows_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert [(error.line, error.column, error.code) for error in export.errors] == [
        (1, "id", "cell_type"),
        (1, "amount", "amount_format"),
        (2, "status", "not_whole"),
        (2, "id", "missing"),
    ]


def test_time_of_a_workbook_is_read_as_created_and_refused_elsewhere(tmp_path: Path) -> None:
    columns = ("id", "amount", "currency", "status", "created")
    day, moment = date(2026, 1, 31), datetime.fromisoformat("2026-01-31T10:00")
    good = [("re_1", 5, "usd", "failed", moment), ("re_2", 5, "usd", "failed", day)]
    bad = (day, 5, "usd", "failed", moment)
    rows, export = rows_of(
        tmp_path / "a.xlsx", workbook([columns, *good, bad]), zone=zone_of("Europe/Berlin")
    )
    assert [(row.id, row.created) for row in rows] == [
        ("re_1", AT),
        ("re_2", AT - 10 * 3_600_000),
    ]
    assert [(error.line, error.column, error.code) for error in export.errors] == [
        (4, "id", "cell_type")
    ]


def test_delimiters_at_the_end_of_the_header_name_no_columns(tmp_path: Path) -> None:
    rows, export = rows_of(tmp_path / "a.csv", f"{HEADER},,\n{ROW},,\n")
    assert (len(rows), export.unused) == (1, ())
    with pytest.raises(InputError, match="the row has 6 cells, but the header names 4 columns"):
        rows_of(tmp_path / "a.csv", f"{HEADER},,\n{ROW},9,\n")


def test_header_without_rows_is_judged_too(tmp_path: Path) -> None:
    rows, export = rows_of(tmp_path / "a.csv", f"{HEADER}, fee \n")
    assert (rows, export.unused) == ([], ("fee",))
    with pytest.raises(InputError, match="line 1: has several columns for id"):
        rows_of(tmp_path / "a.csv", f"{HEADER},ID\n")


def test_mapped_column_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    mapping = ExportMapping(columns={"payment_intent": "Payment"})
    says = (
        "line 1: has no column 'Payment', which is mapped to payment_intent: its columns are 'id',"
        " 'amount', 'currency', 'status'"
    )
    with pytest.raises(InputError, match=says):
        rows_of(tmp_path / "a.csv", f"{HEADER}\n{ROW}\n", mapping=mapping)


@pytest.mark.parametrize(
    ("columns", "says"), [(20, "'c19'$"), (21, "'c19' and 1 more$"), (25, "'c19' and 5 more$")]
)
def test_only_the_first_columns_of_a_wide_file_are_listed(
    tmp_path: Path, columns: int, says: str
) -> None:
    names = ",".join(f"c{number}" for number in range(columns))
    with pytest.raises(InputError) as raised:
        rows_of(tmp_path / "a.csv", f"{names}\n", mapping=ExportMapping(columns={"id": "x"}))
    assert re.search(says, str(raised.value))


def test_columns_after_the_last_one_that_is_needed_may_be_left_out_of_a_row(tmp_path: Path) -> None:
    text = f"{HEADER},payment_intent\n{ROW}\n"
    assert [row.payment for row in rows_of(tmp_path / "a.csv", text)[0]] == [None]


def test_currency_and_status_that_are_stated_need_no_columns(tmp_path: Path) -> None:
    text = "id,amount\nre_1,5\n"
    rows, _ = rows_of(tmp_path / "a.csv", text, currency="usd", status="succeeded")
    assert rows == [Theirs(2, "re_1", None, 5, "usd", "succeeded", None, None)]


def test_mapped_column_is_not_what_its_own_name_says(tmp_path: Path) -> None:
    mapping = ExportMapping(columns={"payment_intent": "status"})
    text = "id,amount,currency,status\nre_1,5,usd,pi_1\n"
    rows, _ = rows_of(tmp_path / "a.csv", text, mapping=mapping, status="failed")
    assert rows == [Theirs(2, "re_1", "pi_1", 5, "usd", "failed", None, None)]


def test_row_of_blanks_is_refused_with_the_files_own_names(tmp_path: Path) -> None:
    mapping = ExportMapping(columns={"id": "Refund ID"})
    text = "Refund ID ,amount,currency,status,created,payment_intent\n,,,,,pi_1\n"
    rows, export = rows_of(tmp_path / "a.csv", text, mapping=mapping)
    assert rows == []
    assert export.errors == [
        RowError(2, column, "missing", "''", "must not be blank")
        for column in ("Refund ID", "currency", "amount", "status", "created")
    ]


def test_id_has_at_most_200_characters(tmp_path: Path) -> None:
    longest, longer = "r" * 200, "r" * 201
    rest = ROW.partition(",")[2]
    rows, export = rows_of(tmp_path / "a.csv", f"{HEADER}\n{longest},{rest}\n{longer},{rest}\n")
    assert [row.id for row in rows] == [longest]
    assert export.errors == [
        RowError(3, "id", "too_long", shown(longer), "must have at most 200 characters")
    ]


@pytest.mark.parametrize(
    ("word", "status"),
    [("Cancelled", "canceled"), ("requires_action", "pending"), ("PENDING", "pending")],
)
def test_status_may_be_spelled_as_providers_do(tmp_path: Path, word: str, status: str) -> None:
    rows, _ = rows_of(tmp_path / "a.csv", f"{HEADER}\nre_1,5,usd,{word}\n")
    assert [row.status for row in rows] == [status]


def test_row_with_one_bad_cell_is_not_read(tmp_path: Path) -> None:
    rows, export = rows_of(tmp_path / "a.csv", f"{HEADER}\nre_1,5,usd,odd\n{ROW}\n")
    assert ([row.line for row in rows], export.broken) == ([3], 1)


def test_workbook_has_numbers_and_is_read_without_its_decimal_option(tmp_path: Path) -> None:
    sheet = workbook([("id", "amount", "currency", "status"), ("re_1", 10.5, "usd", "failed")])
    rows, _ = rows_of(tmp_path / "a.xlsx", sheet, unit="major", decimal="comma")
    assert rows[0].amount == 1050


def test_text_is_read_with_the_decimal_mark_that_is_stated(tmp_path: Path) -> None:
    text = f'{HEADER}\nre_1,"1.010,50",usd,failed\n'
    rows, _ = rows_of(tmp_path / "a.csv", text, unit="major", decimal="comma")
    assert rows[0].amount == 101_050


def test_minor_units_with_a_fraction_in_a_workbook_are_refused(tmp_path: Path) -> None:
    sheet = workbook([("id", "amount", "currency", "status"), ("re_1", 10.5, "usd", "failed")])
    rows, export = rows_of(tmp_path / "a.xlsx", sheet)
    assert (rows, export.broken) == ([], 1)


def test_mapped_column_is_used_before_one_of_the_fields_own_name(tmp_path: Path) -> None:
    mapping = ExportMapping(columns={"amount": "Net"}, statuses={"Paid": "succeeded"})
    text = "id,amount,Net,currency,status\nre_1,9,5,usd,Paid\n"
    rows, export = rows_of(tmp_path / "a.csv", text, mapping=mapping)
    assert (rows[0].amount, rows[0].status, export.unused) == (5, "succeeded", ("amount",))


@pytest.mark.parametrize("amount", ["-50", "\u221250", "50-", "50\u2212", "(50)"])
def test_negative_amounts_are_read_if_that_is_stated(tmp_path: Path, amount: str) -> None:
    text = f"id,amount,currency,status\nre_1,{amount},usd,failed\nre_2,5,usd,failed\n"
    rows, export = rows_of(tmp_path / "a.csv", text, negative=True)
    assert [row.amount for row in rows] == [50]
    (error,) = export.errors
    assert (error.line, error.code) == (3, "amount_sign")
    assert error.rule.startswith("must be negative, ")


@pytest.mark.parametrize("amount", ["-50", "\u221250", "50-", "50\u2212", "(50)"])
def test_negative_amount_is_refused_with_the_option_that_reads_it(
    tmp_path: Path, amount: str
) -> None:
    rows, export = rows_of(tmp_path / "a.csv", f"{HEADER}\nre_1,{amount},usd,failed\n")
    assert (rows, export.broken) == ([], 1)
    (error,) = export.errors
    assert error.code == "amount_sign"
    assert error.rule.startswith("must not be negative: ")


@pytest.mark.parametrize("amount", ["-(5)", "(-5)", "-5-", "((5))", "(50", "50)", "-", "()"])
def test_amount_with_two_signs_or_half_of_one_is_refused(tmp_path: Path, amount: str) -> None:
    rows, export = rows_of(
        tmp_path / "a.csv", f"{HEADER}\nre_1,{amount},usd,failed\n", negative=True
    )
    assert (rows, export.broken) == ([], 1)


def test_mapped_key_that_no_line_has_is_refused(tmp_path: Path) -> None:
    mapping = ExportMapping(columns={"id": "id", "created": "Made"})
    says = (
        r"a\.jsonl: has no column 'Made', which is mapped to created: its columns are 'id',"
        r" 'amount', 'currency', 'status', 'fee'$"
    )
    lines = [LINE, LINE | {"id": "re_2", "fee": 1}]
    with pytest.raises(InputError, match=says):
        rows_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)), mapping=mapping)
    assert rows_of(tmp_path / "a.jsonl", " \n" * 70_000, mapping=mapping)[0] == []


def test_needed_key_that_no_line_has_is_refused_once(tmp_path: Path) -> None:
    says = (
        "has no column amount and status: its columns are 'id', 'currency', 'Net'; name the right"
    )
    lines = [{"id": f"re_{number}", "currency": "usd", "Net": 5} for number in range(2)]
    with pytest.raises(InputError, match=says):
        rows_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))


def test_mapped_key_that_one_line_has_is_enough(tmp_path: Path) -> None:
    mapping = ExportMapping(columns={"payment_intent": "Payment"})
    lines = [LINE, LINE | {"id": "re_2", "Payment": "pi_2"}]
    text = "\n".join(map(json.dumps, lines))
    rows, export = rows_of(tmp_path / "a.jsonl", text, mapping=mapping)
    assert ([row.payment for row in rows], export.broken) == ([None, "pi_2"], 0)


@pytest.mark.parametrize("columns", [{"amount": "AMOUNT"}, {"metadata.refund_id": "metadata"}])
def test_mapped_key_may_be_spelled_as_in_a_header(tmp_path: Path, columns: dict[str, str]) -> None:
    mapping = ExportMapping(columns=columns)
    line = json.dumps(LINE | {"metadata": "order-1"})
    rows, _ = rows_of(tmp_path / "a.jsonl", line, mapping=mapping)
    assert [row.amount for row in rows] == [5]


@pytest.mark.parametrize("without", [0, 1])
def test_line_without_a_time_beside_lines_with_one_is_refused(tmp_path: Path, without: int) -> None:
    lines = [LINE | {"id": f"re_{number}", "Created": AT} for number in range(3)]
    del lines[without]["Created"]
    rows, export = rows_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert len(rows) == 3
    assert export.errors == [RowError(without + 1, "Created", "missing", "''", MISSING)]


def test_lines_without_a_time_are_all_counted_and_the_first_are_named(tmp_path: Path) -> None:
    lines = [LINE | {"id": f"re_{number}"} for number in range(25)]
    lines[-1]["created"] = AT
    _, export = rows_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert (export.broken, [error.line for error in export.errors]) == (24, list(range(1, 21)))
    # Memory does not grow with the file.
    assert len(export._untimed) == 20


def test_line_without_a_time_is_refused_beside_one_whose_time_cannot_be_read(
    tmp_path: Path,
) -> None:
    lines = [LINE, LINE | {"created": True}]
    _, export = rows_of(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert [(error.line, error.code) for error in export.errors] == [
        (2, "cell_type"),
        (1, "missing"),
    ]


def test_file_of_which_no_line_has_a_time_is_read(tmp_path: Path) -> None:
    rows, export = rows_of(tmp_path / "a.jsonl", json.dumps(LINE))
    assert ([row.created for row in rows], export.broken) == ([None], 0)


def test_time_with_a_fraction_is_refused_with_the_rule_of_times(tmp_path: Path) -> None:
    line = LINE | {"created": 46356.4634}
    rows, export = rows_of(tmp_path / "a.jsonl", json.dumps(line))
    assert (rows, export.broken) == ([], 1)
    (error,) = export.errors
    assert (error.code, error.value) == ("created", "'46356.4634'")
    assert error.rule.startswith("must be a time such as 2026-01-31T09:00:00Z")


def test_columns_of_the_metadata_have_the_names_that_dashboards_give_them(tmp_path: Path) -> None:
    for name in ("metadata.refund_id", "refund_id (metadata)", "metadata[refund_id]"):
        text = f"id,amount,currency,status,{name}\nre_1,5,usd,failed,order-1\n"
        rows, _ = rows_of(tmp_path / "a.csv", text)
        assert rows[0].named == "order-1"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-31T09:00:00Z", AT),
        ("2026-01-31 10:00:00", AT),
        ("2026-01-31T10:00:00+01:00", AT),
        ("1769850000", AT),
        ("1769850000000", AT),
        ("2026-01-31", AT - 10 * 3_600_000),
        ("31.01.2026", None),
        ("01/31/2026", None),
        ("20260131", None),
        ("17698500000", None),
        ("2026-W05-6T09:00", None),
        ("soon", None),
    ],
)
def test_time_is_read_only_if_it_has_one_meaning(text: str, at: int | None) -> None:
    assert moment_of(text, zone_of("Europe/Berlin")) == at


@pytest.mark.parametrize("column", ["id", "payment_intent", "metadata"])
def test_text_with_half_a_character_is_refused_with_its_line(tmp_path: Path, column: str) -> None:
    line: dict[str, Any] = {"id": "re_1", "amount": 5, "currency": "usd", "status": "failed"}
    line[column] = {"refund_id": "a\ud800"} if column == "metadata" else "a\ud800"
    rows, export = rows_of(tmp_path / "a.jsonl", json.dumps(line))
    name = "metadata.refund_id" if column == "metadata" else column
    rule = "must not hold broken Unicode"
    assert (rows, export.broken) == ([], 1)
    assert export.errors == [RowError(1, name, "broken_text", r"'a\ud800'", rule)]


def test_what_an_export_notes_while_it_reads_is_not_given_to_it() -> None:
    assert [each.name for each in fields(Export) if each.init and each.name.startswith("_")] == []


@pytest.mark.parametrize(
    ("amount", "how"),
    [
        ("0", {}),
        ("0.00", {"unit": "major"}),
        ('"0,00"', {"unit": "major", "decimal": "comma"}),
        ("0", {"negative": True}),
        ("-0.00", {"unit": "major", "negative": True}),
    ],
)
def test_refund_of_nothing_is_a_row_too(tmp_path: Path, amount: str, how: dict[str, Any]) -> None:
    text = f"{HEADER}\nre_1,{amount},usd,canceled\n"
    rows, export = rows_of(tmp_path / "a.csv", text, **how)
    assert ([row.amount for row in rows], export.errors) == ([0], [])


def styled(values: list[Any], cell: str, number_format: int) -> bytes:
    """A workbook of one row in which a cell has one of the formats that every workbook knows."""
    book = io.BytesIO(workbook([HEADER.split(","), values]))
    with zipfile.ZipFile(book) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet, plain = "xl/worksheets/sheet1.xml", f'<c r="{cell}">'
    parts[sheet] = parts[sheet].replace(plain.encode(), f'<c r="{cell}" s="1">'.encode())
    formats = f'<styleSheet><cellXfs><xf/><xf numFmtId="{number_format}"/></cellXfs></styleSheet>'
    parts["xl/styles.xml"] = formats.encode()
    with zipfile.ZipFile(book, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return book.getvalue()


def test_whole_number_that_a_workbook_shows_as_money_is_not_read_as_minor_units(
    tmp_path: Path,
) -> None:
    values = ["re_1", 5, "usd", "failed"]
    book = styled(values, "B2", DECIMALS)
    _, export = rows_of(tmp_path / "a.xlsx", book)
    assert [(error.column, error.code) for error in export.errors] == [("amount", "amount_shown")]
    rows, _ = rows_of(tmp_path / "a.xlsx", book, unit="major")
    assert [row.amount for row in rows] == [500]
    # One that is shown as another number is read in no unit.
    for unit in ("minor", "major"):
        rows, export = rows_of(tmp_path / "a.xlsx", styled(values, "B2", PERCENT), unit=unit)
        assert (rows, [error.code for error in export.errors]) == ([], ["amount_shown"])
    # A currency without decimals has one unit.
    yen = styled(["re_1", 5, "JPY", "failed"], "B2", DECIMALS)
    rows, export = rows_of(tmp_path / "a.xlsx", yen)
    assert ([row.amount for row in rows], export.errors) == ([5], [])


def test_only_an_amount_must_be_shown_as_the_number_that_it_is(tmp_path: Path) -> None:
    rows, export = rows_of(tmp_path / "a.xlsx", styled([5, 7, "usd", "failed"], "A2", PERCENT))
    assert ([row.id for row in rows], export.errors) == (["5"], [])
