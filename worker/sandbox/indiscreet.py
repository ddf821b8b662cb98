"""Errors that repeat the request, its secret key and body included, as careless servers do."""

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
    """Return a middleware that adds the request to each error below `/v1`.

    It does so while the setting `indiscreet` is on.
    """

    @web.middleware
    async def repeat(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        wanted = config().indiscreet and request.path.startswith("/v1/")
        # A response that drips, is cut or was already sent is incomplete, and one without JSON is a
        # proxy's page.
        if not wanted or not isinstance(response, web.Response) or response.status < 400:  # noqa: PLR2004 - an error
            return response
        if (
            response.prepared
            or response.content_type != "application/json"
            or not isinstance(response.body, bytes)
        ):
            return response
        shape: dict[str, Any] = json.loads(response.body)
        error = shape.get("error", shape)
        body = (await request.read()).decode("utf-8", "backslashreplace")
        # In front of the message, since long messages are cut at their ends.
        error["message"] = f"{request.headers.get('Authorization')} {body} {error['message']}"
        response.body = shapes.as_json(shape).body
        return response

    return repeat
