"""The messages that Celery receives.

Rebuilt from an allow-list within bounds, or refused with a reason.

Celery trusts the headers and options of a message. A time limit that is not a number ends the
worker. An ETA makes it hold the message, and an expiry drops it. A callback or a chain in the body
makes it send others. None is needed here.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Final

from worker.model.request import scrubbed, shown

LONGEST_BODY: Final = 1_000_000
"""Maximum bytes of a body, also decompressed.

100 refund ids are 20,000, a refund with full metadata 200,000.
"""
DEEPEST: Final = 20
"""Maximum nesting of lists and objects; args, kwargs, metadata and a value are four levels."""
COMPRESSIONS: Final = ("gzip", "zlib", "application/x-gzip")

_JSON: Final = "application/json"
_CHARSETS: Final = ("utf-8", "us-ascii", "binary")
_SAME_CHARSET: Final = {"utf8": "utf-8", "ascii": "us-ascii"}
_ID: Final = re.compile(r"[!-~]{1,200}")
_LONGEST_NAME: Final = 60
# Characters that Flower shows: five refund ids and the number of others.
_LONGEST_SHOWN: Final = 1_100
_BASE64: Final = "base64"
_ENCODINGS: Final = (None, "utf-8", _BASE64)
_PARTS: Final = 3
_EMBED: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Unreadable(Exception):
    """A message is refused; the text is the reason that is stored with it."""


def wire_of(message: object, queue: str, tag: str) -> dict[str, Any]:
    """Return an item of a Redis queue as kombu unpacks it, with our own delivery tag.

    Raises `Unreadable`.

    An item that kombu cannot unpack would end the worker and be lost. If the message is returned,
    it goes to the queue that it came from, not to the one that its sender wrote.
    """
    if not isinstance(message, dict):
        raise Unreadable("the message is not a JSON object")
    properties, headers, body = (
        message.get("properties"),
        message.get("headers"),
        message.get("body"),
    )
    if not isinstance(properties, dict) or not isinstance(headers, dict):
        raise Unreadable("headers or properties are missing, or are not objects")
    encoding = properties.get("body_encoding")
    if not isinstance(body, str) or encoding not in _ENCODINGS:
        raise Unreadable("the body is not text, or its body_encoding is neither base64 nor absent")
    if encoding == _BASE64:
        try:
            base64.b64decode(body, validate=True)
        except ValueError:
            raise Unreadable("the body is not base64, as its body_encoding says") from None
    return {
        "body": body,
        "content-type": message.get("content-type"),
        "content-encoding": message.get("content-encoding"),
        "headers": headers,
        "properties": {
            "delivery_tag": tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": encoding,
        },
    }


def headers_of(headers: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any]:
    """Return the headers for Celery; raises `Unreadable` without an id or a task among `tasks`."""
    task, message_id = headers.get("task"), headers.get("id")
    if not isinstance(task, str):
        raise Unreadable("headers.task is missing or is not text")
    if task not in tasks:
        raise Unreadable(f"there is no task named {scrubbed(task, _LONGEST_NAME)}")
    if not isinstance(message_id, str) or _ID.fullmatch(message_id) is None:
        raise Unreadable(
            "headers.id is missing or is not text of 1 to 200 visible ASCII characters"
        )
    built = {"task": task, "id": message_id, "root_id": message_id, "ignore_result": True}
    for name in ("argsrepr", "kwargsrepr"):
        if isinstance(headers.get(name), str):
            built[name] = scrubbed(headers[name], _LONGEST_SHOWN)
    return built


def parts_of(
    body: object, content_type: object, content_encoding: object
) -> tuple[list[Any], dict[str, Any]]:
    """Return the args and kwargs in a body, JSON of `[args, kwargs, embed]`; the embed is dropped.

    Raises `Unreadable`.
    """
    if content_type != _JSON:
        raise Unreadable("content-type is not application/json")
    _check_charset(content_encoding)
    if not isinstance(body, (str, bytes)):
        raise Unreadable("the body is missing")
    if len(body) > LONGEST_BODY:
        raise Unreadable(f"the body is longer than {LONGEST_BODY:,} bytes")
    parts = _read(body)
    if not isinstance(parts, list) or len(parts) != _PARTS:
        raise Unreadable("the body is not [args, kwargs, embed]")
    args, kwargs, embed = parts
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(embed, dict):
        raise Unreadable("the body is not [[args], {kwargs}, {embed}]")
    return args, kwargs


def body_with(args: list[Any], kwargs: dict[str, Any]) -> bytes:
    """Return the body for Celery: JSON of `[args, kwargs, embed]` with an empty embed."""
    return json.dumps([args, kwargs, _EMBED]).encode("ascii")


def _check_charset(encoding: object) -> None:
    if encoding is None or encoding == "":
        return
    name = encoding.lower() if isinstance(encoding, str) else ""
    if _SAME_CHARSET.get(name, name) not in _CHARSETS:
        allowed = ", ".join(_CHARSETS)
        raise Unreadable(
            f"content-encoding {scrubbed(shown(encoding))} is not one of {allowed}, nor absent"
        )


def _read(body: str | bytes) -> Any:
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
        value = _DECODER.decode(text)
        too_deep = _is_deeper(value, DEEPEST)
    except RecursionError:
        too_deep = True
    except ValueError:
        raise Unreadable("the body is not JSON") from None
    if too_deep:
        raise Unreadable(f"the body nests lists and objects more than {DEEPEST} levels deep")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        # JSON readers differ on which of two amounts they use.
        raise Unreadable("an object in the body has the same field twice")
    return made


# `json.loads` would make one for each message.
_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object)


def _is_deeper(value: object, limit: int) -> bool:
    level: list[object] = [value]
    for _ in range(limit):
        level = [
            inner
            for each in level
            for inner in (
                each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
            )
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def decompressed(body: str | bytes) -> bytes:
    """Decompress a gzip or zlib body; raises `Unreadable` before the result exceeds its limit."""
    engine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        plain = engine.decompress(
            body.encode("utf-8") if isinstance(body, str) else body, LONGEST_BODY + 1
        )
    except (zlib.error, UnicodeEncodeError):
        raise Unreadable(
            "the body is not compressed as gzip or zlib, as its compression header says"
        ) from None
    if len(plain) > LONGEST_BODY:
        raise Unreadable(f"the body is longer than {LONGEST_BODY:,} bytes after decompression")
    if not engine.eof:
        raise Unreadable("the compressed body is incomplete")
    if engine.unused_data:
        raise Unreadable("extra bytes follow the compressed body")
    return plain


def refused_compression(name: object) -> Unreadable:
    """Return the error for an unsupported compression."""
    return Unreadable(f"compression {scrubbed(shown(name))} is not supported: use gzip, or none")
