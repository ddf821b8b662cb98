"""The job that the peers and the bare loops do: record `pending`, POST, record `succeeded`.

Each takes a refund's id and its body from a message and does these three steps in this order. What
is the same for all of them is here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import httpx
from httpx_aiohttp import HttpxAiohttpClient

from worker.model.request import RefundRequest

IN_FLIGHT: Final = int(os.environ.get("REFUNDS_CONCURRENCY", "128"))
BROKER_URL: Final = os.environ.get("REFUNDS_REDIS_URL", "redis://127.0.0.1:6379/0")
RECORDS_DATABASE: Final = 1
"""The database of the records, so that what expires there is what is settled."""
PROVIDER: Final = os.environ.get("REFUNDS_API_URL", "http://127.0.0.1:8080")
PATH: Final = "/v1/refunds"
KEY: Final = os.environ.get("REFUNDS_API_KEY", "")
RETENTION_SECONDS: Final = 400 * 24 * 3600
"""A settled record is kept for so long; one that is pending does not expire."""
TIMEOUT_SECONDS: Final = 20
CONNECTIONS: Final = IN_FLIGHT + 8
"""Most connections of a client, so that no call waits for one."""

Body = dict[str, Any]


def records_url(broker_url: str) -> str:
    """Return the address of the records, which are on the broker's server."""
    return f"{broker_url.rpartition('/')[0]}/{RECORDS_DATABASE}"


RECORDS_URL: Final = records_url(BROKER_URL)


class Job(NamedTuple):
    """A refund to be handed in: what a peer puts into a message, and what the worker is given."""

    refund_id: str
    body: Body
    request: RefundRequest


def record(refund_id: str) -> str:
    """Return the key of a refund's record."""
    return f"refund:{refund_id}"


def pending(body: Body) -> str:
    """Return the record of a refund that is about to be sent."""
    return json.dumps({"status": "pending", **body})


def succeeded(body: Body, answer: Mapping[str, Any]) -> str:
    """Return the record of a refund that the provider has made."""
    return json.dumps({"status": answer["status"], "provider_refund_id": answer["id"], **body})


def headers(refund_id: str) -> dict[str, str]:
    """Return the headers of a refund's request."""
    return {"Idempotency-Key": refund_id}


def client() -> httpx.AsyncClient:
    """Return httpx's client over aiohttp, as its makers mean it, for one event loop."""
    return HttpxAiohttpClient(
        base_url=PROVIDER,
        auth=(KEY, ""),
        timeout=TIMEOUT_SECONDS,
        limits=httpx.Limits(max_connections=CONNECTIONS),
    )
