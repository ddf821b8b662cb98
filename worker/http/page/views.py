"""The views of the page: what a person who is signed in can read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import quote

from aiohttp import web

from worker.client import Refunds
from worker.http import problems
from worker.http.context import Threads
from worker.http.page import overview, reading, searching
from worker.http.page.forms import without_blanks
from worker.http.page.refusals import Refusal
from worker.http.page.rendering import PATH, Renderer
from worker.http.page.sessions import Session
from worker.http.problems import Problem
from worker.http.queries import Query
from worker.http.spool import Spool
from worker.model.refund import Stage, Status
from worker.model.request import is_provider_id, is_refund_id
from worker.store.listing import Filter
from worker.store.moves import is_move_id

T = TypeVar("T")
View = Callable[[web.Request, Session], Awaitable[web.StreamResponse]]
RefusedView = Callable[[web.Request, Session, Refusal], Awaitable[web.StreamResponse]]
"""Shows again the view whose form was not followed, with the reason and what was typed."""
ACTIONS: Final = {
    "pause": "paused",
    "resume": "resumed",
    "resolve": "decided",
    "cancel": "canceled",
    "retry": "sent again",
    "recheck": "checked at the provider",
    "import": "imported",
    "replay": "callbacks sent again",
}
"""Words in the names of actions, and how a person chooses them."""
_FILTERS: Final = ("q", "status", "stage", "batch", "payment_intent", "reversed", "after")


class Views:
    """Answers the requests of people who read."""

    def __init__(
        self, refunds: Refunds, threads: Threads, renderer: Renderer, spool: Spool
    ) -> None:
        self._refunds, self._threads, self._renderer = refunds, threads, renderer
        self._spool = spool

    def routes(self) -> dict[str, View]:
        """Return the views by their addresses."""
        return {
            PATH: self.overview,
            f"{PATH}/refunds": self.refunds,
            f"{PATH}/refunds/{{refund_id}}": self.refund,
            f"{PATH}/review": self.review,
            f"{PATH}/batches": self.batches,
            f"{PATH}/batches/{{batch_id}}": self.batch,
            f"{PATH}/reversed": self.reversed,
            f"{PATH}/callbacks": self.callbacks,
            f"{PATH}/audit": self.audit,
        }

    async def overview(self, request: web.Request, session: Session) -> web.Response:
        """Show whether money is stuck, and why."""
        Query(request, ()).check()
        values = await self._read(lambda: overview.read_overview(self._refunds.store))
        return self._renderer.page("overview", session, **values)

    async def refunds(self, request: web.Request, session: Session) -> web.Response:
        """Show the refunds that match, or go to the one with exactly this id."""
        if (address := without_blanks(request)) is not None:
            return _to(address)
        query = Query(request, _FILTERS)
        text = query.text("q")
        if text is not None:
            query.check()
            return await self._searched(session, text)
        wanted, after = _filter(query), query.text("after")
        values = await self._read(lambda: reading.listed(self._refunds, wanted, after))
        return self._renderer.page(
            "refunds", session, wanted=wanted, after=after, link=_link(request), q="", **values
        )

    async def _searched(self, session: Session, text: str) -> web.Response:
        found = await self._read(lambda: searching.search(self._refunds, text))
        if found.refund_id is not None:
            return _to(f"{PATH}/refunds/{_part(found.refund_id)}")
        if found.batch is not None:
            return _to(f"{PATH}/refunds?batch={quote(found.batch, safe='')}")
        if found.payment is not None:
            return _to(f"{PATH}/refunds?payment_intent={quote(found.payment, safe='')}")
        made = await self._read(lambda: searching.of_order(self._refunds, text))
        if len(made) == 1:
            return _to(f"{PATH}/refunds/{_part(made[0].refund_id)}")
        return self._renderer.page(
            "refunds",
            session,
            wanted=Filter(),
            after=None,
            link="",
            q=text,
            refunds=made,
            next=None,
        )

    async def refund(self, request: web.Request, session: Session) -> web.Response:
        """Show one refund: its facts, what happens next, and every move."""
        Query(request, ()).check()
        refund_id = request.match_info["refund_id"]
        if not is_refund_id(refund_id):
            raise Problem(problems.NOT_FOUND, "No refund can have this id.")
        values = await self._read(lambda: reading.one(self._refunds, refund_id))
        return self._renderer.page("refund", session, **values)

    async def refused(
        self, request: web.Request, session: Session, refusal: Refusal
    ) -> web.Response:
        """Show the refund or the batch whose form was not followed, as it is now, and why."""
        refund_id = request.match_info.get("refund_id")
        if refund_id is not None:
            name, here = "refund", f"{PATH}/refunds/{_part(refund_id)}"
            values = await self._read(lambda: reading.one(self._refunds, refund_id, refusal))
        else:
            batch_id = request.match_info["batch_id"]
            name, here = "batch", f"{PATH}/batches/{_part(batch_id)}"
            values = await self._read(lambda: reading.batch(self._refunds, batch_id, self._spool))
        return self._renderer.page(name, session, refusal=refusal, here=here, **values)

    async def review(self, request: web.Request, session: Session) -> web.Response:
        """Show the refunds that need a person."""
        Query(request, ()).check()
        values = await self._read(lambda: reading.queue(self._refunds))
        return self._renderer.page("review", session, **values)

    async def batches(self, request: web.Request, session: Session) -> web.Response:
        """Show the imported files."""
        query = Query(request, ("after",))
        query.matching("after", is_refund_id(query.text("after")), "must be the id of a batch")
        query.check()
        after = query.text("after")
        values = await self._read(lambda: reading.batches(self._refunds, after))
        return self._renderer.page("batches", session, **values)

    async def batch(self, request: web.Request, session: Session) -> web.Response:
        """Show one imported file and how far its refunds have come."""
        Query(request, ()).check()
        batch_id = request.match_info["batch_id"]
        values = await self._read(lambda: reading.batch(self._refunds, batch_id, self._spool))
        return self._renderer.page("batch", session, **values)

    async def reversed(self, request: web.Request, session: Session) -> web.Response:
        """Show the refunds that succeeded and that the provider reversed later."""
        query = Query(request, ("after",))
        query.check()
        after = query.text("after")
        wanted = Filter(reversed_only=True)
        values = await self._read(lambda: reading.listed(self._refunds, wanted, after))
        return self._renderer.page("reversed", session, **values)

    async def callbacks(self, request: web.Request, session: Session) -> web.Response:
        """Show the endpoints that learn of refunds, and what does not reach them."""
        Query(request, ()).check()
        values = await self._read(lambda: reading.callbacks(self._refunds))
        return self._renderer.page("callbacks", session, **values)

    async def audit(self, request: web.Request, session: Session) -> web.Response:
        """Show who did what, newest first."""
        if (address := without_blanks(request)) is not None:
            return _to(address)
        query = Query(request, ("by", "target", "action", "before"))
        before = query.text("before")
        query.matching("before", is_move_id(before or ""), "must be the position of an entry")
        action = query.one_of("action", ACTIONS)
        query.check()
        by, target = query.text("by"), query.text("target")
        values = await self._read(
            lambda: reading.audited(
                self._refunds, by=by, target=target, action=action, before=before
            )
        )
        link = _link(request, "before")
        wanted: dict[str, Any] = {"by": by, "target": target, "action": action}
        return self._renderer.page("audit", session, link=link, actions=ACTIONS, **wanted, **values)

    async def _read(self, work: Callable[[], T]) -> T:
        return await self._threads.run(work)


def _filter(query: Query) -> Filter:
    """Return what the parameters of a list ask for. Raises `InvalidRequest`."""
    status = query.one_of("status", [each.value for each in Status])
    stage = query.one_of("stage", [each.value for each in Stage])
    is_reversed = query.one_of("reversed", ["true"]) is not None
    batch, payment = query.text("batch"), query.text("payment_intent")
    query.matching("batch", is_refund_id(batch), "must be the id of a batch")
    query.matching("payment_intent", is_provider_id(payment), "must be the id of a payment")
    query.check()
    return Filter(
        status=None if status is None else Status(status),
        stage=None if stage is None else Stage(stage),
        batch=batch,
        payment_intent=payment,
        reversed_only=is_reversed,
    )


def _link(request: web.Request, position: str = "after") -> str:
    """Return the parameters of a list without its position, for the link to the next page."""
    kept: list[tuple[str, Any]] = [(n, v) for n, v in request.query.items() if n != position]
    query = request.rel_url.with_query(kept).query_string
    return f"{query}&" if query else ""


def _part(text: str) -> str:
    return quote(text, safe=":")


def _to(address: str) -> web.Response:
    return web.Response(status=303, headers={"Location": address})
