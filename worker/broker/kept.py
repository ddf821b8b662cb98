"""The stored form of a malformed message.

Decoded, shortened, without secrets, with the refund ids that it names.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from worker.model.request import is_refund_id, scrubbed

LONGEST: Final = 4_000
"""Maximum characters stored of a message."""
MOST_NAMED: Final = 5
"""Maximum refund ids that a message is indexed under."""

_READ: Final = 500_000
_MOST_PARTS: Final = 10_000
_BASE64: Final = "base64"
_SHOWN: Final = ("argsrepr", "kwargsrepr")
_FIELD: Final = "refund_id"
# Matches the text between the field's name and its value in JSON, in JSON within JSON, and in
# Python.
_NAMED: Final = re.compile(r"refund_id[\\\"'\s:=]{1,12}([A-Za-z0-9][A-Za-z0-9._:\-]{0,199})")
_ENCODED: Final = re.compile(r"[A-Za-z0-9+/_\-]{16,}={0,2}")
_HIDDEN: Final = "***"


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedMessage:
    """A stored message: its own id, why it was refused, its contents, the refund ids in it."""

    entry_id: str
    reason: str
    message: str
    refund_ids: tuple[str, ...] = ()


def kept_of(raw: object, reason: str) -> RejectedMessage:
    """Return the stored form of a message.

    A queue's item as bytes or text, its parts by name, or `(args, kwargs)`.
    """
    whole = _opened(raw)
    try:
        text = (
            whole if isinstance(whole, str) else json.dumps(whole, ensure_ascii=False, default=str)
        )
    except (RecursionError, TypeError, ValueError):
        whole = text = _as_text(raw)
    # A text that looks like a secret key is not used as a refund id, though an id's alphabet allows
    # it.
    named = dict.fromkeys(
        islice((each for each in _ids_in(whole) if scrubbed(each) == each), MOST_NAMED)
    )
    return RejectedMessage(
        entry_id=secrets.token_hex(5),
        reason=scrubbed(reason),
        message=without_secrets(text)[:LONGEST],
        refund_ids=tuple(named),
    )


def _as_text(raw: object) -> str:
    if isinstance(raw, bytes):
        return raw[:_READ].decode("utf-8", "replace")
    return raw[:_READ] if isinstance(raw, str) else f"<{type(raw).__name__} that cannot be shown>"


def without_secrets(text: str) -> str:
    """Return a text on one line without secret keys, whether plain or in base64."""
    return scrubbed(_ENCODED.sub(_hidden, text[:_READ]), _READ)


def _hidden(found: re.Match[str]) -> str:
    return _HIDDEN if any(_is_scrubbed(inner) for inner in _readings(found[0])) else found[0]


def _is_scrubbed(text: str) -> bool:
    return scrubbed(text, _READ).count(_HIDDEN) > text.count(_HIDDEN)


def _readings(text: str) -> Iterator[str]:
    """Yield the possible base64 decodings of a word, in either alphabet.

    The word may be cut or have a prefix.
    """
    word = text.rstrip("=").replace("-", "+").replace("_", "/")
    for start in range(4):
        part = word[start:]
        yield base64.b64decode(part[: len(part) // 4 * 4]).decode("utf-8", "replace")


def _opened(raw: object) -> Any:
    if isinstance(raw, Mapping):
        return _envelope(raw)
    if not isinstance(raw, (bytes, str)):
        return raw
    whole = _json(_as_text(raw))
    return _envelope(whole) if isinstance(whole, dict) and "body" in whole else whole


def _envelope(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a message with its decoded body first."""
    body, properties = parts.get("body"), parts.get("properties")
    encoding = properties.get("body_encoding") if isinstance(properties, Mapping) else None
    if isinstance(body, str) and encoding == _BASE64:
        try:
            body = base64.b64decode(body)
        except ValueError:
            body = str(body)
    if isinstance(body, bytes):
        try:
            body = body[:_READ].decode("utf-8")
        except UnicodeDecodeError:
            body = f"<{len(body)} bytes that are not text>"
    if isinstance(body, str):
        body = _json(body[:_READ])
    return {"body": body, **{str(name): value for name, value in parts.items() if name != "body"}}


def _json(text: str) -> Any:
    """Return a text parsed as JSON, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _ids_in(whole: Any) -> Iterator[str]:
    """Yield the refund ids in a message.

    In its fields, a nudge's ids, the text for Flower, or broken text.
    """
    waiting, seen = deque([whole]), 0
    while waiting and seen < _MOST_PARTS:
        value = waiting.popleft()
        seen += 1
        if isinstance(value, str):
            yield from _ids_in_text(value)
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name in {_FIELD, *_SHOWN} and is_refund_id(inner):
                    yield inner
                else:
                    waiting.append(inner)
        elif isinstance(value, (list, tuple)):
            yield from _ids_of_a_nudge(value)
            waiting.extend(value)


def _ids_of_a_nudge(parts: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    """Yield the ids of a body whose args are `[[refund_id, …]]`, or whose first arg is an id."""
    if not parts or not isinstance(parts[0], (list, tuple)) or len(parts) == 1:
        return
    for first in parts[0][:1]:
        for each in first if isinstance(first, list) else [first]:
            if is_refund_id(each):
                yield each


def _ids_in_text(text: str) -> Iterator[str]:
    yield from _NAMED.findall(text)
    for word in _ENCODED.findall(text):
        for inner in _readings(word):
            yield from _NAMED.findall(inner)
