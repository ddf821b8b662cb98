"""The routes that concern all refunds: the pause, and the feed of moves."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog
from aiohttp import web

from worker.errors import RefundError, StoreUnavailable
from worker.http import problems
from worker.http.context import Context, everyones
from worker.http.deeds import deed_of
from worker.http.problems import Problem
from worker.http.queries import Query, has_gone
from worker.model.callers import Caller, Scope
from worker.model.times import rfc3339
from worker.store import audit, flags, moves
from worker.store.audit import Deed
from worker.store.flags import Switches
from worker.store.store import Store

log = structlog.get_logger(__name__)

NOW: Final = "now"
_NOT_KEPT: Final = (
    "Everything is paused now, but the pause may not be on disk yet, and a crash of the records'"
    " server would undo it: pause again."
)


class ControlRoutes:
    """Answers the requests that concern all refunds."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add(self, application: web.Application) -> None:
        """Add the routes."""
        router, allowed = application.router, self._context.allowed
        router.add_post("/v1/pause", allowed(Scope.OPERATE, self.pause))
        router.add_post("/v1/resume", allowed(Scope.OPERATE, self.resume))
        router.add_get("/v1/events", allowed(Scope.READ, self.events))

    async def pause(self, request: web.Request, caller: Caller) -> web.Response:
        """Stop sending; refunds in flight finish, and new ones are still accepted."""
        await self._nothing_in(request, caller)
        store = self._context.refunds.store
        deed = deed_of(request, caller, "pause")
        changed, state = await self._context.threads.run(lambda: pause_all(store, deed))
        since = None if state.paused_at is None else rfc3339(state.paused_at)
        return web.json_response(
            {"changed": changed, "paused_at": since, "paused_by": state.paused_by}
        )

    async def resume(self, request: web.Request, caller: Caller) -> web.Response:
        """Start sending again."""
        await self._nothing_in(request, caller)
        store = self._context.refunds.store
        deed = deed_of(request, caller, "resume")
        changed, _ = await self._context.threads.run(
            lambda: audit.carry_out(store, deed, lambda: flags.resume(store))
        )
        return web.json_response({"changed": changed, "paused_at": None, "paused_by": None})

    async def events(self, request: web.Request, caller: Caller) -> web.Response:
        """Return the moves after a position, and wait for one if there is none."""
        query = Query(request, ("after", "wait", "limit"))
        seconds = query.seconds()
        most = query.whole("limit", default=moves.MOST, most=moves.MOST)
        after = query.text("after")
        rule = "must be the `next` of an earlier answer, or now"
        query.matching("after", after == NOW or moves.is_move_id(after or ""), rule)
        query.check()
        store = self._context.store
        if after == NOW:
            after = await moves.latest(store)
        position, gap = after or moves.BEGINNING, False
        # Without a position nothing was read before, so nothing was missed.
        has_position = after is not None
        found: list[dict[str, object]] = []

        async def has_more() -> bool:
            nonlocal position, gap
            read = await moves.read(store, position, most)
            gap = gap or (has_position and (read.gap or read.lost))
            position = read.last
            if not read.moves and await moves.went_back(store, position):
                # The records were restored: moves that come now would be before the position.
                gap, position = True, await moves.latest(store)
                return True
            found.extend(move.as_dict() for move in read.moves if caller.sees(move.refund_id))
            return bool(found) or len(read.moves) == most or has_gone(request)

        await self._context.waiters.until(has_more, refund_id=None, seconds=seconds)
        return web.json_response({"data": found, "next": position, "gap": gap})

    async def _nothing_in(self, request: web.Request, caller: Caller) -> None:
        everyones(caller)
        await self._context.json(request, ())


def pause_all(store: Store, deed: Deed) -> tuple[bool, Switches]:
    """Pause everything; return whether that changed anything, and the flags.

    Raises `Problem` if the pause holds and may be lost, and what `flags.pause` raises.
    """
    try:
        return audit.carry_out(store, deed, lambda: flags.pause(store, deed.by))
    except StoreUnavailable as error:
        with suppress(RefundError):
            if flags.read(store).paused_at is not None:
                log.warning("pause_not_kept", error=str(error))
                kind = replace(problems.UNAVAILABLE, title="The pause may be forgotten.")
                raise Problem(kind, _NOT_KEPT) from error
        raise
