"""Validates requests and replies against `create_refund.schema.json`.

That schema is the only definition of what is valid.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from worker.sandbox.config import SandboxConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jsonschema import Draft202012Validator, ValidationError

_RULES: Final = {
    "type": "is not of type {}",
    "enum": "is not one of {}",
    "minLength": "is shorter than {}",
    "maxLength": "is longer than {}",
    "pattern": "does not match {}",
    "maxProperties": "has more than {} fields",
}
"""A sentence for each keyword; the library's own sentences repeat the value, which may be a secret.
"""


class Violation(NamedTuple):
    """One broken rule: the field's path, the kind (missing, unknown, invalid), and a sentence."""

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
    """Return how a request to create a refund violates the endpoint's schema, as sentences.

    Empty if it is valid.
    """
    return check_request(headers, body).errors


def validate_response(body: object) -> list[str]:
    """Return how a reply's JSON value violates the schema of a Refund, as sentences.

    Empty if it is valid.
    """
    return [violation.text for violation in _violations("response_body", body, "body")]


def check_request(headers: Mapping[str, str], body: bytes) -> CheckedRequest:
    """Return the request's JSON value with all its violations."""
    known: Any = validators()["request_headers"].schema
    present = {name: headers[name] for name in known["properties"] if name in headers}
    broken = list(_violations("request_headers", present, "header"))
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        broken.append(Violation("body", "invalid", "body: is not JSON"))
        return CheckedRequest(body=None, violations=tuple(broken))
    broken.extend(_violations("request_body", value, "body"))
    return CheckedRequest(body=value if isinstance(value, dict) else None, violations=tuple(broken))


@lru_cache(maxsize=1)
def validators() -> dict[str, Draft202012Validator]:
    """Return the validator of each definition.

    Raises `SandboxConfigError` if the library is not installed.
    """
    try:
        import jsonschema  # noqa: PLC0415 - an extra: only the sandbox needs it
    except ImportError:
        raise SandboxConfigError(
            "sandbox", "needs the extra demo: run pip install 'refund-worker[demo]'"
        ) from None
    text = files("worker.sandbox").joinpath("create_refund.schema.json").read_text(encoding="utf-8")
    return {
        name: jsonschema.Draft202012Validator(schema)
        for name, schema in json.loads(text)["$defs"].items()
    }


def _violations(name: str, value: Any, where: str) -> Iterator[Violation]:
    errors = list(validators()[name].iter_errors(value))
    # What is of another type breaks other rules as well, and those say nothing more.
    mistyped = {error.json_path for error in errors if error.validator == "type"}
    wanted = [
        error for error in errors if error.validator == "type" or error.json_path not in mistyped
    ]
    # The library reports each missing field by an error of its own, and each error knows all
    # required ones.
    yield from dict.fromkeys(
        violation for error in wanted for violation in _explained(error, where)
    )


def _explained(error: ValidationError, where: str) -> Iterator[Violation]:
    field = ".".join((where, *map(str, error.absolute_path)))
    limit: Any = error.validator_value
    instance: Any = error.instance
    match error.validator:
        case "required":
            for name in limit:
                if name not in instance:
                    yield Violation(f"{field}.{name}", "missing", f"{field}.{name}: is missing")
        case "additionalProperties":
            known: Any = error.schema
            for name in instance:
                if name not in known["properties"]:
                    yield Violation(
                        f"{field}.{name}", "unknown", f"{field}.{name}: is not a known field"
                    )
        case keyword:
            if "propertyNames" in error.absolute_schema_path:
                field = f"name of {field}.{instance}"
            shown = ", ".join(map(str, limit)) if keyword == "enum" else limit
            yield Violation(field, "invalid", f"{field}: {_RULES[str(keyword)].format(shown)}")
