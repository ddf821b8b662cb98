"""Finds the fields of a payment that report refunds.

Every number that changes with a refund, whatever its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import httpx

from worker.model.answers import Payload, Reply
from worker.provider.transport import exchange


async def numbers(
    client: httpx.AsyncClient, payment_intent: str, limit: float
) -> Mapping[str, int]:
    """Return what the payment intent and its latest charge show, by path.

    Nothing if they cannot be read.
    """
    payment = await _object(client, f"/v1/payment_intents/{payment_intent}", limit)
    if payment is None:
        return {}
    found = {f"payment_intent.{path}": value for path, value in payment.numbers.items()}
    if payment.latest_charge:
        charge = await _object(client, f"/v1/charges/{payment.latest_charge}", limit)
        if charge is not None:
            found |= {f"charge.{path}": value for path, value in charge.numbers.items()}
    return found


async def _object(client: httpx.AsyncClient, path: str, limit: float) -> Payload | None:
    answer = await exchange(client, client.build_request("GET", path), limit, numbers=True)
    return (
        answer.payload
        if isinstance(answer, Reply) and answer.http_status == HTTPStatus.OK
        else None
    )


def moved(before: Mapping[str, int], after: Mapping[str, int], by: int) -> list[str]:
    """Return the paths whose number rose by this, and those that fell by it, marked as such."""
    differences = {
        path: after[path] - value
        for path, value in before.items()
        if type(value) is int and type(after.get(path)) is int
    }
    rose = [path for path, difference in differences.items() if difference == by]
    fell = [f"{path} (falls)" for path, difference in differences.items() if difference == -by]
    return [*rose, *fell]
