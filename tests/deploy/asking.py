"""HTTP to a service of ours, with or without a password."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


def ask(
    url: str, *, user: str | None = None, data: dict[str, str] | None = None
) -> tuple[int, str]:
    """Status and text of a GET, or of a POST where there is data."""
    body = urllib.parse.urlencode(data).encode() if data is not None else None
    request = urllib.request.Request(url, data=body)  # noqa: S310 - a loopback address of ours
    if user is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310 - see above
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ask_json(url: str, **options: Any) -> Any:
    status, text = ask(url, **options)
    assert status == 200, text
    return json.loads(text)


def exposed(url: str) -> dict[str, dict[str, set[str]]]:
    """Each sample's name of an exposition, with its labels and their values."""
    status, text = ask(f"{url}/metrics")
    assert status == 200
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found
