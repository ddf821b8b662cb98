"""Amounts in a file: which are read, and which are refused because they are ambiguous."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.files import Files
from worker.importer.amounts import AmountProblem, parse_amount
from worker.model.currencies import decimals_of, in_major
from worker.model.request import MAX_AMOUNT


@given(st.integers(min_value=1, max_value=MAX_AMOUNT))
def test_whole_minor_units_are_read_unchanged(amount: int) -> None:
    assert parse_amount(str(amount), "minor", None) == amount


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("0", "amount_zero"),
        ("000", "amount_zero"),
        ("-5", "amount_negative"),
        ("\u22125", "amount_negative"),
        ("(5)", "amount_negative"),
        ("1e3", "amount_exponent"),
        ("1E+3", "amount_exponent"),
        ("+5", "amount_format"),
        (" 5", "amount_spaces"),
        ("5\u00a0000", "amount_spaces"),
        (" ", "amount_spaces"),
        ("\u0665\u0660\u0660", "amount_digits"),
        ("\uff15\uff10\uff10", "amount_digits"),
        ("5²", "amount_digits"),
        ("5.0", "amount_decimal"),
        ("5.", "amount_decimal"),
        ("12.34", "amount_decimal"),
        ("1,50", "amount_separator"),
        ("1.000,50", "amount_separator"),
        ("1,000.50", "amount_separator"),
        ("1'000", "amount_separator"),
        ("0x1F", "amount_format"),
        ("1_000", "amount_format"),
        ("$5", "amount_format"),
        ("nan", "amount_format"),
        (str(MAX_AMOUNT + 1), "amount_too_large"),
        ("9" * 5000, "amount_too_large"),
    ],
)
def test_a_text_that_is_not_whole_minor_units_has_its_own_error_code(text: str, code: str) -> None:
    problem = parse_amount(text, "minor", None)
    assert isinstance(problem, AmountProblem)
    assert problem.code == code
    assert problem.rule


@pytest.mark.parametrize(
    ("text", "currency", "amount"),
    [
        ("10.50", "usd", 1050),
        ("10.5", "USD", 1050),
        ("10", "eur", 1000),
        ("0.01", "usd", 1),
        ("500", "jpy", 500),
        ("12.345", "kwd", 12345),
        ("1.000", "kwd", 1000),
        ("10000000000.00", "usd", MAX_AMOUNT),
    ],
)
def test_major_units_become_minor_units_by_the_currencys_exponent(
    text: str, currency: str, amount: int
) -> None:
    assert parse_amount(text, "major", currency) == amount


@pytest.mark.parametrize(
    ("text", "currency", "code"),
    [
        ("12.345", "usd", "amount_decimals"),
        ("1.000", "usd", "amount_decimals"),
        ("10.500", "usd", "amount_decimals"),
        ("500.0", "jpy", "amount_decimals"),
        ("1.0000", "kwd", "amount_decimals"),
        ("10.50", None, "amount_currency"),
        ("10 USD", "usd", "amount_format"),
        ("€10.50", "eur", "amount_format"),
        ("1.000,50", "eur", "amount_separator"),
        ("1,50", "eur", "amount_separator"),
        ("1,000.50", "usd", "amount_separator"),
        ("1.000.000", "eur", "amount_separator"),
        ("1e3", "usd", "amount_exponent"),
        ("-1.00", "usd", "amount_negative"),
        ("0.00", "usd", "amount_zero"),
        (".50", "usd", "amount_format"),
        ("5.", "usd", "amount_format"),
        ("10000000000.01", "usd", "amount_too_large"),
        ("1" * 5000, "usd", "amount_too_large"),
    ],
)
def test_ambiguous_major_units_are_refused(text: str, currency: str | None, code: str) -> None:
    problem = parse_amount(text, "major", currency)
    assert isinstance(problem, AmountProblem)
    assert problem.code == code


@given(st.integers(min_value=1, max_value=MAX_AMOUNT), st.sampled_from(["usd", "jpy", "kwd"]))
def test_minor_units_survive_a_round_trip_through_major_units(amount: int, currency: str) -> None:
    exponent = decimals_of(currency) or 0
    whole, rest = divmod(amount, 10**exponent)
    text = f"{whole}.{rest:0{exponent}}" if exponent else str(whole)
    assert parse_amount(text, "major", currency) == amount
    assert in_major(amount, currency) == text


@given(st.integers(min_value=1, max_value=MAX_AMOUNT), st.sampled_from("., \u00a0\u202f"))
def test_a_decimal_comma_and_thousands_survive_a_round_trip(amount: int, group: str) -> None:
    text = (in_major(amount, "eur", group=",") or "").replace(",", "_").replace(".", ",")
    text = text.replace("_", "" if group == "," else group)
    assert parse_amount(text, "major", "eur", "comma") == amount


@given(st.text(max_size=20))
def test_any_text_is_an_amount_in_range_or_a_problem_with_a_code(text: str) -> None:
    for unit, decimal in (("minor", "point"), ("major", "point"), ("major", "comma")):
        found = parse_amount(text, unit, "usd", decimal)  # type: ignore[arg-type]  # literals all
        assert isinstance(found, AmountProblem) or 0 < found <= MAX_AMOUNT


def test_a_blank_amount_asks_for_all_that_is_left_and_is_in_no_sum(files: Files) -> None:
    taken = files.take("refund_id,pi,amount,currency\na,pi_1,,usd\nb,pi_2,700,usd\n")
    assert [request.amount for request in taken.requests] == [None, 700]
    total = taken.summary.totals["usd"]
    assert (total.rows, total.amount, total.all_remaining) == (2, 700, 1)


def test_major_units_use_the_default_currency_for_a_blank_cell(files: Files) -> None:
    text = "refund_id,pi,amount,currency\na,pi_1,1.50,\nb,pi_2,150,JPY\n"
    taken = files.take(text, amount_unit="major", default_currency="USD")
    assert [(request.amount, request.currency) for request in taken.requests] == [
        (150, "usd"),
        (150, "jpy"),
    ]


def test_a_column_of_minor_units_is_refused_with_unit_major(files: Files) -> None:
    taken = files.take("refund_id,pi,amount_minor\na,pi_1,150\n")
    assert taken.requests[0].amount == 150
    with pytest.raises(Exception, match=r"line 1, column 3.*minor units"):
        files.take("refund_id,pi,amount_minor\na,pi_1,150\n", amount_unit="major")
