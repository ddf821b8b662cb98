"""Cells of a workbook without a value.

An error or a formula without a result is never read as blank.
"""

from __future__ import annotations

import io
import time
import zipfile
from contextlib import suppress
from datetime import date
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from tests.support.files import Files, workbook
from worker.errors import InputError
from worker.importer import ImportOptions, open_source, validate

HEADER: list[object] = ["id", "pi", "amount", "currency", "note"]
ROWS: list[list[object]] = [HEADER, ["a", "pi_1", 500, "usd", "x"], ["b", "pi_2", 700, "usd", "y"]]
ERROR = b'<c r="%s" t="e"><v>#N/A</v></c>'
FORMULA = b'<c r="%s"><f>SUM(A1:A2)</f></c>'


def cell(reference: str, value: object) -> bytes:
    """A cell as `workbook` writes it."""
    if isinstance(value, int):
        return f'<c r="{reference}"><v>{value}</v></c>'.encode()
    text = f'<is><t xml:space="preserve">{value}</t></is>'
    return f'<c r="{reference}" t="inlineStr">{text}</c>'.encode()


def changed(book: bytes, old: bytes, new: bytes, member: str = "xl/worksheets/sheet1.xml") -> bytes:
    """The workbook with other bytes in one of its parts."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(book)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name == member:
                assert old in content
                content = content.replace(old, new)
            after.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    "unread",
    [
        ERROR,
        b"<c t='e' r='%s' s='1'><v>#REF!</v></c>",
        FORMULA,
        b'<c r="%s"><f>1+1</f><v/></c>',
        b'<c r="%s"><f>1+1</f><v></v></c>',
        b'<c r="%s" t="n"><x:f>1+1</x:f><x:v></x:v></c>',
        b'<c r="%s"><f t="shared" si="0"/></c>',
        b'<x:c r="%s" t="n"><x:f>1+1</x:f></x:c>',
    ],
)
@pytest.mark.parametrize(
    ("reference", "value", "column"), [("C2", 500, "amount"), ("D2", "usd", "currency")]
)
def test_a_cell_without_a_value_is_not_blank(
    unread: bytes, reference: str, value: object, column: str, files: Files
) -> None:
    book = changed(workbook(ROWS), cell(reference, value), unread % reference.encode())
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert [(error.line, error.column, error.code) for error in taken.errors] == [
        (2, column, "cell_error")
    ]
    assert taken.ids == ["b"]
    assert "#ERROR" in files.result(book, name="refunds.xlsx", ignore_extra=True)


@pytest.mark.parametrize("empty", [1, 2])
@pytest.mark.parametrize("unread", [ERROR, FORMULA])
def test_a_cell_without_a_value_is_found_beside_empty_columns(
    files: Files, empty: int, unread: bytes
) -> None:
    rows: list[list[object]] = [[None] * empty + row for row in ROWS]
    reference = f"{chr(67 + empty)}2"
    book = changed(workbook(rows), cell(reference, 500), unread % reference.encode())
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert [(error.line, error.column, error.code) for error in taken.errors] == [
        (2, "amount", "cell_error")
    ]
    assert taken.ids == ["b"]


def test_a_column_without_any_value_is_not_read(files: Files) -> None:
    rows: list[list[object]] = [[n, *row] for n, row in enumerate(ROWS, 1)]
    book = workbook(rows)
    for number in (1, 2, 3):
        reference = f"A{number}"
        book = changed(book, cell(reference, number), FORMULA % reference.encode())
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert (taken.ids, taken.errors) == (["a", "b"], [])


@pytest.mark.parametrize("empty", [b"<v></v>", b"<v/>", b"<x:v />"])
def test_a_formula_may_have_an_empty_text_as_its_result(files: Files, empty: bytes) -> None:
    formula = b'<c r="D2" t="str"><f>IF(1,"","usd")</f>' + empty + b"</c>"
    book = changed(workbook(ROWS), cell("D2", "usd"), formula)
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert [each.currency for each in taken.requests] == [None, "usd"]


@pytest.mark.parametrize("computed", [b"<v>500</v>", b"<v>500.0</v>"])
def test_a_formula_with_a_result_is_read_as_its_result(computed: bytes, files: Files) -> None:
    book = changed(workbook(ROWS), cell("C2", 500), b'<c r="C2"><f>250*2</f>' + computed + b"</c>")
    assert [
        each.amount for each in files.take(book, "refunds.xlsx", ignore_extra=True).requests
    ] == [500, 700]


def merged(book: bytes, *ranges: str) -> bytes:
    cells = "".join(f'<mergeCell ref="{each}"/>' for each in ranges)
    end = f"</sheetData><mergeCells>{cells}</mergeCells>".encode()
    return changed(book, b"</sheetData>", end)


@pytest.mark.parametrize("empty", [0, 1])
def test_a_cell_that_shows_the_value_of_another_row_is_not_blank(files: Files, empty: int) -> None:
    rows: list[list[object]] = [[None] * empty + row for row in ROWS]
    rows[2][empty + 2] = None
    amount = chr(67 + empty)
    book = merged(workbook(rows), f"{amount}2:{amount}3")
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert [(error.line, error.column, error.code) for error in taken.errors] == [
        (3, "amount", "cell_merged")
    ]
    assert taken.ids == ["a"]


def test_rows_of_merged_cells_alone_are_blank(files: Files) -> None:
    rows: list[list[object]] = [HEADER, ROWS[1], [None] * 5, ROWS[2]]
    book = merged(workbook(rows), *(f"{column}2:{column}3" for column in "ABCDE"))
    assert files.take(book, "refunds.xlsx", ignore_extra=True).lines == [2, 4]


def test_merged_cells_without_a_value_and_names_of_columns_are_blank(files: Files) -> None:
    rows = [[*HEADER, None], [*ROWS[1]], [*ROWS[2]]]
    rows[1][3] = rows[2][3] = None
    book = merged(workbook(rows), "E1:F1", "D2:D3")
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert (taken.ids, taken.errors) == (["a", "b"], [])
    beside = [HEADER, ["a", "pi_1", 500, None, None], ROWS[2]]
    taken = files.take(merged(workbook(beside), "C2:D2"), "refunds.xlsx", ignore_extra=True)
    assert [(error.column, error.code) for error in taken.errors] == [("currency", "cell_merged")]


def test_merged_cells_beside_the_rows_cost_nothing(files: Files) -> None:
    book = merged(workbook(ROWS), "F1:XFD1048576", "A4:E1048576")
    assert files.take(book, "refunds.xlsx", ignore_extra=True).ids == ["a", "b"]


@pytest.mark.parametrize("sheets", [1, 3])
def test_the_merged_cells_of_all_sheets_are_limited(files: Files, sheets: int) -> None:
    blank: list[object] = [None, None]
    rows: list[list[object]] = [["id", "pi"], *[blank] * 49_999, ["a", "pi_1"]]
    book = workbook(*[rows] * sheets)
    for number in range(1, sheets + 1):
        member = f"xl/worksheets/sheet{number}.xml"
        cells = b'<mergeCell ref="A1:B50001"/>' * (3 if sheets == 1 else 1)
        book = changed(book, b"</sheetData>", b"</sheetData>" + cells, member)
    with pytest.raises(InputError, match="more than 200,000 merged cells"):
        files.take(book, "refunds.xlsx", sheet="Sheet1")


def test_an_ignored_column_may_hold_errors(files: Files) -> None:
    book = changed(workbook(ROWS), cell("E2", "x"), ERROR % b"E2")
    assert files.take(book, "refunds.xlsx", ignore_extra=True).ids == ["a", "b"]


@pytest.mark.parametrize("rows", [b"</sheetData>", b"</sheetData >"])
def test_a_formula_beside_the_cells_is_not_that_of_the_last_one(files: Files, rows: bytes) -> None:
    choices = (
        b"<extLst><ext><x14:formula1><xm:f>Lists!$A$1:$A$9</xm:f></x14:formula1></ext></extLst>"
    )
    book = changed(workbook(ROWS), cell("E3", "y"), b"")
    book = changed(book, cell("D3", "usd"), b'<c r="D3" s="1"/>')
    book = changed(book, b"</sheetData>", rows + choices)
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert (taken.ids, taken.errors) == (["a", "b"], [])


def test_errors_in_another_sheet_do_not_matter(files: Files) -> None:
    book = workbook([["x", "y", "z"], [1, 2, 3]], [["id", "pi", "amount"], ["a", "pi_1", ""]])
    book = changed(book, cell("C2", 3), ERROR % b"C2")
    assert files.take(book, "refunds.xlsx", sheet="Sheet2").requests[0].amount is None
    relations = "xl/_rels/workbook.xml.rels"
    absolute = changed(book, b'Target="worksheets/', b'Target="/xl/worksheets/', relations)
    assert files.take(absolute, "refunds.xlsx", sheet="Sheet2").requests[0].amount is None
    own = changed(absolute, cell("C2", ""), ERROR % b"C2", "xl/worksheets/sheet2.xml")
    assert files.take(own, "refunds.xlsx", sheet="Sheet2").codes == ["cell_error"]


def test_a_cell_without_a_result_is_found_at_the_end_and_in_later_blocks(files: Files) -> None:
    rows: list[list[object]] = [
        ["id", "pi", "amount"],
        *([f"r-{n}", "pi_1", n + 1] for n in range(20_000)),
    ]
    book = workbook(rows)
    for number in (2, 3_333, 9_000, 20_001):
        book = changed(book, cell(f"C{number}", number - 1), FORMULA % f"C{number}".encode())
    taken = files.take(book, "refunds.xlsx")
    assert [error.line for error in taken.errors] == [2, 3_333, 9_000, 20_001]
    assert {error.code for error in taken.errors} == {"cell_error"}


def test_a_header_without_a_value_is_not_a_known_column(files: Files) -> None:
    book = changed(workbook(ROWS), cell("C1", "amount"), ERROR % b"C1")
    with pytest.raises(Exception, match="'#ERROR' is not a known column"):
        files.take(book, "refunds.xlsx")


def test_rows_behind_a_filter_are_counted(files: Files) -> None:
    book = changed(workbook(ROWS), b'<row r="3">', b'<row r="3" spans="1:5" hidden="1">')
    for content, hidden in ((book, 1), (workbook(ROWS), 0)):
        with open_source(
            files.write(content, "refunds.xlsx"), ImportOptions(ignore_extra=True)
        ) as source:
            assert validate(source).summary.accepted == 2
            assert source.hidden_rows == hidden


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_part_compressed_as_in_other_zip_files_is_named(files: Files, kind: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(workbook(ROWS))) as book, zipfile.ZipFile(out, "w") as other:
        for name in book.namelist():
            other.writestr(name, book.read(name), kind)
    packed = out.getvalue()
    at = packed.index(b"[Content_Types].xml") + 40
    damaged = packed[:at] + b"\xff" * 9 + packed[at + 9 :]
    for content in (packed, damaged):
        with pytest.raises(InputError, match=r"its part '\[Content_Types\].xml' is compressed"):
            files.take(content, "refunds.xlsx", ignore_extra=True)


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("between", [0, 2])
def test_rows_of_formulas_without_a_result_below_the_last_value_are_refused(
    files: Files, empty: int, between: int
) -> None:
    book = workbook([[None] * empty + row for row in ROWS])
    number = 4 + between
    cells = b"".join(
        FORMULA % f"{chr(65 + empty + at)}{number}".encode() for at in range(len(HEADER) - 1)
    )
    row = f'<row r="{number}">'.encode() + cells + b"</row></sheetData>"
    taken = files.take(changed(book, b"</sheetData>", row), "refunds.xlsx", ignore_extra=True)
    assert taken.ids == ["a", "b"]
    assert {(error.line, error.code) for error in taken.errors} == {(number, "cell_error")}


def styled(*formats: str, books: bytes, codes: dict[int, str] | None = None) -> bytes:
    """The workbook with a part of styles: the number of a format each, and the codes of some."""
    own = "".join(
        f'<numFmt numFmtId="{number}" formatCode={quoteattr(code)}/>'
        for number, code in (codes or {}).items()
    )
    cells = "".join(f'<xf numFmtId="{each}"/>' if each else "<xf/>" for each in formats)
    styles = (
        f'<styleSheet><numFmts>{own}</numFmts><cellStyleXfs><xf numFmtId="2"/></cellStyleXfs>'
        f"<cellXfs>{cells}</cellXfs></styleSheet>"
    )
    out = io.BytesIO(books)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("xl/styles.xml", styles)
    return out.getvalue()


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("written", ["500", "500.0"])
@pytest.mark.parametrize("kind", ["", ' t="n"'])
def test_a_whole_number_shown_as_money_is_not_read_as_minor_units(
    files: Files, empty: int, written: str, kind: str
) -> None:
    amount = f"{chr(67 + empty)}2"
    shown = f'<c r="{amount}" s="2"{kind}><v>{written}</v></c>'.encode()
    book = changed(workbook([[None] * empty + row for row in ROWS]), cell(amount, 500), shown)
    book = styled("", "1", "44", books=book)
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert [(error.line, error.column, error.code) for error in taken.errors] == [
        (2, "amount", "amount_shown")
    ]
    assert taken.errors[0].value == "500"
    assert "--amount-unit major" in taken.errors[0].rule
    assert taken.ids == ["b"]
    major = files.take(book, "refunds.xlsx", ignore_extra=True, amount_unit="major")
    assert ([each.amount for each in major.requests], major.errors) == ([50000, 70000], [])
    assert "500" in files.result(book, name="refunds.xlsx", ignore_extra=True)


@pytest.mark.parametrize("written", ["failed_rows", "result"])
def test_an_amount_shown_as_money_is_refused_in_a_file_of_errors_or_results_too(
    files: Files, written: str
) -> None:
    book = changed(workbook(ROWS), cell("C2", 500), b'<c r="C2" s="1"><v>500</v></c>')
    book = changed(book, b'<c r="E2" ', b'<c r="E2" s="1" ')
    book = styled("", "44", books=book)
    again = getattr(files, written)(book, name="refunds.xlsx", ignore_extra=True)
    taken = files.take(again, "again.csv", ignore_extra=True)
    assert [error.column for error in taken.errors] == ["amount"]
    assert "a" not in taken.ids
    major = files.take(again, "again.csv", ignore_extra=True, amount_unit="major")
    assert (major.requests[0].amount, major.errors) == (50000, [])


@pytest.mark.parametrize("named", [{}, {"columns": (("refund_id", "order"),)}])
@pytest.mark.parametrize("written", ["failed_rows", "result"])
@pytest.mark.parametrize("held", [1234567890123456, 1.1, date(2026, 5, 1)])
def test_an_id_that_is_not_text_in_a_workbook_is_refused_in_a_file_of_errors_or_results_too(
    files: Files, held: object, written: str, named: dict[str, Any]
) -> None:
    book = workbook([["order" if named else "id", "pi", "amount"], [held, "pi_1", 500]])
    assert files.take(book, "refunds.xlsx", **named).ids == []
    again = getattr(files, written)(book, name="refunds.xlsx", **named)
    taken = files.take(again, "again.csv", **named)
    assert (taken.ids, taken.codes) == ([], ["refund_id"])


@pytest.mark.parametrize("written", ["failed_rows", "result"])
@pytest.mark.parametrize("held", [1234567890123456, 1.1, date(2026, 5, 1)])
def test_what_makes_an_id_and_is_not_text_makes_none_in_a_file_of_errors_or_results(
    files: Files, held: object, written: str
) -> None:
    whole_row: list[object] = ["1001", "pi_2", 700]
    book = workbook([["order", "pi", "amount"], [held, "pi_1", 500], whole_row])
    made: dict[str, Any] = {"id_from": ("order", "amount")}
    (whole,) = files.take(book, "refunds.xlsx", **made).ids
    again = getattr(files, written)(book, name="refunds.xlsx", **made)
    taken = files.take(again, "again.csv", **made)
    assert (taken.ids, taken.codes) == ([whole] if written == "result" else [], ["id_missing"])


@pytest.mark.parametrize("options", [{}, {"default_currency": "JPY"}])
def test_an_amount_shown_as_money_is_clear_in_a_currency_without_decimals(
    files: Files, options: dict[str, Any]
) -> None:
    rows: list[list[object]] = [["id", "pi", "amount", "currency"]]
    rows += [["a", "pi_1", 500, "" if options else "jpy"], ["b", "pi_2", 700, "usd"]]
    book = styled("5", books=workbook(rows))
    taken = files.take(book, "refunds.xlsx", **options)
    assert [(each.amount, each.currency) for each in taken.requests] == [(500, "jpy")]
    assert [(error.line, error.code) for error in taken.errors] == [(3, "amount_shown")]
    again = files.result(book, name="refunds.xlsx", **options)
    for unit in ("minor", "major"):
        taken = files.take(again, "again.csv", amount_unit=unit, **options)
        assert taken.requests[0].amount == 500
        assert (len(taken.errors), len(taken.requests)) == ((1, 1) if unit == "minor" else (0, 2))


@pytest.mark.parametrize("style", ["0", "1", "3"])
def test_a_whole_number_shown_as_one_is_read_as_minor_units(files: Files, style: str) -> None:
    shown = f'<c r="C2" s="{style}"><v>500</v></c>'.encode()
    book = styled("0", "3", "2", "164", books=workbook(ROWS), codes={164: '0" pieces"'})
    taken = files.take(changed(book, cell("C2", 500), shown), "refunds.xlsx", ignore_extra=True)
    assert ([each.amount for each in taken.requests], taken.errors) == ([500, 700], [])


def test_a_cell_that_names_no_style_has_the_first(files: Files) -> None:
    taken = files.take(styled("2", books=workbook(ROWS)), "refunds.xlsx", ignore_extra=True)
    assert [error.code for error in taken.errors] == ["amount_shown"] * 2


def test_a_number_shown_as_money_may_be_in_any_other_column(files: Files) -> None:
    rows: list[list[object]] = [["id", "pi", "amount"], [7, "pi_1", 500], ["b", "pi_2", "700"]]
    book = changed(workbook(rows), cell("A2", 7), b'<c r="A2" s="1"><v>7</v></c>')
    book = changed(book, b'<c r="C3" t="inlineStr">', b'<c r="C3" t="inlineStr" s="1">')
    taken = files.take(styled("", "2", books=book), "refunds.xlsx")
    assert (taken.ids, taken.errors) == (["7", "b"], [])


@pytest.mark.parametrize("options", [{}, {"default_currency": "JPY"}])
@pytest.mark.parametrize("unit", ["minor", "major"])
@pytest.mark.parametrize("style", ["9", "10", "164", "165"])
@pytest.mark.parametrize("held", [1050, 0.1])
def test_an_amount_shown_as_another_number_is_refused_in_every_unit(
    files: Files, style: str, unit: str, held: float, options: dict[str, Any]
) -> None:
    """Also in the files of errors and of results, which have no formats."""
    rows: list[list[object]] = [["id", "pi", "amount", "currency"]]
    rows += [["a", "pi_1", held, None if options else "usd"]]
    book = styled(style, books=workbook(rows), codes={164: r"0\.00", 165: "#,##0,"})
    how = {"amount_unit": unit, **options}
    taken = files.take(book, "refunds.xlsx", **how)
    assert (taken.ids, taken.codes) == ([], ["amount_shown"])
    assert taken.errors[0].value == str(held)
    for written in (files.failed_rows, files.result):
        again = written(book, name="refunds.xlsx", **how)
        assert str(held) in again
        for each in ("minor", "major"):
            taken = files.take(again, "again.csv", amount_unit=each, **options)
            assert (taken.ids, [error.column for error in taken.errors]) == ([], ["amount"])


def test_a_number_shown_as_another_one_may_be_in_any_other_column(files: Files) -> None:
    rows: list[list[object]] = [["id", "pi", "amount", "rate"], [7, "pi_1", "500", 0.5]]
    book = styled("9", books=workbook(rows))
    taken = files.take(book, "refunds.xlsx", ignore_extra=True)
    assert (taken.ids, taken.errors) == (["7"], [])
    comma: dict[str, Any] = {"amount_unit": "major", "decimal": "comma", "default_currency": "usd"}
    again = files.result(book, name="refunds.xlsx", ignore_extra=True, **comma)
    assert '"0,5"' in again
    named: dict[str, Any] = {"columns": (("metadata.rate", "rate"),)}
    assert files.take(book, "refunds.xlsx", **named).codes == ["not_whole"]


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        ("xl/styles.xml", b"<cellXfs "),
        ("xl/styles.xml", b"<numFmt "),
        ("xl/workbook.xml", b"<sheet "),
        ("xl/worksheets/sheet1.xml", b"<c "),
    ],
)
def test_a_workbook_of_tags_without_an_end_is_refused_soon(
    files: Files, member: str, wrong: bytes
) -> None:
    book = styled("", books=workbook(ROWS))
    with zipfile.ZipFile(io.BytesIO(book)) as before:
        content = before.read(member)
    book = changed(book, content, wrong * 20_000, member)
    began = time.process_time()
    with suppress(InputError):
        files.take(book, "refunds.xlsx", ignore_extra=True)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("member", ["xl/workbook.xml", "xl/_rels/workbook.xml.rels"])
def test_a_workbook_with_a_long_word_in_a_tag_is_read_soon(files: Files, member: str) -> None:
    book = workbook(ROWS)
    with zipfile.ZipFile(io.BytesIO(book)) as before:
        content = before.read(member)
    tag = b"<sheet " if member == "xl/workbook.xml" else b"<Relationship "
    book = changed(book, content, content.replace(tag, tag + b"a" * 50_000 + b" ", 1), member)
    began = time.process_time()
    with suppress(InputError):
        files.take(book, "refunds.xlsx", ignore_extra=True)
    assert time.process_time() - began < 5
