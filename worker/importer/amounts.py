"""Amounts as a file states them: whole minor units, or major units with the currency's own exponent."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from worker.request import MAX_AMOUNT

if TYPE_CHECKING:
    from worker.importer.options import AmountUnit

# ISO 4217: how many decimals a currency has; every other one has two.
_EXPONENTS: Final = {
    "bif": 0, "clp": 0, "djf": 0, "gnf": 0, "isk": 0, "jpy": 0, "kmf": 0, "krw": 0, "pyg": 0, "rwf": 0, "ugx": 0,
    "uyi": 0, "vnd": 0, "vuv": 0, "xaf": 0, "xof": 0, "xpf": 0,
    "bhd": 3, "iqd": 3, "jod": 3, "kwd": 3, "lyd": 3, "omr": 3, "tnd": 3,
    "clf": 4, "uyw": 4,
}  # fmt: skip
# Metals, bonds, test codes: ISO 4217 gives them no minor unit.
_NO_MINOR_UNIT: Final = frozenset(
    {"xag", "xau", "xba", "xbb", "xbc", "xbd", "xdr", "xpd", "xpt", "xsu", "xts", "xua", "xxx"}
)

_DIGITS: Final = re.compile(r"[0-9]+")
_MAJOR: Final = re.compile(r"[0-9]+(?:\.([0-9]+))?")
_NEGATIVE: Final = re.compile(r"[-\u2212(].*")
_EXPONENTIAL: Final = re.compile(r"[0-9.,+]+[eE][+-]?[0-9]+")
_ZERO_DECIMALS: Final = re.compile(r"[0-9]+\.0*")
_TOO_LONG: Final = 40


class AmountProblem(NamedTuple):
    """Why a text is no amount: a stable code, and the rule with a hint."""

    code: str
    rule: str


def exponent_of(currency: str) -> int | None:
    """Return how many decimals a currency has by ISO 4217, None if it has no minor unit."""
    return None if currency in _NO_MINOR_UNIT else _EXPONENTS.get(currency, 2)


def parse_amount(text: str, unit: AmountUnit, currency: str | None) -> int | AmountProblem:
    """Return minor units; nothing is guessed, so what could be read in two ways is a problem."""
    if unit == "minor":
        if _DIGITS.fullmatch(text) is None:
            return _shape_problem(text, unit)
        return _in_range(int(text) if len(text) < _TOO_LONG else MAX_AMOUNT + 1)
    match = _MAJOR.fullmatch(text)
    if match is None:
        return _shape_problem(text, unit)
    if currency is None:
        return AmountProblem("amount_currency", "an amount in major units needs a currency: fill its cell or state one")
    exponent = exponent_of(currency.lower())
    if exponent is None:
        return AmountProblem("amount_currency", f"{currency.upper()} has no minor unit by ISO 4217")
    decimals = len(match[1] or "")
    if decimals > exponent:
        has = {0: "no decimals", 1: "1 decimal"}.get(exponent, f"{exponent} decimals")
        return AmountProblem("amount_decimals", f"{currency.upper()} has {has}, and this has {decimals}")
    if len(text) >= _TOO_LONG:
        return _in_range(MAX_AMOUNT + 1)
    return _in_range(int(Decimal(text).scaleb(exponent)))


def _in_range(amount: int) -> int | AmountProblem:
    if amount == 0:
        return AmountProblem("amount_zero", "must be more than zero; a blank cell asks for all that is left")
    if amount > MAX_AMOUNT:
        return AmountProblem("amount_too_large", f"must be at most {MAX_AMOUNT} minor units")
    return amount


def _shape_problem(text: str, unit: AmountUnit) -> AmountProblem:
    wanted = "minor units in digits alone, such as 1050" if unit == "minor" else "digits with a point, such as 10.50"
    if text != text.strip() or any(character.isspace() for character in text):
        return AmountProblem("amount_spaces", f"must hold no spaces: {wanted}")
    if not text.isascii() and any(character.isdigit() for character in text) and not _NEGATIVE.match(text):
        return AmountProblem("amount_digits", f"must be written with the digits 0 to 9: {wanted}")
    if _NEGATIVE.fullmatch(text):
        return AmountProblem("amount_negative", "must not be negative: a refund is a positive amount")
    if _EXPONENTIAL.fullmatch(text):
        return AmountProblem("amount_exponent", f"must not be in scientific notation: {wanted}")
    if "," in text or "'" in text or text.count(".") > 1:
        return AmountProblem(
            "amount_separator", f"must have no thousands separator and no decimal comma: {wanted}; nothing is guessed"
        )
    if unit == "minor" and _ZERO_DECIMALS.fullmatch(text):
        return AmountProblem("amount_decimal", f"must have no decimal point: {wanted}")
    if unit == "minor" and _MAJOR.fullmatch(text):
        return AmountProblem(
            "amount_decimal",
            f"must have no decimal point: {wanted}, or say that amounts are in major units (--amount-unit major)",
        )
    return AmountProblem("amount_format", f"must be {wanted}")
