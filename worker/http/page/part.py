"""The part `page` of `refunds serve`: its routes, signing in, and how errors are answered."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from worker.client import Refunds
from worker.errors import NotFound, RefundError
from worker.http import problems
from worker.http.auth import Rates, Tokens
from worker.http.context import REQUEST_ID, Plain, Threads
from worker.http.page.actions import Action, Actions
from worker.http.page.forms import FormReader
from worker.http.page.imports import Imports
from worker.http.page.pagewords import on_page
from worker.http.page.proxies import TrustedProxy
from worker.http.page.refusals import refusal_of
from worker.http.page.rendering import HEADERS, PATH, Renderer, static_file
from worker.http.page.sessions import (
    LIVE,
    Session,
    Sessions,
    require_form_token,
    require_own,
)
from worker.http.page.views import RefusedView, View, Views
from worker.http.problems import Problem
from worker.http.uploads import Uploads
from worker.model.callers import Scope
from worker.settings import Settings
from worker.store.async_store import AsyncStore
from worker.store.sweeps import Due

log = structlog.get_logger(__name__)

SIGN_IN: Final = f"{PATH}/sign-in"
SIGN_OUT: Final = f"{PATH}/sign-out"
_SESSION: Final = web.RequestKey("session", Session)
_AWAY: Final = (
    "The records cannot be reached now, and nothing is known to have changed: try again in a"
    " moment."
)


class Page:
    """The operator's page. For one event loop."""

    def __init__(
        self,
        store: AsyncStore,
        refunds: Refunds,
        auth: Tokens,
        rates: Rates,
        nudge: Callable[[Iterable[Due]], None],
        *,
        uploads: Uploads,
        settings: Settings,
        proxy: TrustedProxy,
    ) -> None:
        self._rates = rates
        self._threads, self._renderer = Threads(), Renderer()
        self._sessions, self._forms = Sessions(store, auth, proxy), FormReader()
        self._views = Views(refunds, self._threads, self._renderer, uploads.spool)
        self._actions = Actions(refunds, self._threads, nudge)
        self._imports = Imports(refunds, self._threads, self._renderer, uploads, settings)

    def add(self, application: web.Application) -> None:
        """Add the routes, and the middleware that answers errors as pages."""
        application.middlewares.append(self._middleware())
        router = application.router
        router.add_get("/", self._root)
        router.add_get(f"{PATH}/static/{{name}}", self._static)
        router.add_get(SIGN_IN, self.show_sign_in)
        router.add_post(SIGN_IN, self.sign_in)
        router.add_post(SIGN_OUT, self.sign_out)
        for address, view in self._views.routes().items():
            router.add_get(address, self._signed_in(view))
        for address, action in self._actions.routes().items():
            router.add_post(address, self._acting(action))
        self._add_imports(router)

    def _add_imports(self, router: web.UrlDispatcher) -> None:
        for address, view in self._imports.views().items():
            router.add_get(address, self._signed_in(view, Scope.SUBMIT))
        for address, view in self._imports.receiving().items():
            router.add_post(address, self._receiving(view, Scope.SUBMIT))
        for address, action in self._imports.actions().items():
            router.add_post(address, self._acting(action, Scope.SUBMIT))
        shown, received = self._imports.open_to_all()
        for address, view in shown.items():
            router.add_get(address, self._signed_in(view))
        for address, view in received.items():
            router.add_post(address, self._receiving(view, Scope.READ))

    def end(self) -> None:
        """Do nothing: no request waits."""

    async def close(self) -> None:
        """End the threads."""
        self._threads.close()

    async def show_sign_in(self, request: web.Request) -> web.Response:
        """Ask for a token."""
        return self._renderer.page("sign_in", None, error="", to=_target(request.query.get("to")))

    async def sign_in(self, request: web.Request) -> web.Response:
        """Open a session with a token, and go to where the person wanted to go."""
        require_own(request)
        form = await self._forms.read(request)
        to = _target(form.get("to"))
        response = _see(to)
        try:
            await self._sessions.open(request, form.get("token", ""), response)
        except Problem as problem:
            error = problem.detail
            if problem.kind is problems.UNAUTHORIZED:
                error = "This is not a valid token. It may have expired or been revoked."
            return self._renderer.page(
                "sign_in", None, status=problem.kind.status, error=error, to=to
            )
        return response

    async def sign_out(self, request: web.Request) -> web.Response:
        """End the session."""
        require_own(request)
        session = await self._sessions.find(request)
        response = _see(SIGN_IN)
        if session is not None:
            form = await self._forms.read(request)
            require_form_token(request, session, form.get("form_token", ""))
            await self._sessions.end(request, session, response)
        return response

    def _signed_in(self, view: View, scope: Scope = Scope.READ) -> Plain:
        """Return a handler that first finds the session, or asks for a token."""

        async def found(request: web.Request) -> web.StreamResponse:
            session = await self._sessions.find(request)
            if session is None:
                if LIVE in request.headers:
                    raise Problem(problems.UNAUTHORIZED)
                return _see(f"{SIGN_IN}?to={quote(request.path_qs, safe='')}")
            request[_SESSION] = session
            self._rates.take(session.caller.name)
            _require(scope, session)
            return await view(request, session)

        return found

    def _acting(self, action: Action, scope: Scope = Scope.OPERATE) -> Plain:
        """Return a handler that checks the form and the person, acts, and shows the result."""

        async def acted(request: web.Request) -> web.StreamResponse:
            session = await self._person(request)
            form = await self._forms.read(request)
            require_form_token(request, session, form.get("form_token", ""))
            _require(scope, session)
            try:
                return _see(await action(request, session, form))
            except RefundError as error:
                refusal, view = refusal_of(error, form), self._refused_view(request)
                if refusal is None or view is None:
                    raise
            return await view(request, session, refusal)

        return acted

    def _refused_view(self, request: web.Request) -> RefusedView | None:
        """Return the view that shows a form again, None if it is answered by an error's page."""
        named = request.match_info.keys()
        if "check_id" in named:
            return self._imports.refused
        return self._views.refused if named & {"refund_id", "batch_id"} else None

    def _receiving(self, view: View, scope: Scope) -> Plain:
        """Return a handler that checks the person, and leaves the form with its file to `view`."""

        async def received(request: web.Request) -> web.StreamResponse:
            session = await self._person(request)
            _require(scope, session)
            return await view(request, session)

        return received

    async def _person(self, request: web.Request) -> Session:
        """Return the session in which a form of this page was sent. Raises `Problem`."""
        require_own(request)
        session = await self._sessions.find(request)
        if session is None:
            raise Problem(
                problems.UNAUTHORIZED,
                "Your session has ended, and nothing was changed: sign in and look again.",
                ends=True,
            )
        request[_SESSION] = session
        self._rates.take(session.caller.name)
        return session

    async def _root(self, _request: web.Request) -> web.Response:
        return _see(PATH)

    async def _static(self, request: web.Request) -> web.Response:
        return static_file(request.match_info["name"])

    def _middleware(self) -> Middleware:
        @web.middleware
        async def pages_only(request: web.Request, handler: Plain) -> web.StreamResponse:
            if request.path != PATH and not request.path.startswith(f"{PATH}/"):
                return await handler(request)
            request[REQUEST_ID] = secrets.token_hex(8)
            response = await self._answered(request, handler)
            response.headers.update(HEADERS)
            response.headers["Request-Id"] = request[REQUEST_ID]
            return response

        return pages_only

    async def _answered(self, request: web.Request, handler: Plain) -> web.StreamResponse:
        try:
            return await handler(request)
        except Problem as problem:
            found = problem
        except RefundError as error:
            found = problems.of_error(error)
            if isinstance(error, NotFound):
                found = Problem(problems.NOT_FOUND, on_page(str(error)))
            elif found.kind.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                log.warning("page_deferred", request_id=request[REQUEST_ID], error=str(error))
                found = Problem(found.kind, _AWAY)
        except web.HTTPException as error:
            status = HTTPStatus(error.status)
            return self._error(status, status.phrase, "This address does not exist here.", request)
        except Exception as error:  # noqa: BLE001 - one of the outermost loops; its text may repeat the form
            log.error(  # noqa: TRY400 - see above
                "page_failed",
                request_id=request[REQUEST_ID],
                error=type(error).__name__,
                alarm=True,
            )
            found = Problem(problems.INTERNAL, "Nothing is known to have changed: look again.")
        return self._problem(found, request)

    def _problem(self, problem: Problem, request: web.Request) -> web.Response:
        kind = problem.kind
        response = self._error(
            kind.status, kind.title, problem.detail or kind.detail or kind.help, request
        )
        wait = problem.retry_after or kind.retry_after
        if wait is not None:
            response.headers["Retry-After"] = str(wait)
        if problem.ends:
            response.force_close()
        return response

    def _error(
        self, status: HTTPStatus, title: str, detail: str, request: web.Request
    ) -> web.Response:
        return self._renderer.page(
            "error",
            request.get(_SESSION),
            status=status,
            title=title,
            detail=detail,
            request_id=request[REQUEST_ID],
            back=_back(request),
        )


def _require(scope: Scope, session: Session) -> None:
    if scope in session.caller.scopes:
        return
    if session.is_proxied:
        raise Problem(
            problems.FORBIDDEN,
            "You may read only. If you are to act, ask the people who run this server.",
        )
    raise Problem(
        problems.FORBIDDEN, f"To do this, sign in with a token with the scope {scope.value}."
    )


def _target(text: str | None) -> str:
    """Return where to go after signing in: an address of the page, whatever is asked for."""
    is_own = text is not None and (text == PATH or text.startswith((f"{PATH}/", f"{PATH}?")))
    return text if is_own and text is not None and text.isprintable() else PATH


def _see(address: str) -> web.Response:
    return web.Response(status=HTTPStatus.SEE_OTHER.value, headers={"Location": address})


def _back(request: web.Request) -> str:
    """Return the view to which a person returns from an error."""
    is_form = request.method == "POST" and request.path not in {SIGN_IN, SIGN_OUT}
    return request.path.rpartition("/")[0] if is_form else PATH
