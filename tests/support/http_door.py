"""What the doors of the HTTP API and of the operator's page share: a part that listens within the
test's own event loop, on records of the real server.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import redis.asyncio

from tests.support.cli_runner import Records
from worker.client import Refunds
from worker.http import app
from worker.http.app import Part, Readiness
from worker.http.running import uploads_part
from worker.model.callers import Scope
from worker.settings import Settings
from worker.store import tokens
from worker.store.async_store import AsyncStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import aiohttp
    from aiohttp import web

    from worker.http.uploads import Uploads

ALL = frozenset(Scope)
P = TypeVar("P", bound=Part)


@dataclass
class HttpDoor:
    """A client of the port that a part listens on."""

    port: int
    refunds: Refunds
    client: aiohttp.ClientSession

    @property
    def records(self) -> Records:
        return Records(store=self.refunds.store)

    def a_token(self, name: str, *scopes: str, ids: str = "") -> str:
        """A new token with these scopes, or with all."""
        return tokens.create(
            self.refunds.store,
            name,
            scopes=frozenset(map(Scope, scopes)) if scopes else ALL,
            ids_prefix=ids,
            expires_at=None,
            by="the test",
        )


@dataclass(frozen=True, kw_only=True)
class Served(Generic[P]):
    """A part that listens beside the uploads, and the records that they serve."""

    part: P
    uploads: Uploads
    application: web.Application
    port: int
    refunds: Refunds
    store: AsyncStore


@asynccontextmanager
async def served(
    url: str,
    part_of: Callable[[Settings, AsyncStore, Refunds, Uploads], P],
    *,
    port: int = 0,
    **changes: Any,
) -> AsyncIterator[Served[P]]:
    """Let a part listen; it is closed, with its records, at the end."""
    settings = Settings.load(redis_url=url, **changes)
    client = redis.asyncio.Redis.from_url(url, decode_responses=True, socket_timeout=10)
    store = AsyncStore(client, durable=False)
    with Refunds(settings=settings) as refunds:
        uploads = uploads_part(settings, refunds)
        part = part_of(settings, store, refunds, uploads)
        built = app.build([part, uploads], Readiness(lambda: store.meta("paused")))
        try:
            async with app.listening(built, host="127.0.0.1", port=port) as bound:
                yield Served(
                    part=part,
                    uploads=uploads,
                    application=built,
                    port=bound,
                    refunds=refunds,
                    store=store,
                )
        finally:
            await part.close()
            await uploads.close()
            await store.close()
