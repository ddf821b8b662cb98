"""Holds answers of the HTTP API to its OpenAPI document."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import jsonschema

from worker.http.api import description

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENT: dict[str, Any] = json.loads(description())
_COMPONENTS = {"components": DOCUMENT["components"]}
EVERYWHERE = {404, 405}
"""Statuses of an address or a method that the document does not have."""


def operations() -> set[tuple[str, str]]:
    """Return every method and path of the document."""
    return {
        (method.upper(), path)
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method != "parameters"
    }


def _resolved(thing: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in thing:
        return thing
    found: Any = DOCUMENT
    for part in thing["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _operation(method: str, path: str) -> dict[str, Any] | None:
    for template, item in DOCUMENT["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", template)
        if re.fullmatch(pattern, path) and method.lower() in item:
            return dict(item[method.lower()])
    return None


def check(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Fail if an answer is not as the document says."""
    operation = _operation(method, path.partition("?")[0])
    if operation is None:
        assert status in EVERYWHERE, (method, path, status)
        response = _resolved({"$ref": "#/components/responses/NotFound"})
    else:
        assert str(status) in operation["responses"], (method, path, status, body)
        response = _resolved(operation["responses"][str(status)])
    for name in response.get("headers", {}):
        # A settled refund has no time after which to ask again.
        assert name in headers or (name == "Retry-After" and status < 300), (name, status)
    if "content" not in response:
        assert body == b""
        return
    kind = headers["Content-Type"].partition(";")[0]
    content = response["content"][kind]
    if kind == "text/csv":
        return
    validator = jsonschema.Draft202012Validator(
        {**content["schema"], **_COMPONENTS},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )
    # A schema of JSON lines describes each of them.
    for text in body.splitlines() if kind == "application/x-ndjson" else [body]:
        validator.validate(json.loads(text))
