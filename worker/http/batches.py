"""The routes of batches, which are imported files: list, read, and decide about them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from aiohttp import web

from worker import batches
from worker.batches import is_batch_id
from worker.client import Refunds
from worker.http import bodies, problems
from worker.http.context import Context
from worker.http.deeds import deed_of
from worker.http.nudges import from_thread
from worker.http.problems import Problem
from worker.http.queries import Query
from worker.http.streams import streamed
from worker.model.callers import Caller, Scope
from worker.model.refund import Retriable
from worker.store.audit import Deed, carry_out
from worker.store.store import Store

T = TypeVar("T")

PATH: Final = "/v1/batches"
NDJSON: Final = "application/x-ndjson"
MOST_LISTED: Final = 100
LISTED: Final = 20
_ROWS: Final = 500
"""Refunds that are read and sent at once."""


class BatchRoutes:
    """Answers the requests about batches.

    A caller that sees some ids only sees the batches whose ids begin so, and of their refunds those
    whose ids do. It changes a batch, and reads the invalid rows of its file, only if all of the
    refunds do.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def add(self, application: web.Application) -> None:
        """Add the routes."""
        router, allowed = application.router, self._context.allowed
        one = f"{PATH}/{{batch_id}}"
        router.add_get(PATH, allowed(Scope.READ, self.list))
        router.add_get(one, allowed(Scope.READ, self.get))
        router.add_get(f"{one}/refunds", allowed(Scope.READ, self.refunds))
        router.add_post(f"{one}/cancel", allowed(Scope.OPERATE, self.cancel))
        router.add_post(f"{one}/pause", allowed(Scope.OPERATE, self.pause))
        router.add_post(f"{one}/resume", allowed(Scope.OPERATE, self.resume))
        router.add_post(f"{one}/retry", allowed(Scope.OPERATE, self.retry))

    async def list(self, request: web.Request, caller: Caller) -> web.Response:
        """Return a page of the batches, newest first."""
        query = Query(request, ("after", "limit"))
        limit = query.whole("limit", default=LISTED, most=MOST_LISTED)
        after = query.text("after")
        query.matching("after", is_batch_id(after or ""), "must be the `next` of an earlier answer")
        query.check()
        if after is not None and not caller.sees(after):
            raise unknown(after)

        def read(client: Refunds) -> list[batches.Batch]:
            found = batches.list_batches(client.store, after)
            return list(islice((each for each in found if caller.sees(each.batch_id)), limit + 1))

        page = await self._in_thread(read)
        is_last = len(page) <= limit
        data = [each.as_dict() for each in page[:limit]]
        return web.json_response({"data": data, "next": None if is_last else data[-1]["batch_id"]})

    async def get(self, request: web.Request, caller: Caller) -> web.Response:
        """Return a batch: its counts, its state and its pace."""
        Query(request, ()).check()
        batch_id = batch_of(request, caller)
        seen = await self._in_thread(lambda client: batches.look_at_batch(client.store, batch_id))
        return web.json_response(seen.as_dict())

    async def refunds(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Stream the refunds that a batch created, one JSON object a line, in row order."""
        Query(request, ()).check()
        batch_id = batch_of(request, caller)
        await self._in_thread(lambda client: batches.read_batch(client.store, batch_id))
        store = self._context.refunds.store
        ids = (each for each in store.ids_in_batch(batch_id) if caller.sees(each))
        return await streamed(request, NDJSON, lambda: self._in_thread(partial(_lines, ids)))

    async def cancel(self, request: web.Request, caller: Caller) -> web.Response:
        """Cancel the refunds of a batch that were not sent, for good."""
        await self._context.json(request, ())
        batch_id = await own_batch(self._context, request, caller)
        done = await self._act(
            deed_of(request, caller, "batch cancel", batch_id),
            lambda store: batches.cancel_batch(store, batch_id, caller.name),
        )
        return web.json_response({"changed": bool(done.audited)} | done.as_dict())

    async def pause(self, request: web.Request, caller: Caller) -> web.Response:
        """Send no more refunds of a batch until it is resumed."""
        await self._context.json(request, ())
        batch_id = await own_batch(self._context, request, caller)
        changed = await self._act(
            deed_of(request, caller, "batch pause", batch_id),
            lambda store: batches.pause_batch(store, batch_id, caller.name),
        )
        return web.json_response({"batch_id": batch_id, "changed": changed})

    async def resume(self, request: web.Request, caller: Caller) -> web.Response:
        """Send the refunds of a paused batch again."""
        await self._context.json(request, ())
        batch_id = await own_batch(self._context, request, caller)
        changed = await self._act(
            deed_of(request, caller, "batch resume", batch_id),
            lambda store: batches.resume_batch(store, batch_id),
        )
        return web.json_response({"batch_id": batch_id, "changed": changed})

    async def retry(self, request: web.Request, caller: Caller) -> web.Response:
        """Send the retriable failed refunds of a batch again."""
        body = await self._context.json(request, ("unknown",))
        batch_id = await own_batch(self._context, request, caller)
        also = {Retriable.UNKNOWN} if bodies.flag(body, "unknown") else set()
        kinds = frozenset({Retriable.YES} | also)
        nudge = from_thread(self._context.nudge, asyncio.get_running_loop())
        done = await self._act(
            deed_of(request, caller, "batch retry", batch_id),
            lambda store: batches.retry_batch(
                store, batch_id, caller.name, kinds=kinds, nudge=nudge
            ),
        )
        counts = {"batch_id": batch_id, "changed": done.retried > 0}
        return web.json_response(counts | done.as_dict())

    async def _act(self, deed: Deed, work: Callable[[Store], T]) -> T:
        """Do something to a batch, which the audit notes."""
        store = self._context.refunds.store
        return await self._context.threads.run(lambda: carry_out(store, deed, lambda: work(store)))

    async def _in_thread(self, work: Callable[[Refunds], T]) -> T:
        return await self._context.threads.run(partial(work, self._context.refunds))


def batch_of(request: web.Request, caller: Caller) -> str:
    """Return the id in the address. Raises `Problem` if no such batch can exist for the caller."""
    batch_id = request.match_info["batch_id"]
    if not is_batch_id(batch_id) or not caller.sees(batch_id):
        raise unknown(batch_id)
    return batch_id


async def own_batch(context: Context, request: web.Request, caller: Caller) -> str:
    """Return the id in the address, if every refund of the batch is one that the caller sees.

    For what changes all of them, or shows the rows of its file. Raises `Problem`.
    """
    batch_id = batch_of(request, caller)
    store = context.refunds.store
    if caller.ids_prefix and not await context.threads.run(
        lambda: all(map(caller.sees, store.ids_in_batch(batch_id)))
    ):
        raise unknown(batch_id)
    return batch_id


def unknown(batch_id: str) -> Problem:
    """Return the answer for a batch that does not exist, or not for this caller."""
    named = f"batch {batch_id}" if is_batch_id(batch_id) else "batch with this id"
    return Problem(problems.NOT_FOUND, f"No {named} exists here, or this token does not see it.")


def _lines(ids: Iterator[str], client: Refunds) -> bytes | None:
    """Return the lines of the next refunds, None after the last."""
    page = list(islice(ids, _ROWS))
    if not page:
        return None
    # A record may have expired meanwhile.
    found = [each for each in client.store.get_many(page) if each is not None]
    return b"".join(json.dumps(each.as_dict()).encode("ascii") + b"\n" for each in found)
