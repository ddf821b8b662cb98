"""Requests and replies held to the provider's own description of the endpoint, as a validating
proxy holds them.

`create-refund.openapi.yaml` beside this file is that description, kept as it was given. It
describes creating a refund, and with it the Refund that every other reply shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

_DESCRIPTION: Any = yaml.safe_load(
    Path(__file__).with_name("create-refund.openapi.yaml").read_text("utf-8")
)
_CREATE = _DESCRIPTION["paths"]["/v1/refunds"]["post"]
_JSON = "application/json"


@cache
def _rules(of: str) -> Draft202012Validator:
    schemas = {
        "request": _CREATE["requestBody"]["content"][_JSON]["schema"],
        "created": _CREATE["responses"]["200"]["content"][_JSON]["schema"],
        "refund": _DESCRIPTION["components"]["schemas"]["Refund"],
    }
    # OpenAPI 3.0 has a type of its own for null, `nullable`, which this description uses nowhere.
    assert "nullable" not in json.dumps(schemas)
    return Draft202012Validator(schemas[of])


def _broken(of: str, value: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in _rules(of).iter_errors(value)]


def broken_by_request(headers: Mapping[str, str], body: bytes) -> list[str]:
    """What a request to create a refund breaks; the names of headers are in lower case."""
    required = {each["name"].lower() for each in _CREATE["parameters"] if each["required"]}
    broken = [f"{name} is missing" for name in sorted(required - headers.keys())]
    assert _CREATE["security"] == [{"basic": []}]
    if not headers.get("authorization", "").startswith("Basic "):
        broken.append("authorization is not basic")
    return broken + _broken("request", json.loads(body))


def broken_by_reply(shape: Any) -> list[str]:
    """What a reply of 200 that shows a refund, or a list of them, breaks.

    Nothing if it shows something else.
    """
    shape = shape if isinstance(shape, dict) else {}
    refunds = shape.get("data", []) if shape.get("object") == "list" else [shape]
    return [
        broken
        for refund in refunds
        if refund.get("object") == "refund"
        for of in ("created", "refund")
        for broken in _broken(of, refund)
    ]
