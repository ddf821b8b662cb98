"""Errors that repeat what was asked, the secret key and the whole body with it, as careless servers do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from worker.sandbox import shapes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Middleware

    from worker.sandbox.config import SandboxConfig

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def repeating(config: Callable[[], SandboxConfig]) -> Middleware:
    """A middleware that puts the request into each error below `/v1` while `config` says `indiscreet`."""

    @web.middleware
    async def repeat(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        wanted = config().indiscreet and request.path.startswith("/v1/")
        # What drips, is cut or has gone already is no whole response, and no JSON either is a proxy's page.
        if not wanted or not isinstance(response, web.Response) or response.status < 400:  # noqa: PLR2004 - an error
            return response
        if response.prepared or response.content_type != "application/json" or not isinstance(response.body, bytes):
            return response
        shape: dict[str, Any] = json.loads(response.body)
        told = shape.get("error", shape)
        body = (await request.read()).decode("utf-8", "backslashreplace")
        # In front of what there is to say: texts are cut at their ends.
        told["message"] = f"{request.headers.get('Authorization')} {body} {told['message']}"
        response.body = shapes.as_json(shape).body
        return response

    return repeat
