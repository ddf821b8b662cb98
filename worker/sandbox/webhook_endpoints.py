"""`POST /v1/webhook_endpoints`: registers a URL that events are sent to from then on."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from worker.sandbox import shapes, wire
from worker.sandbox.config import is_webhook_url

if TYPE_CHECKING:
    from aiohttp import web

    from worker.sandbox.endpoints import Provider
    from worker.sandbox.shapes import Answer

_FIELDS: Final = frozenset({"url", "enabled_events", "description", "metadata", "api_version"})


class WebhookEndpoints:
    """The handler of webhook endpoints."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def create(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/webhook_endpoints`: only this reply ever shows the new secret.

        A URL that is registered twice gets each event twice.
        """
        raw = await request.read()
        entry = self._provider.journal.note(request, raw)
        answer = self._provider.turned_away(request) or self._create(raw)
        if entry is not None:
            entry["status"] = answer.status
        return wire.respond(answer)

    def _create(self, raw: bytes) -> Answer:
        config = self._provider.config
        bad = partial(shapes.error, config, 400, "invalid_request_error")
        try:
            body: Any = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return bad("parameter_invalid", "body: is not a JSON object", param="body")
        if unknown := body.keys() - _FIELDS:
            name = min(unknown)
            return bad("parameter_unknown", f"Received unknown parameter: {name}", param=name)
        url, events = body.get("url"), body.get("enabled_events")
        if not (isinstance(url, str) and is_webhook_url(url)):
            return bad("parameter_invalid", "url: must be an http or https URL", param="url")
        if not (isinstance(events, list) and events and all(isinstance(e, str) for e in events)):
            message = "enabled_events: must be a list of event types"
            return bad("parameter_invalid", message, param="enabled_events")
        made = self._provider.webhooks.register(
            url, tuple(events), description=str(body.get("description") or "")
        )
        return shapes.as_json(shapes.webhook_endpoint(config, made))
