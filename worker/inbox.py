"""Messages that cannot be understood: kept in `refunds:rejected` with their reason, and never the end of a worker.

A Redis list takes anything, and kombu ends the whole worker on an item that is no message (and the item is gone). So
each item is checked here before kombu's own code unpacks it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Final

from worker.errors import FieldError, InvalidRequest
from worker.request import RefundRequest, scrubbed, shown

KEPT: Final = 10_000
_LONGEST: Final = 4_000
_LONGEST_NAME: Final = 60
_PARTS: Final = 3
_FIELDS: Final = tuple(each.name for each in fields(RefundRequest))
_NEEDED: Final = tuple(
    each.name for each in fields(RefundRequest) if each.default is MISSING and each.default_factory is MISSING
)

Keep = Callable[[str, str], None]
_keepers: list[Keep] = []


def keep_with(keep: Keep) -> None:
    """Name the function that keeps (raw message, reason); the latest one named is used."""
    _keepers[:] = [keep]


def rejected(raw: object, reason: str) -> None:
    """Keep a message that cannot be understood."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw if isinstance(raw, str) else repr(raw)
    for keep in _keepers:
        keep(scrubbed(text[:_LONGEST], _LONGEST), scrubbed(reason))


def requested(args: Sequence[Any], kwargs: Mapping[str, Any]) -> RefundRequest:
    """Return the request that a message's args and kwargs spell; raises `InvalidRequest`."""
    wrong = [
        FieldError(
            field=scrubbed(name, _LONGEST_NAME),
            code="unknown_field",
            value=shown(value),
            rule=f"is no field of a refund, which has {', '.join(_FIELDS)}",
        )
        for name, value in kwargs.items()
        if name not in _FIELDS
    ]
    wrong += [
        FieldError(field=name, code="missing_field", value="", rule="is missing from kwargs")
        for name in _NEEDED
        if name not in kwargs
    ]
    if args:
        rule = "must be empty: the fields of a refund are named in kwargs"
        wrong.append(FieldError(field="args", code="positional", value=shown(args), rule=rule))
    if wrong:
        raise InvalidRequest(wrong)
    return RefundRequest(**kwargs)


def problem(message: Any) -> str | None:
    """Return why a queue's item is no Celery message of protocol 2, None where it is one."""
    if not isinstance(message, dict):
        return "the message is no JSON object"
    properties, headers = message.get("properties"), message.get("headers")
    if not isinstance(properties, dict) or not isinstance(properties.get("delivery_tag"), str):
        return "properties.delivery_tag is missing"
    way = properties.get("delivery_info")
    if not isinstance(way, dict):
        return "properties.delivery_info is missing"
    if not isinstance(way.get("exchange"), str) or not isinstance(way.get("routing_key"), str):
        return "properties.delivery_info names no exchange and routing_key"
    if not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        return "headers.task is missing"
    if not isinstance(headers.get("id"), str):
        return "headers.id is missing"
    if message.get("content-type") != "application/json":
        return "content-type is not application/json"
    return _body_problem(message.get("body"), properties.get("body_encoding"))


def _body_problem(body: Any, encoding: Any) -> str | None:
    if not isinstance(body, str) or encoding not in {None, "base64"}:
        return "the body is no text, or its body_encoding is neither absent nor base64"
    try:
        parts = json.loads(base64.b64decode(body, validate=True) if encoding else body)
    except (ValueError, RecursionError, binascii.Error):
        return "the body is not base64 of JSON" if encoding else "the body is no JSON"
    if not isinstance(parts, list) or len(parts) != _PARTS:
        return "the body is not [args, kwargs, embed]"
    if not isinstance(parts[0], list) or not isinstance(parts[1], dict) or not isinstance(parts[2], dict):
        return "the body is not [[args], {kwargs}, {embed}]"
    return None
