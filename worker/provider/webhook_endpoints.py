"""Registers a webhook endpoint at the provider: one call, by a person, never repeated by itself."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import httpx

from worker.errors import InputError, ProviderUnavailable, SettingsError
from worker.model.answers import NotSent
from worker.model.request import is_provider_id, scrubbed
from worker.provider.transport import MAX_BODY, answer_to, build_client, hand_on, parse_json
from worker.settings import Settings
from worker.settings.lists import is_webhook_secret

PATH: Final = "/v1/webhook_endpoints"
EVENTS: Final = ("charge.refund.updated",)
_FOREIGN: Final = (
    httpx.HTTPError,
    httpx.StreamError,
    aiohttp.ClientError,
    TimeoutError,
    OSError,
    ValueError,
)
_SUCCESS: Final = range(200, 300)
_REFUSED: Final = range(400, 500)
_KEY_REFUSED: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_LATER: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A registered endpoint; `secret` is None if the reply shows none that can be used."""

    endpoint_id: str
    secret: str | None


async def register(settings: Settings, url: str) -> Endpoint:
    """Register an endpoint for the events of refunds.

    Raises as `Settings.require_provider` does; `SettingsError` if the key is refused, `InputError`
    if the request is, and `ProviderUnavailable` if it is not known to be registered.
    """
    body = json.dumps({"url": url, "enabled_events": [*EVENTS]}).encode("ascii")
    async with build_client(settings) as client:
        request = client.build_request(
            "POST", PATH, headers={"Content-Type": "application/json"}, content=body
        )
        try:
            async with asyncio.timeout(settings.request_timeout_seconds):
                status, answer = await _asked(client, request)
        except _FOREIGN as error:
            raise _unknown(error, settings) from None
    return _read(status, answer, settings)


async def _asked(
    client: httpx.AsyncClient, request: httpx.Request
) -> tuple[int, dict[str, Any] | None]:
    response = await hand_on(client, request)
    try:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_BODY:
                return response.status_code, None
        answer = parse_json(bytes(body))
        return response.status_code, None if answer is None else dict(answer)
    finally:
        await response.aclose()


def _unknown(error: BaseException, settings: Settings) -> ProviderUnavailable:
    answer = answer_to(error)
    if isinstance(answer, NotSent):
        return ProviderUnavailable(
            f"nothing was registered at {settings.provider_host}: {answer.reason}; run this again"
        )
    return _perhaps(answer.reason, settings)


def _perhaps(reason: str, settings: Settings) -> ProviderUnavailable:
    return ProviderUnavailable(
        f"the endpoint may be registered at {settings.provider_host} or not ({reason}): look at the"
        " webhook endpoints in its dashboard, delete this one if it is there, then run this again"
    )


def _read(status: int, answer: dict[str, Any] | None, settings: Settings) -> Endpoint:
    if status in _SUCCESS and answer is not None and is_provider_id(answer.get("id")):
        secret = answer.get("secret")
        usable = isinstance(secret, str) and is_webhook_secret(secret)
        return Endpoint(endpoint_id=answer["id"], secret=secret if usable else None)
    if status in _KEY_REFUSED:
        raise SettingsError(
            f"{settings.provider_host} refuses the API key for webhook endpoints (HTTP {status}):"
            " check REFUNDS_API_KEY and its permissions; nothing was registered"
        )
    if status in _LATER:
        raise ProviderUnavailable(
            f"{settings.provider_host} registered nothing now (HTTP {status}): run this again in a"
            " minute"
        )
    if status in _REFUSED:
        raise InputError(
            f"{settings.provider_host} refuses the endpoint (HTTP {status}{_message(answer)}):"
            " nothing was registered"
        )
    raise _perhaps(f"HTTP {status}", settings)


def _message(answer: dict[str, Any] | None) -> str:
    error = (answer or {}).get("error", answer)
    message = error.get("message") if isinstance(error, dict) else None
    return f", {scrubbed(message, 200)}" if isinstance(message, str) and message else ""
