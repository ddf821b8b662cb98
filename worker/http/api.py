"""The part `api`: refunds over HTTP, as `openapi.json` describes them."""

from __future__ import annotations

from importlib import resources
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from worker.http import problems
from worker.http.batches import BatchRoutes
from worker.http.context import Context, Plain, answered
from worker.http.control import ControlRoutes
from worker.http.files import FileRoutes
from worker.http.refunds import RefundRoutes
from worker.http.uploads import Uploads
from worker.settings import Settings

OPENAPI: Final = "/openapi.json"
_OTHERS: Final = ("/webhooks/", "/health", "/ready")
"""Addresses whose answers have their own form."""


class Api:
    """The API. For one event loop."""

    def __init__(self, context: Context, uploads: Uploads, settings: Settings) -> None:
        self.context, self.uploads, self._settings = context, uploads, settings
        self._description = description()

    def add(self, application: web.Application) -> None:
        """Add the routes, and the middleware that answers errors."""
        application.middlewares.append(self._middleware())
        application.router.add_get(OPENAPI, self._describe)
        application.router.add_get(problems.PATH, problems.page)
        RefundRoutes(self.context).add(application)
        BatchRoutes(self.context).add(application)
        FileRoutes(self.context, self.uploads, self._settings).add(application)
        ControlRoutes(self.context).add(application)

    def end(self) -> None:
        """Answer every wait as it is now."""
        self.context.waiters.end()

    async def close(self) -> None:
        """End the reader of the moves and the threads."""
        await self.context.waiters.close()
        self.context.threads.close()

    def _middleware(self) -> Middleware:
        @web.middleware
        async def api_only(request: web.Request, handler: Plain) -> web.StreamResponse:
            if request.path.startswith(_OTHERS):
                return await handler(request)
            response = await answered(request, handler)
            self.context.count(_operation(request), response.status)
            return response

        return api_only

    async def _describe(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._description, content_type="application/json")


def _operation(request: web.Request) -> str:
    """Return the method and path of the operation, from the bounded set that the API has."""
    resource = request.match_info.route.resource
    return "other" if resource is None else f"{request.method} {resource.canonical}"


def description() -> bytes:
    """Return the OpenAPI document."""
    return (resources.files("worker.http") / "openapi.json").read_bytes()
