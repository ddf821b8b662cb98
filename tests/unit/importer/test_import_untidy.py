"""Files as spreadsheets and old programs write them: blank rows, Excel's first line, omitted
cells.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.files import Files, workbook
from worker.errors import InputError
from worker.importer import describe, open_source
from worker.importer.options import ImportOptions

HEADER = "refund_id,payment_intent,amount,currency,reason,metadata.order\n"
ROW = "a,pi_1,500,usd,,7\n"
BLANKS = ["", " ", "\t", "\u00a0", "\u202f", "\u3000", "\ufeff", "\u200b"]


@pytest.mark.parametrize("blank", BLANKS)
def test_a_blank_row_is_not_a_row(blank: str, files: Files) -> None:
    row = ",".join([blank] * 6) + "\n"
    taken = files.take(row + HEADER + row + ROW + blank + "\n" + row + "b,pi_2,700,usd,,8\n" + row)
    assert (taken.ids, taken.lines, taken.errors) == (["a", "b"], [4, 7], [])
    assert taken.summary.rows == 2


@pytest.mark.parametrize(
    "end", ["\r\n\x1a", "\r\n\x1a\x1a\r\n", "\r\n \x1a", "\r\n\r\n\x1a", "\x1a", "\x1a\x1a"]
)
def test_the_end_mark_of_dos_is_not_part_of_a_row(end: str, files: Files) -> None:
    taken = files.take(f"{HEADER}{ROW}b,pi_2,700,usd,,8{end}")
    assert [(each.refund_id, each.metadata["order"]) for each in taken.requests] == [
        ("a", "7"),
        ("b", "8"),
    ]
    assert taken.errors == []


def test_the_end_mark_ends_json_lines_too(files: Files) -> None:
    line = '{"id": "a", "pi": "pi_1", "amount": 5}\n'
    assert files.take(f"{line}\u00a0\n \t\n\x1a", "refunds.jsonl").ids == ["a"]


def test_blank_cells_of_a_workbook_are_not_rows_or_columns(files: Files) -> None:
    rows: list[list[object]] = [
        [" ", "\u00a0", None],
        ["id", "pi", "amount", " ", ""],
        [" ", "\t", "", "\u00a0", " "],
        ["a", "pi_1", 500, " ", None, "\u00a0"],
        [None, " ", None],
    ]
    taken = files.take(workbook(rows), "refunds.xlsx")
    assert (taken.ids, taken.lines, taken.summary.rows) == (["a"], [4], 1)


@pytest.mark.parametrize(
    "first",
    ["sep=;", '"sep=;"', "\ufeffsep=;", '\ufeff"sep=;"', "SEP=;", "sep=;;;;;;", "sep=;,,,"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_excels_first_line_names_the_delimiter_and_is_not_the_header(
    first: str, end: str, files: Files
) -> None:
    # Without that line, the commas in the header would be detected as the delimiter.
    text = f'{first}{end}id;pi;amount;"metadata.a,b,c,d,e"{end}a;pi_1;500;x{end}b;p/2;5;y{end}'
    taken = files.take(text)
    assert ([each.amount for each in taken.requests], taken.lines) == ([500], [3])
    assert [error.line for error in taken.errors] == [4]
    with open_source(files.write(text), ImportOptions()) as source:
        assert describe(source) == "CSV, semicolon-separated"


@pytest.mark.parametrize(("delimiter", "name"), [(",", "comma"), ("\t", "tab")])
def test_every_delimiter_may_be_named_by_the_first_line(
    delimiter: str, name: str, files: Files
) -> None:
    text = f"sep={delimiter}\nid;pi{delimiter}pi\n"
    with open_source(files.write(text), ImportOptions()) as source:
        assert describe(source) == f"CSV, {name}-separated"


def test_an_unsupported_delimiter_is_refused_with_the_allowed_ones(files: Files) -> None:
    with pytest.raises(InputError, match=r"line 1: 'sep=\|' .*comma, semicolon or tab"):
        files.take("sep=|\nid|pi|amount\na|pi_1|5\n")


def test_a_stated_delimiter_wins_over_excels_first_line(files: Files) -> None:
    assert files.take("sep=;\nid,pi,amount\na,pi_1,5\n", delimiter=",").ids == ["a"]


def test_a_result_has_excels_first_line_again(files: Files) -> None:
    text = "\ufeffsep=;\r\nid;pi;amount\r\na;pi_1;5\r\n"
    result = files.result(text)
    assert result.startswith("\ufeffsep=;\r\nid;pi;amount;status;")
    assert files.take(result).ids == ["a"]


def test_rows_may_lack_optional_last_cells(files: Files) -> None:
    text = HEADER + "a,pi_1,500\nb,pi_2,700,usd\nc,pi_3,900,usd,duplicate\nd,pi_4,100,usd,,9\n"
    taken = files.take(text)
    assert [
        (each.refund_id, each.amount, each.currency, each.reason) for each in taken.requests
    ] == [
        ("a", 500, None, None),
        ("b", 700, "usd", None),
        ("c", 900, "usd", "duplicate"),
        ("d", 100, "usd", None),
    ]
    assert files.take(files.result(text)).requests == taken.requests


@pytest.mark.parametrize(
    ("header", "row", "options", "missing"),
    [
        ("refund_id,payment_intent,amount,currency", "a,pi_1", {}, "amount"),
        ("refund_id,payment_intent,currency,Amount", "a,pi_1,usd", {}, "Amount"),
        ("refund_id,amount,payment_intent", "a,5", {}, "payment_intent"),
        ("payment_intent,amount,refund_id", "pi_1,5", {}, "refund_id"),
        ("payment_intent,amount,Order No", "pi_1,5", {"id_from": ("order_no",)}, "Order No"),
    ],
)
def test_a_row_without_a_required_cell_has_too_few_cells(
    header: str, row: str, options: dict[str, Any], missing: str, files: Files
) -> None:
    with pytest.raises(InputError, match=rf"line 2.* too few cells, .*{missing!r}") as refusal:
        files.take(f"{header}\n{row}\n", **options)
    assert "quote" not in str(refusal.value)


def test_with_made_ids_a_row_may_lack_its_id_and_result_columns(files: Files) -> None:
    text = files.result("order,pi,amount\n7,pi_1,5\n", id_from=("order",)) + "8,pi_2,6\r\n"
    assert len(set(files.take(text, id_from=("order",)).ids)) == 2


def test_a_short_last_row_without_a_line_end_is_a_cut_file(files: Files) -> None:
    # 500 may have been 50000: only a line end shows that the amount is complete.
    with pytest.raises(InputError, match=r"line 3.*too few cells.*no line end.*cut off"):
        files.take(HEADER + ROW + "b,pi_2,500")
    assert files.take(HEADER + ROW + "b,pi_2,500\n").ids == ["a", "b"]
    assert files.take(HEADER + ROW + "b,pi_2,500,usd,,8").ids == ["a", "b"]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_delimiter_at_the_end_of_every_row_adds_no_column(delimiter: str, files: Files) -> None:
    rows = ["id,pi,amount,", "a,pi_1,500,", "b,pi_2,700,,", "c,pi_3,900"]
    taken = files.take("\n".join(rows).replace(",", delimiter) + "\n")
    assert [each.amount for each in taken.requests] == [500, 700, 900]
    taken = files.take("\n".join(["id,pi,amount", *rows[1:]]).replace(",", delimiter) + "\n")
    assert [each.amount for each in taken.requests] == [500, 700, 900]


def test_a_cell_beyond_the_last_named_column_stops_the_import(files: Files) -> None:
    with pytest.raises(InputError, match=r"line 2, column 4: .*4 cells.*quote each cell"):
        files.take("id,pi,amount,\na,pi_1,1,50\n")
