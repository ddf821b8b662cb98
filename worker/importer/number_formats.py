"""The number formats of a workbook: which of them show a number like an amount, or as another one.

A cell that holds 500 may be shown as $500.00, so its value alone does not say what was meant. One
that holds 1050 may be shown as 10.50, as 1 or as 105000%: then its value is not what a person sees.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple

from worker.model.currencies import KNOWN

_FORMAT: Final = re.compile(r"<(?:\w+:)?xf(?=[\s/>])([^<>]*)>")
# A code may hold a > in its quotes. No tag is read beyond the next <, so that one without an end
# costs little.
_CODE: Final = re.compile(r"""<(?:\w+:)?numFmt\s((?:[^<>"']|"[^"<]*"|'[^'<]*')*)>""")
_ATTRIBUTE: Final = re.compile(r"""\b(\w+)=(["'])(.*?)\2""", re.DOTALL)
# Formats that every workbook knows without a code: those with decimals, or with a currency.
_BUILT_IN: Final = frozenset(map(str, (2, 4, 5, 6, 7, 8, 11, 39, 40, 42, 43, 44, 48)))
# Those with a percent sign.
_BUILT_IN_ALTERED: Final = frozenset({"9", "10"})
# Currencies that spreadsheets write in letters which are neither a sign nor a code: Excel states
# even its own formats so, in many countries.
_LATIN: Final = (
    "br bs cfa dh din dollar dollars euro euros fcfa fr ft gs km kn kr ksh kč l lei lek lekë pounds"
    " q r rm rmb rp rs rupees s sfr tl yuan zł"
)
_OTHER: Final = "грн ден дин км лв р руб рсд сом сум тг 人民币 元 圆 圓"  # noqa: RUF001 - Cyrillic
_LETTERS: Final = frozenset(f"{_LATIN} {_OTHER}".split())
# A quoted text, an escaped character, a space as wide as one, an exponent, a currency, a colour or
# condition, and any other character.
_PART: Final = re.compile(
    r'"([^"]*)"|\\(.)|[_*].|[eE][+-]|\[\$([^]-]*)[^]]*\]|\[[^]]*\]|(.)',
    re.DOTALL,
)
_CONDITION: Final = re.compile(r"\[[<>=]")
_DECIMALS: Final = re.compile(r"\.[0#?]")
_WORD: Final = re.compile(r"[^\W\d_]+")
# Within a number, these only part its thousands.
_PARTING: Final = frozenset("'\u2019")
_THOUSANDS: Final = 3
"""Digits between two marks that part thousands."""


class Styles(NamedTuple):
    """The numbers of the styles that do not show a number as it is, as cells name them."""

    money: frozenset[bytes] = frozenset()
    """Those that show decimals or a currency."""
    altered: frozenset[bytes] = frozenset()
    """Those that show another number than the cell holds."""


PLAIN: Final = Styles()
"""No style shows a number otherwise than it is."""


def styles_of(xml: bytes) -> Styles:
    """Return what the styles show; `xml` is the workbook's part with its styles."""
    text = xml.decode("utf-8", errors="replace")
    codes = {
        each.get("numFmtId", ""): each.get("formatCode", "")
        for each in _tags(_CODE, text, "numFmts")
    }
    altered = (_BUILT_IN_ALTERED - codes.keys()) | {
        number for number, code in codes.items() if shows_another_number(code)
    }
    money = (_BUILT_IN - codes.keys()) | {
        number for number, code in codes.items() if shows_money(code)
    }
    found: tuple[set[bytes], set[bytes]] = set(), set()
    # One by one: a part can be as long as the whole workbook may be.
    numbers = (each.get("numFmtId", "0") for each in _tags(_FORMAT, text, "cellXfs"))
    for style, number in enumerate(numbers):
        if number in altered:
            found[1].add(str(style).encode())
        elif number in money:
            found[0].add(str(style).encode())
    return Styles(*map(frozenset, found))


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


def shows_another_number(code: str) -> bool:
    """Return whether a format shows another number than the cell holds, or none.

    It shows it in thousands or percent, or draws a decimal mark or digits that are only text.
    """
    outline = "".join(_outline(*part) for part in _PART.findall(code)).lower()
    outline = outline.replace("general", "0")
    # If sections have conditions, the first may be that of no amount.
    is_hidden = _CONDITION.search(code) is None and _hides(outline)
    return is_hidden or any(map(_alters, outline.split(";")))


def _hides(outline: str) -> bool:
    """Return whether a format shows only its own text, or nothing, for a positive number."""
    first = outline.partition(";")[0]
    return outline != "" and not any(each in "0@" or each.isalpha() for each in first)


def _outline(quoted: str, escaped: str, currency: str, plain: str) -> str:
    """Return a part of a format in few characters.

    `0` is a place for a digit, `1` a digit that is only text, and `!` another text.
    """
    if plain in {"0", "#", "?"}:
        return "0"
    if plain and (plain in ",.%;/@" or plain.isalnum()):
        return plain if not plain.isdigit() else " "
    return "".join(
        "1" if each.isdigit() else " " if each.isspace() or each in _PARTING else "!"
        for each in quoted + escaped + currency + plain
    )


def _alters(section: str) -> bool:
    first, last = section.find("0"), section.rfind("0")
    if first < 0:
        return False
    if "%" in section or "1" in section or "!" in section[first:last]:
        return True
    # Spaces that do not part thousands draw a decimal mark, but those of a fraction do not.
    whole = section[first : last + 1].partition(".")[0].replace(",", "")
    if "/" not in section and any(len(part) != _THOUSANDS for part in whole.split(" ")[1:]):
        return True
    # A comma behind the last place for a digit divides by a thousand; others part thousands.
    return any("," in part[part.rfind("0") + 1 :] for part in section[first:].split("."))
