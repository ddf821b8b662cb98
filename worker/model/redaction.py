"""Redacts secrets: those of the process's settings in all forms, and what looks like an API key.

`Settings` registers its secrets here as soon as it is created. Every text that is stored, logged or
shown goes through `without_secrets`. A secret of fewer than `SHORTEST` characters also occurs in
ordinary words, so such a password is hidden only as `:password@`, its form in an address.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote

SHORTEST: Final = 6
HIDDEN: Final = "***"

_LOOKS_LIKE_A_KEY: Final = re.compile(
    r"\b[sr]k_(?:test|live)_[A-Za-z0-9_*.\-]+|\bBasic\s+[A-Za-z0-9+/=]{8,}"
    r"|\brfw_[0-9a-f]{8}_[A-Za-z0-9_\-]+"
)
_CUT_FROM: Final = 20
"""A secret of at least this many characters is hidden even if its end was cut or masked.

Redis repeats 128 characters of an argument.
"""
_BEGINNING: Final = 16
_WORD: Final = r"[\w%+/=.~*…-]"
_SHORTEST_BASE64: Final = 7
_UNMISTAKABLE: Final = 16
"""A secret of at least this many characters does not occur in an id by chance."""
# Some clients split a list of addresses at each `;`.
_USER_AND_PASSWORD: Final = (re.compile(r"://([^/?#]*)@"), re.compile(r"(?:://|;)([^/?#;]*)@"))
_PERCENT: Final = re.compile(r"%[0-9A-F]{2}")


class Secrets:
    """The forms of some secrets, and the pattern that finds them.

    Forms are only added, so their number shows whether the pattern is current.
    """

    def __init__(self) -> None:
        self.forms: dict[str, None] = {}
        self._known = 0
        self._shortest = 0
        self._pattern = re.compile(r"(?!)")

    def add(self, forms: Iterable[str]) -> None:
        """Also find these forms from now on."""
        self.forms.update(dict.fromkeys(forms))

    def found_in(self, text: str) -> re.Match[str] | None:
        """Return the first secret in a text."""
        return self._current().search(text)

    def hidden_in(self, text: str) -> str:
        """Return a text with each secret replaced."""
        pattern = self._current()
        # Most words of a log are shorter than a secret.
        return text if len(text) < self._shortest else pattern.sub(HIDDEN, text)

    def _current(self) -> re.Pattern[str]:
        # No lock, because a forked child could inherit it held. A thread that loses the race just
        # compiles again.
        if len(self.forms) != self._known:
            forms = sorted(self.forms, key=len, reverse=True)
            self._pattern, self._known = (
                re.compile("|".join(_findable(forms)) or r"(?!)"),
                len(forms),
            )
            self._shortest = min((min(len(form), _BEGINNING) for form in forms), default=0)
        return self._pattern


CONFIGURED: Final = Secrets()
"""The secrets of this process's settings."""
LONG: Final = Secrets()


def remember_key(key: str) -> None:
    """Hide an API key from now on: as it is, in Basic authentication, and in all of `forms_of`."""
    CONFIGURED.add([*forms_of(key), _base64(f"{key}:")])
    if len(key) >= _UNMISTAKABLE:
        LONG.add([key])


def remember_address(url: str) -> None:
    """Hide the passwords in an address from now on.

    The address may have several hosts, and options after a `?`.
    """
    for password in _passwords(url):
        CONFIGURED.add([*forms_of(password), *forms_of(unquote(password)), f":{password}@"])


def without_secrets(text: str) -> str:
    """Return a text with `***` for every secret of the settings and whatever looks like a key.

    Shorten a text only afterwards: a secret that is cut may not be recognised.
    """
    hidden = CONFIGURED.hidden_in(text)
    if "k_" in hidden or "Basic" in hidden or "rfw_" in hidden:
        return _LOOKS_LIKE_A_KEY.sub(HIDDEN, hidden)
    return hidden


def holds_key(text: str) -> bool:
    """Return whether a text to keep as it is, such as an id, holds an API key of the settings."""
    return LONG.found_in(text) is not None


def forms_of(secret: str) -> Iterator[str]:
    """Yield a secret as in plain text, an address, JSON, Python's `repr`, or anywhere in base64."""
    if len(secret) < SHORTEST:
        return
    yield secret
    for quoted in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        yield quoted
        yield _PERCENT.sub(lambda found: found.group().lower(), quoted)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield repr(secret)[1:-1]
    for before in range(3):
        # The bytes before the secret decide how its bits align. The end characters also hold bits
        # of other bytes.
        encoded = _base64("\0" * before + secret)
        start = -(-before * 8 // 6)
        end = (before + len(secret.encode("utf-8", "surrogatepass"))) * 8 // 6
        whole = encoded[start:end]
        if len(whole) >= _SHORTEST_BASE64:
            yield whole
            yield whole.replace("+", "-").replace("/", "_")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode("ascii")


def _passwords(url: str) -> Iterator[str]:
    for pattern in _USER_AND_PASSWORD:
        for found in pattern.finditer(url):
            password = found.group(1).partition(":")[2]
            if password:
                yield password
    for name, value in parse_qsl(url.partition("?")[2]):
        if "password" in name:
            yield value


def _findable(forms: Iterable[str]) -> Iterator[str]:
    """Yield patterns for whole secrets, the longest first, then patterns for cut secrets."""
    forms = list(forms)
    yield from (re.escape(form) for form in forms)
    for form in forms:
        if len(form) >= _CUT_FROM:
            yield f"{re.escape(form[:_BEGINNING])}{_WORD}{{0,{len(form) - _BEGINNING}}}"
