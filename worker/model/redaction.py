"""Secrets taken out of texts: those of this process's settings in each form they take, and what looks like a key.

`Settings` names its secrets here as soon as it is made; every text that is kept, logged or said goes through
`without_secrets`. A secret of fewer than `SHORTEST` characters is part of many a word: of such a password only
`:password@` is hidden, as it stands in an address.
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

_LOOKS_LIKE_A_KEY: Final = re.compile(r"\b[sr]k_(?:test|live)_[A-Za-z0-9_*.\-]+|\bBasic\s+[A-Za-z0-9+/=]{8,}")
_CUT_FROM: Final = 20
"""A secret of so many characters is hidden also if its end was cut or masked: Redis repeats 128 of an argument."""
_BEGINNING: Final = 16
_WORD: Final = r"[\w%+/=.~*…-]"
_SHORTEST_BASE64: Final = 7
_UNMISTAKABLE: Final = 16
"""A secret of so many characters is in no id by chance."""
# Some clients take a list of addresses apart at each `;`.
_USER_AND_PASSWORD: Final = (re.compile(r"://([^/?#]*)@"), re.compile(r"(?:://|;)([^/?#;]*)@"))
_PERCENT: Final = re.compile(r"%[0-9A-F]{2}")


class Secrets:
    """The forms of some secrets, and the pattern that finds them. Forms are only added, so their number names them."""

    def __init__(self) -> None:
        self.forms: dict[str, None] = {}
        self._known = 0
        self._shortest = 0
        self._pattern = re.compile(r"(?!)")

    def add(self, forms: Iterable[str]) -> None:
        """Find these forms too, from now on."""
        self.forms.update(dict.fromkeys(forms))

    def found_in(self, text: str) -> re.Match[str] | None:
        """Return the first that a text holds."""
        return self._current().search(text)

    def hidden_in(self, text: str) -> str:
        """Return a text without any."""
        pattern = self._current()
        # Most words of a log are shorter than a secret.
        return text if len(text) < self._shortest else pattern.sub(HIDDEN, text)

    def _current(self) -> re.Pattern[str]:
        # No lock: a child of a fork would inherit it held. Whoever is overtaken here compiles once more.
        if len(self.forms) != self._known:
            forms = sorted(self.forms, key=len, reverse=True)
            self._pattern, self._known = re.compile("|".join(_findable(forms)) or r"(?!)"), len(forms)
            self._shortest = min((min(len(form), _BEGINNING) for form in forms), default=0)
        return self._pattern


CONFIGURED: Final = Secrets()
"""Those of this process's settings."""
LONG: Final = Secrets()


def remember_key(key: str) -> None:
    """Hide an API key from now on, as it is, in Basic authentication, and in each form of `forms_of`."""
    CONFIGURED.add([*forms_of(key), _base64(f"{key}:")])
    if len(key) >= _UNMISTAKABLE:
        LONG.add([key])


def remember_address(url: str) -> None:
    """Hide the passwords in an address from now on; it may name several hosts, and options behind a `?`."""
    for password in _passwords(url):
        CONFIGURED.add([*forms_of(password), *forms_of(unquote(password)), f":{password}@"])


def without_secrets(text: str) -> str:
    """Return a text with `***` for every secret of the settings, and for what looks like a key. Cut it afterwards."""
    hidden = CONFIGURED.hidden_in(text)
    return _LOOKS_LIKE_A_KEY.sub(HIDDEN, hidden) if "k_" in hidden or "Basic" in hidden else hidden


def holds_key(text: str) -> bool:
    """Tell whether a text that must stay as it is, such as an id, holds an API key of the settings."""
    return LONG.found_in(text) is not None


def forms_of(secret: str) -> Iterator[str]:
    """Yield a secret as it stands in plain text, an address, JSON, Python's `repr`, and anywhere in base64."""
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
        # What stands before it decides how its bits fall; the characters at both ends hold its neighbours' bits too.
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
    """Yield patterns, the longest first; then those of secrets that were cut, up to what was left of them."""
    forms = list(forms)
    yield from (re.escape(form) for form in forms)
    for form in forms:
        if len(form) >= _CUT_FROM:
            yield f"{re.escape(form[:_BEGINNING])}{_WORD}{{0,{len(form) - _BEGINNING}}}"
