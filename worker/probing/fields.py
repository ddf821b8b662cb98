"""Under which names a payment tells what was given back: each number that moved with a refund, however named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

import httpx

from worker.model import Reply
from worker.request import is_provider_id
from worker.transport import exchange

_DEEPEST: Final = 6


async def numbers(client: httpx.AsyncClient, payment_intent: str, limit: float) -> Mapping[str, Any]:
    """Return what the payment intent and its latest charge show, by path; nothing where they cannot be read."""
    found: dict[str, Any] = {}
    payment = await _object(client, f"/v1/payment_intents/{payment_intent}", limit)
    if payment is None:
        return found
    found |= dict(_leaves(payment, "payment_intent", 0))
    latest = payment.get("latest_charge")
    if isinstance(latest, str) and is_provider_id(latest):
        charge = await _object(client, f"/v1/charges/{latest}", limit)
        if charge is not None:
            found |= dict(_leaves(charge, "charge", 0))
    return found


async def _object(client: httpx.AsyncClient, path: str, limit: float) -> Mapping[str, Any] | None:
    answer = await exchange(client, client.build_request("GET", path), limit)
    return answer.payload if isinstance(answer, Reply) and answer.http_status == HTTPStatus.OK else None


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}", depth + 1)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{place}]", depth + 1)
    elif isinstance(value, bool):
        yield path, value
    elif isinstance(value, int) or (isinstance(value, str) and value.isascii() and value.isdigit()):
        yield path, int(value)


def moved(before: Mapping[str, Any], after: Mapping[str, Any], by: int) -> list[str]:
    """Return the paths whose number rose by this, and those that fell by it, marked as such."""
    differences = {
        path: after[path] - value
        for path, value in before.items()
        if type(value) is int and type(after.get(path)) is int
    }
    rose = [path for path, difference in differences.items() if difference == by]
    fell = [f"{path} (falls)" for path, difference in differences.items() if difference == -by]
    return [*rose, *fell]
