"""One cell: whether it is blank, its text, and its form in a file that a spreadsheet may open."""

from __future__ import annotations

import re
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Final, Self

from worker.model.currencies import decimals_of

# Characters that begin a formula in a spreadsheet, or that it drops before one. East Asian
# keyboards type wide forms.
_FORMULA: Final = "=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20"
_NEEDS_GUARD: Final = re.compile(f"'*[{_FORMULA}]")
_GUARDED: Final = re.compile(f"'+[{_FORMULA}]")

BLANKS: Final = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f"
    " \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\x1a\u200b\u2060\ufeff"
)
"""Characters that a blank cell may hold.

All white space, the end mark of DOS, and zero-width marks.
"""


class _Unread:
    """The value of a workbook's cell that is not blank but has no value.

    An error, or a formula without a result.
    """

    def __repr__(self) -> str:
        return "#ERROR"


UNREAD: Final = _Unread()


class _Merged:
    """The value of a workbook's blank cell that shows the value of another, merged with it."""

    def __repr__(self) -> str:
        return "#MERGED"


MERGED: Final = _Merged()


class Priced(int):
    """A whole number that a workbook shows with decimals or a currency, such as $500.00."""


class Altered:
    """A number of a workbook that is shown as another one, such as 1050 as 10.50 or as 1."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __repr__(self) -> str:
        """Return the number that the cell holds."""
        return str(self.number)


class Rounded(float):
    """A number of JSON with more digits than a float holds; it is shown as it was written."""

    _text: str

    def __new__(cls, text: str) -> Self:
        """Return the nearest float, which keeps the text."""
        number = super().__new__(cls, text)
        number._text = text
        return number

    def __repr__(self) -> str:
        """Return the number as it was written."""
        return self._text


TIMES: Final = (date, time, timedelta)
"""What a workbook's reader makes of a cell that is formatted as a date or a time."""
# A spreadsheet keeps 15 digits of a number, so a longer one has already lost its last digits.
_EXACT: Final = 10**15


def guarded(text: str) -> str:
    """Return the text, with an apostrophe before it if a spreadsheet would run it as a formula.

    See `unguarded`.
    """
    return f"'{text}" if _NEEDS_GUARD.match(text) else text


def unguarded(text: str) -> str:
    """Return the text that `guarded` got.

    A text that `guarded` cannot have written is returned unchanged.
    """
    return text[1:] if _GUARDED.match(text) else text


def spreadsheet_value(value: object) -> object:
    """Return a whole number of a workbook as an integer, and every other value as it is."""
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value


def is_unclear(value: object, currency: str | None) -> bool:
    """Return whether an amount in minor units may be meant in major ones, as it is shown.

    In a currency without decimals both are the same.
    """
    return isinstance(value, Priced) and decimals_of((currency or "").lower()) != 0


def amount_problem(
    value: object, currency: str | None, *, is_minor: bool
) -> tuple[str, str] | None:
    """Return the code and the rule if a value cannot be read as an amount in its unit."""
    if isinstance(value, Altered):
        return (
            "amount_shown",
            (
                "is shown as another number, or not at all, in the workbook: format the column as"
                " numbers without percent, thousands or added characters, and check each amount"
            ),
        )
    if not (is_minor and is_unclear(value, currency)):
        return cell_problem(value)
    return (
        "amount_shown",
        (
            "is shown with decimals or a currency in the workbook: use --amount-unit major if"
            " amounts are in major units, else format the column as whole numbers without a"
            " currency"
        ),
    )


def decimal_text(number: float) -> str | None:
    """Return a number of a workbook or of JSON in plain decimals, as it was written.

    None if it has lost digits.
    """
    if number.is_integer():
        return str(int(number)) if abs(number) < _EXACT else None
    return format(Decimal(repr(number)), "f")


def is_blank(value: object) -> bool:
    """Return whether a cell holds nothing visible."""
    return value is None or (isinstance(value, str) and not value.strip(BLANKS))


def text_of(value: object) -> str | None:
    """Return a cell's text for a text file: None if blank, the plain form of any other value."""
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else str(value)


def cell_problem(value: object) -> tuple[str, str] | None:
    """Return the code and the rule if a value cannot be read as text, else None.

    Text and whole numbers can be. A number with a fraction, or one so long that it was rounded,
    cannot: the text that was meant is unknown.
    """
    if isinstance(value, Altered):
        value = value.number
    if value is None or isinstance(value, str | Priced) or type(value) is int:
        return None
    if value is UNREAD:
        return (
            "cell_error",
            (
                "has an error such as #N/A, or a formula without a result: fix it in the workbook"
                " and save that"
            ),
        )
    if value is MERGED:
        return "cell_merged", "is part of a merged cell: unmerge it, and fill each cell"
    if isinstance(value, Rounded):
        return "not_exact", "has more digits than can be read exactly: write it as text"
    if isinstance(value, float):
        if value.is_integer() and abs(value) >= _EXACT:
            return (
                "not_exact",
                "a number this long has lost its last digits: format the column as text",
            )
        return (
            "not_whole",
            (
                "must be a whole number or text: write amounts in whole minor units, and other"
                " numbers as text"
            ),
        )
    if isinstance(value, TIMES):
        return (
            "cell_type",
            "is a date or a time in the workbook: format the column as text, and enter it again",
        )
    return "cell_type", "must be text or a whole number"
