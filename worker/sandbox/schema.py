"""Validates requests and replies against `create_refund.schema.json`, the only definition of what is valid.

Supports only the keywords of JSON Schema that the file uses; a file with another keyword is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TYPES: Final[dict[str, type]] = {
    "object": dict,
    "string": str,
    "integer": int,
}
_KEYWORDS: Final = frozenset(
    {
        "description",
        "type",
        "required",
        "properties",
        "additionalProperties",
        "propertyNames",
        "maxProperties",
        "minLength",
        "maxLength",
        "pattern",
        "enum",
    }
)


class Violation(NamedTuple):
    """One broken rule: the path of the field, the kind of rule (missing, unknown, invalid), and a sentence."""

    field: str
    rule: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CheckedRequest:
    """A validated request; `body` is its JSON value, or None if it is not a JSON object."""

    body: dict[str, Any] | None
    violations: tuple[Violation, ...]

    @property
    def errors(self) -> list[str]:
        """The violations as sentences."""
        return [violation.text for violation in self.violations]


def validate_request(headers: Mapping[str, str], body: bytes) -> list[str]:
    """Return how a request to create a refund violates the endpoint's schema, as sentences; empty if it is valid."""
    return check_request(headers, body).errors


def validate_response(body: object) -> list[str]:
    """Return how a reply's JSON value violates the schema of a Refund, as sentences; empty if it is valid."""
    return [violation.text for violation in _violations(_schemas()["response_body"], body, "body")]


def check_request(headers: Mapping[str, str], body: bytes) -> CheckedRequest:
    """Return the request's JSON value with all its violations."""
    schemas = _schemas()
    wanted = {name: headers[name] for name in schemas["request_headers"]["properties"] if name in headers}
    broken = list(_violations(schemas["request_headers"], wanted, "header"))
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        broken.append(Violation("body", "invalid", "body: is not JSON"))
        return CheckedRequest(body=None, violations=tuple(broken))
    broken.extend(_violations(schemas["request_body"], value, "body"))
    return CheckedRequest(body=value if isinstance(value, dict) else None, violations=tuple(broken))


@lru_cache(maxsize=1)
def _schemas() -> dict[str, Any]:
    text = files("worker.sandbox").joinpath("create_refund.schema.json").read_text(encoding="utf-8")
    schemas: dict[str, Any] = json.loads(text)["$defs"]
    for schema in schemas.values():
        _refuse_unknown_keywords(schema)
    return schemas


def _refuse_unknown_keywords(schema: dict[str, Any]) -> None:
    unknown = schema.keys() - _KEYWORDS
    if unknown:
        raise ValueError(f"create_refund.schema.json uses keywords that are not checked: {', '.join(sorted(unknown))}")
    inner = list(schema.get("properties", {}).values())
    inner += [schema[name] for name in ("additionalProperties", "propertyNames") if isinstance(schema.get(name), dict)]
    for part in inner:
        _refuse_unknown_keywords(part)


def _violations(schema: Mapping[str, Any], value: Any, where: str) -> Iterator[Violation]:
    kind = schema.get("type")
    if kind is not None and not _is_of(kind, value):
        yield Violation(where, "invalid", f"{where}: is not of type {kind}")
        return
    if "enum" in schema and value not in schema["enum"]:
        yield Violation(where, "invalid", f"{where}: is not one of {', '.join(map(str, schema['enum']))}")
    if isinstance(value, str):
        yield from _text_violations(schema, value, where)
    elif isinstance(value, dict):
        yield from _object_violations(schema, value, where)


def _is_of(kind: str, value: object) -> bool:
    # In Python, unlike JSON, true is an integer.
    return isinstance(value, _TYPES[kind]) and not isinstance(value, bool)


def _text_violations(schema: Mapping[str, Any], value: str, where: str) -> Iterator[Violation]:
    if len(value) < schema.get("minLength", 0):
        yield Violation(where, "invalid", f"{where}: is shorter than {schema['minLength']}")
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        yield Violation(where, "invalid", f"{where}: is longer than {schema['maxLength']}")
    # JSON Schema's `$` matches only the very end; Python's also matches before a final newline.
    if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        yield Violation(where, "invalid", f"{where}: does not match {schema['pattern']}")


def _object_violations(schema: Mapping[str, Any], value: dict[str, Any], where: str) -> Iterator[Violation]:
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield Violation(f"{where}.{name}", "missing", f"{where}.{name}: is missing")
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        yield Violation(where, "invalid", f"{where}: has more than {schema['maxProperties']} fields")
    for name, item in value.items():
        field = f"{where}.{name}"
        if "propertyNames" in schema:
            yield from _violations(schema["propertyNames"], name, f"name of {field}")
        if name in properties:
            yield from _violations(properties[name], item, field)
        elif rest is False:
            yield Violation(field, "unknown", f"{field}: is not a known field")
        elif isinstance(rest, dict):
            yield from _violations(rest, item, field)
