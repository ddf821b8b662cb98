"""One cell: blank or not, as text, and as a spreadsheet may be shown it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

# What a spreadsheet runs as a formula, or drops to find one; the wide forms are typed by East Asian keyboards.
_FORMULA: Final = "=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20"
_NEEDS_GUARD: Final = re.compile(f"'*[{_FORMULA}]")
_GUARDED: Final = re.compile(f"'+[{_FORMULA}]")

BLANKS: Final = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\x1a\u200b\u2060\ufeff"
)
"""Characters that a blank cell may hold: every white space, the end mark of DOS, and marks without width."""


class _Unread:
    """What stands for a cell of a workbook that has no value and is not blank: an error, or a formula not computed."""

    def __repr__(self) -> str:
        return "#ERROR"


UNREAD: Final = _Unread()

# A spreadsheet keeps 15 digits of a number: a longer one has lost its last digits already.
_EXACT: Final = 10**15


def guarded(text: str) -> str:
    """Return text that no spreadsheet runs as a formula; `unguarded` gives the very same text back."""
    return f"'{text}" if _NEEDS_GUARD.match(text) else text


def unguarded(text: str) -> str:
    """Return what `guarded` was given; text that it cannot have written is returned as it is."""
    return text[1:] if _GUARDED.match(text) else text


def spreadsheet_value(value: object) -> object:
    """Return a whole number of a workbook as an integer, and every other value as it is."""
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value


def decimal_text(number: float) -> str | None:
    """Return a number of a workbook or of JSON in plain decimals, as it was written; None if digits of it are lost."""
    if number.is_integer():
        return str(int(number)) if abs(number) < _EXACT else None
    return format(Decimal(repr(number)), "f")


def is_blank(value: object) -> bool:
    """Tell whether a cell holds nothing that can be seen."""
    return value is None or (isinstance(value, str) and not value.strip(BLANKS))


def text_of(value: object) -> str | None:
    """Return a cell for a file of text: None for a blank one, the plain form of anything else."""
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else str(value)


def cell_problem(value: object) -> tuple[str, str] | None:
    """Return the code and the rule that keep a value from standing for its text, None if nothing does.

    Text and whole numbers stand for themselves. A number with a fraction, or one so long that it was rounded, does
    not: what was meant can no longer be told.
    """
    if value is None or isinstance(value, str) or type(value) is int:
        return None
    if value is UNREAD:
        return (
            "cell_error",
            "holds an error such as #N/A, or a formula without a result: fix it there and save the file",
        )
    if isinstance(value, float):
        if value.is_integer() and abs(value) >= _EXACT:
            return "not_exact", "a number this long has lost its last digits: format the column as text"
        return "not_whole", "a number here must be whole: give it as text, amounts as whole minor units"
    return "cell_type", "must be text or a whole number"
