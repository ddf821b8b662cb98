"""The number formats of a workbook: which of them show a whole number like an amount of money.

A cell that holds 500 may be shown as $500.00, so its value alone does not say what was meant.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from worker.model.currencies import KNOWN

_FORMAT: Final = re.compile(r"<(?:\w+:)?xf(?=[\s/>])([^<>]*)>")
# A code may hold a > in its quotes. No tag is read beyond the next <, so that one without an end
# costs little.
_CODE: Final = re.compile(r"""<(?:\w+:)?numFmt\s((?:[^<>"']|"[^"<]*"|'[^'<]*')*)>""")
_ATTRIBUTE: Final = re.compile(r"""\b(\w+)=(["'])(.*?)\2""", re.DOTALL)
# Formats that every workbook knows without a code: those with decimals, or with a currency.
_BUILT_IN: Final = frozenset(map(str, (2, 4, 5, 6, 7, 8, 10, 11, 39, 40, 42, 43, 44, 48)))
# Currencies that spreadsheets write in letters which are neither a sign nor a code: Excel states
# even its own formats so, in many countries.
_LETTERS: Final = frozenset(
    {"din", "ft", "kr", "kč", "lei", "r", "rm", "rp", "zł", "ден", "дин", "лв", "р", "руб"}  # noqa: RUF001 - Cyrillic
)
# A quoted text, an escaped character, a space as wide as one, a currency, a colour or condition,
# and any other character.
_PART: Final = re.compile(
    r'"([^"]*)"|\\(.)|[_*].|\[\$([^]-]*)[^]]*\]|\[[^]]*\]|(.)',
    re.DOTALL,
)
_DECIMALS: Final = re.compile(r"\.[0#?]")
_WORD: Final = re.compile(r"[^\W\d_]+")


def money_styles(xml: bytes) -> frozenset[bytes]:
    """Return the numbers of the styles that show decimals or a currency, as cells name them.

    `xml` is the workbook's part with its styles.
    """
    text = xml.decode("utf-8", errors="replace")
    own = {
        each.get("numFmtId"): shows_money(each.get("formatCode", ""))
        for each in _tags(_CODE, text, "numFmts")
    }
    # One by one: a part can be as long as the whole workbook may be.
    numbers = (each.get("numFmtId", "0") for each in _tags(_FORMAT, text, "cellXfs"))
    return frozenset(
        str(style).encode()
        for style, number in enumerate(numbers)
        if own.get(number, number in _BUILT_IN)
    )


def _tags(tag: re.Pattern[str], text: str, name: str) -> Iterator[dict[str, str]]:
    """Yield the attributes of each tag within the first element of a name.

    Other elements have tags of the same names: a conditional format numbers its code as it likes.
    """
    start = re.search(rf"<(?:\w+:)?{name}\b", text)
    if start is None:
        return
    end = re.compile(rf"</(?:\w+:)?{name}\s*>").search(text, start.end())
    if end is not None:
        yield from (_attributes(found[1]) for found in tag.finditer(text, start.end(), end.start()))


def _attributes(tag: str) -> dict[str, str]:
    return {name: html.unescape(value) for name, _, value in _ATTRIBUTE.findall(tag)}


def shows_money(code: str) -> bool:
    """Return whether a format shows decimals, or a currency's sign, code or letters."""
    parts = _PART.findall(code)
    digits = "".join(part[3] for part in parts)
    if _DECIMALS.search(digits) or any(part[2].strip() for part in parts):
        return True
    texts = "".join(part[0] + part[1] or " " for part in parts)
    return any(unicodedata.category(each) == "Sc" for each in texts + digits) or any(
        word in _LETTERS or word in KNOWN for word in _WORD.findall(texts.lower())
    )
