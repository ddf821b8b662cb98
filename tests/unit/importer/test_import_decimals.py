"""Amounts in major units: currencies with known decimals, decimal marks, and the numbers of a
workbook.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.files import Files, workbook
from worker.errors import InputError
from worker.importer.amounts import AmountProblem, parse_amount
from worker.importer.options import ImportOptions
from worker.model.currencies import decimals_of

NO_DECIMALS = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF UGX VND VUV XAF XOF XPF".lower().split()
THREE_DECIMALS = "BHD JOD KWD OMR TND".lower().split()
DISPUTED = ["mga", "isk", "huf", "twd", "ugx", "iqd", "lyd", "clf", "uyi", "uyw"]
EUROS: dict[str, Any] = {"amount_unit": "major", "decimal": "comma", "default_currency": "eur"}


@pytest.mark.parametrize("currency", [*DISPUTED, "xau", "xxx", "abc", "dem"])
def test_currencies_with_disputed_decimals_are_read_in_minor_units_only(currency: str) -> None:
    found = parse_amount("5", "major", currency.upper())
    assert isinstance(found, AmountProblem)
    assert (found.code, "minor units" in found.rule) == ("amount_currency", True)
    assert parse_amount("5", "minor", currency) == 5


def test_currencies_are_read_with_the_decimals_that_providers_count() -> None:
    found = {decimals: {c for c in names if decimals_of(c) == decimals} for decimals, names in (
        (0, NO_DECIMALS), (3, THREE_DECIMALS), (2, ["usd", "eur", "gbp", "cny", "hkd", "pln"]),
    )}  # fmt: skip
    assert found[0] == set(NO_DECIMALS) - {"mga", "ugx"}
    assert found[3] == set(THREE_DECIMALS)
    assert found[2] == {"usd", "eur", "gbp", "cny", "hkd", "pln"}


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("10,50", 1050),
        ("10,5", 1050),
        ("10", 1000),
        ("1234,50", 123450),
        ("1.234,50", 123450),
        ("1 234,50", 123450),
        ("1\u00a0234\u00a0567,50", 123456750),
        ("1\u202f234,50", 123450),
        ("1.234", 123400),
        ("0,01", 1),
    ],
)
def test_a_decimal_comma_is_read_if_the_option_says_so(
    text: str, amount: int, files: Files
) -> None:
    assert files.take(f"id;pi;amount\na;pi_1;{text}\n", **EUROS).requests[0].amount == amount


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("10.50", "amount_separator"),
        ("1,234.50", "amount_separator"),
        ("1.23,50", "amount_separator"),
        ("1.234 567,50", "amount_separator"),
        ("0.123", "amount_separator"),
        ("1.234.56", "amount_separator"),
        ("1,2,3", "amount_separator"),
        ("10,", "amount_separator"),
        ("1'234,50", "amount_separator"),
        ("1,234", "amount_decimals"),
        (" 10,50", "amount_spaces"),
        ("10,50 €", "amount_format"),
        ("-10,50", "amount_negative"),
        ("1,5e3", "amount_exponent"),
    ],
)
def test_with_a_decimal_comma_ambiguous_amounts_are_refused(
    text: str, code: str, files: Files
) -> None:
    assert files.take(f"id;pi;amount\na;pi_1;{text}\n", **EUROS).codes == [code]


@pytest.mark.parametrize(
    "amounts",
    [
        ("1.234,50", "1 234,50"),
        ("1.234,50", "1234,50"),
        ("1234,50", "1 234,50"),
        ("1.234", "1234,5"),
    ],
)
def test_a_file_with_two_ways_to_write_thousands_is_refused(
    amounts: tuple[str, str], files: Files
) -> None:
    first, second = amounts
    text = f"id;pi;amount\na;pi_1;10,50\nb;pi_2;{first}\nc;pi_3;999,99\nd;pi_4;{second}\n"
    with pytest.raises(InputError, match=r"line 5, column 3: .*line 3.*does not guess"):
        files.take(text, **EUROS)


def test_a_decimal_comma_without_the_option_is_refused_with_a_hint(files: Files) -> None:
    text = "id;pi;amount\na;pi_1;10,50\nb;pi_2;1.234,50\n"
    for options in ({"amount_unit": "major", "default_currency": "eur"}, {}):
        errors = files.take(text, **options).errors
        assert [error.code for error in errors] == ["amount_separator"] * 2
        assert all("--decimal comma" in error.rule for error in errors)
        assert all(("--amount-unit major" in error.rule) is (not options) for error in errors)


def test_a_decimal_comma_with_minor_units_is_refused() -> None:
    for options in ({"decimal": "comma"}, {"decimal": "both", "amount_unit": "major"}):
        with pytest.raises(InputError):
            ImportOptions(**options)  # type: ignore[arg-type]  # what a caller may get wrong


@pytest.mark.parametrize("decimal", ["point", "comma"])
@pytest.mark.parametrize(
    ("number", "currency", "amount"),
    [
        (10.5, "usd", 1050),
        (10.0, "usd", 1000),
        (0.07, "usd", 7),
        (1234.56, "eur", 123456),
        (9999999.99, "usd", 999999999),
        (12.345, "kwd", 12345),
        (500.0, "jpy", 500),
        (12345.0, "usd", 1234500),
    ],
)
def test_a_number_in_a_cell_is_read_by_its_exact_decimals(
    number: float, currency: str, amount: int, decimal: str, files: Files
) -> None:
    book = workbook([["id", "pi", "amount", "currency"], ["a", "pi_1", number, currency]])
    line = json.dumps({"id": "a", "pi": "pi_1", "amount": number, "currency": currency})
    for content, name in ((book, "refunds.xlsx"), (line + "\n", "refunds.jsonl")):
        taken = files.take(content, name, amount_unit="major", decimal=decimal)
        assert ([each.amount for each in taken.requests], taken.errors) == ([amount], [])


@pytest.mark.parametrize(
    ("number", "currency"),
    [
        (0.1 + 0.2, "usd"),
        (10.505, "usd"),
        (1.1, "jpy"),
        (1e-7, "usd"),
        (12.3456, "kwd"),
        (4.35 * 100, "usd"),
    ],
)
def test_a_number_more_exact_than_its_currency_is_refused(
    number: float, currency: str, files: Files
) -> None:
    book = workbook([["id", "pi", "amount", "currency"], ["a", "pi_1", number, currency]])
    (error,) = files.take(book, "refunds.xlsx", amount_unit="major").errors
    assert (error.code, error.line, "round it" in error.rule) == ("amount_decimals", 2, True)


def test_numbers_in_cells_have_no_thousands_to_disagree_with(files: Files) -> None:
    rows: list[list[object]] = [
        ["id", "pi", "amount"],
        ["a", "pi_1", 1234],
        ["b", "pi_2", "1.234,50"],
    ]
    rows += [["c", "pi_3", 5678.5], ["d", "pi_4", "2.000,00"]]
    taken = files.take(workbook(rows), "refunds.xlsx", **EUROS)
    assert [each.amount for each in taken.requests] == [123400, 123450, 567850, 200000]


def test_a_number_with_decimals_in_minor_units_is_refused_with_a_hint(files: Files) -> None:
    book = workbook([["id", "pi", "amount"], ["a", "pi_1", 10.5], ["b", "pi_2", 1e15 + 0.5]])
    found = files.take(book, "refunds.xlsx").errors
    assert [error.code for error in found] == ["not_whole", "not_whole"]
    assert "--amount-unit major" in found[0].rule


@pytest.mark.parametrize("decimal", ["point", "comma"])
def test_a_workbooks_result_is_read_as_the_same_amounts(decimal: str, files: Files) -> None:
    options = EUROS | {"decimal": decimal}
    book = workbook(
        [["id", "pi", "amount"], ["a", "pi_1", 10.5], ["b", "pi_2", 7], ["c", "pi_3", 0.07]]
    )
    before = files.take(book, "refunds.xlsx", **options)
    result = files.result(book, name="refunds.xlsx", **options)
    assert len(before.requests) == 3
    assert files.take(result, "result.csv", **options).requests == before.requests


@pytest.mark.parametrize(
    "number", ["10.999999999999999999", "11.0000000000000000001", "1e-400", f"1e-{'9' * 30}"]
)
def test_a_number_of_json_that_would_be_rounded_is_refused(number: str, files: Files) -> None:
    line = f'{{"id": "a", "pi": "pi_1", "currency": "usd", "amount": {number}}}\n'
    taken = files.take(line, "refunds.jsonl", amount_unit="major")
    assert (taken.codes, taken.requests) == (["not_exact"], [])
    assert taken.errors[0].value == number
    unused = f'{{"id": "a", "pi": "pi_1", "amount": 10.50000000000000000000, "score": {number}}}\n'
    options: Any = {"amount_unit": "major", "default_currency": "usd", "ignore_extra": True}
    assert [each.amount for each in files.take(unused, "b.jsonl", **options).requests] == [1050]
    assert json.loads(files.result(unused, name="b.jsonl", **options))["id"] == "a"


@pytest.mark.parametrize("written", ["failed_rows", "result"])
def test_a_rounded_number_is_refused_in_a_file_of_errors_or_results_too(
    files: Files, written: str
) -> None:
    line = '{"id": "a", "pi": "pi_1", "currency": "usd", "amount": 10.999999999999999999}\n'
    again = getattr(files, written)(line, name="refunds.jsonl", amount_unit="major")
    assert "10.999999999999999999" in again
    taken = files.take(again, "again.jsonl", amount_unit="major")
    assert ([error.column for error in taken.errors], taken.requests) == (["amount"], [])


def test_a_rounded_number_of_the_metadata_is_written_as_it_was(files: Files) -> None:
    line = '{"id": "a", "pi": "pi_1", "amount": 5, "metadata": {"n": 1234567890123456789.5}}\n'
    assert files.take(line, "refunds.jsonl").codes == ["not_exact"]
    again = json.loads(files.failed_rows(line, name="refunds.jsonl"))
    assert again["metadata"] == {"n": "1234567890123456789.5"}
