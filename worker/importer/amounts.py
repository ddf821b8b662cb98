"""Amounts in a file: whole minor units, or major units with the currency's own decimals."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from worker.model.currencies import UNEQUAL, AmountUnit, decimals_of
from worker.model.request import MAX_AMOUNT

if TYPE_CHECKING:
    from worker.importer.options import DecimalMark

_DIGITS: Final = re.compile(r"[0-9]+")
_NOT_DIGITS: Final = re.compile(r"[^0-9]")
_SPACES: Final = " \u00a0\u202f"
# The groups are the whole part, its thousands separator, and the decimals.
_POINT: Final = re.compile(r"([0-9]+)()(?:\.([0-9]+))?")
_COMMA: Final = re.compile(
    rf"([0-9]+|[1-9][0-9]{{0,2}}(?:([.{_SPACES}])[0-9]{{3}})(?:\2[0-9]{{3}})*)(?:,([0-9]+))?"
)
_NEGATIVE: Final = re.compile(r"[-\u2212(].*")
_EXPONENTIAL: Final = re.compile(r"[0-9.,+]+[eE][+-]?[0-9]+")
_ZERO_DECIMALS: Final = re.compile(r"[0-9]+\.0*")
_OTHER: Final = re.compile(r"[^0-9.,'+\s]")
_TOO_LONG: Final = 40
_GROUP: Final = 3


class AmountProblem(NamedTuple):
    """Why a text is not an amount: a stable code, and the rule with a hint."""

    code: str
    rule: str


def parse_amount(
    text: str, unit: AmountUnit, currency: str | None, decimal: DecimalMark = "point"
) -> int | AmountProblem:
    """Return an amount in minor units, or a problem if the text is ambiguous or not an amount."""
    if unit == "minor":
        if _DIGITS.fullmatch(text) is None:
            return _shape_problem(text, unit, decimal)
        return _in_range(int(text) if len(text) < _TOO_LONG else MAX_AMOUNT + 1)
    match = (_COMMA if decimal == "comma" else _POINT).fullmatch(text)
    if match is None:
        return _shape_problem(text, unit, decimal)
    if currency is None:
        return AmountProblem(
            "amount_currency",
            "an amount in major units needs a currency: fill its cell, or use --currency",
        )
    exponent = decimals_of(currency.lower())
    if exponent is None:
        return _currency_problem(currency)
    whole, part = _NOT_DIGITS.sub("", match[1]), match[3] or ""
    if len(part) > exponent:
        has = {0: "no decimals", 1: "1 decimal"}.get(exponent, f"{exponent} decimals")
        return AmountProblem(
            "amount_decimals", f"{currency.upper()} has {has}, but this amount has {len(part)}"
        )
    return _in_range(
        int(whole + part.ljust(exponent, "0")) if len(text) < _TOO_LONG else MAX_AMOUNT + 1
    )


def grouping_of(text: str) -> str | None:
    """Return the thousands separator of an amount with a decimal comma.

    ".", " ", or "" if it has none.

    None if the text has too few digits to show it, or is not such an amount.
    """
    match = _COMMA.fullmatch(text)
    if match is None or len(match[1]) <= _GROUP:
        return None
    return "." if match[2] == "." else " " if match[2] else ""


def _in_range(amount: int) -> int | AmountProblem:
    if amount == 0:
        return AmountProblem("amount_zero", "must be more than zero")
    if amount > MAX_AMOUNT:
        return AmountProblem("amount_too_large", f"must be at most {MAX_AMOUNT} minor units")
    return amount


def _currency_problem(currency: str) -> AmountProblem:
    name = currency.upper()
    why = (
        "ISO 4217 and payment providers count its decimals differently"
        if currency.lower() in UNEQUAL
        else "its number of decimals is not known"
    )
    rule = (
        f"{name} cannot be read in major units because {why}: put its amounts in minor units, in a"
        " separate file"
    )
    return AmountProblem("amount_currency", rule)


def _shape_problem(text: str, unit: AmountUnit, decimal: DecimalMark) -> AmountProblem:
    wanted = "whole minor units in digits only, such as 1050"
    if unit == "major":
        wanted = (
            "digits with a comma, such as 10,50"
            if decimal == "comma"
            else "digits with a point, such as 10.50"
        )
    if any(character.isdigit() and not character.isascii() for character in text):
        return AmountProblem(
            "amount_digits", f"must be written with the digits 0 to 9: use {wanted}"
        )
    if _NEGATIVE.fullmatch(text):
        return AmountProblem(
            "amount_negative", "must not be negative: a refund is a positive amount"
        )
    if _EXPONENTIAL.fullmatch(text):
        return AmountProblem("amount_exponent", f"must not be in scientific notation: use {wanted}")
    if _OTHER.search(text):
        return AmountProblem(
            "amount_format", f"must be only a number, without a currency: use {wanted}"
        )
    if text != text.strip() or (
        decimal == "point" and any(character.isspace() for character in text)
    ):
        return AmountProblem("amount_spaces", f"must not contain spaces: use {wanted}")
    return _mark_problem(text, unit, decimal, wanted)


def _mark_problem(text: str, unit: AmountUnit, decimal: DecimalMark, wanted: str) -> AmountProblem:
    if decimal == "comma":
        rule = (
            "must have at most one comma, before the decimals, and groups of three digits as in"
            f" 1.234,50: use {wanted}"
        )
        return AmountProblem("amount_separator", f"{rule}; the importer does not guess")
    if "," in text or "'" in text or text.count(".") > 1:
        rule = (
            f"must have no thousands separator and no decimal comma: use {wanted}; the importer"
            " does not guess"
        )
        if _COMMA.fullmatch(text):
            unit_too = (
                "--amount-unit major --decimal comma" if unit == "minor" else "--decimal comma"
            )
            rule += f"; if the comma is the decimal mark in the whole file, use {unit_too}"
        return AmountProblem("amount_separator", rule)
    if unit == "minor" and _ZERO_DECIMALS.fullmatch(text):
        return AmountProblem("amount_decimal", f"must have no decimal point: use {wanted}")
    if unit == "minor" and _POINT.fullmatch(text):
        return AmountProblem(
            "amount_decimal",
            f"must have no decimal point: use {wanted}; if amounts are in major units, use"
            " --amount-unit major",
        )
    return AmountProblem("amount_format", f"must be {wanted}")
