"""What the handlers of the API share, and how a request reaches them: token, rate, errors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeVar

import structlog
from aiohttp import web

from worker.client import Refunds
from worker.errors import InvalidRequest, RefundError
from worker.http import bodies, problems
from worker.http.auth import CALLER, Auth, Rates
from worker.http.bodies import JsonReader
from worker.http.problems import Problem
from worker.http.queries import Query
from worker.http.waiters import Waiters
from worker.model.callers import Caller, Scope
from worker.model.request import is_refund_id
from worker.store.async_store import AsyncStore
from worker.store.sweeps import Due

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_READING: Final = 1024
"""The most bodies that are read at once: they may take 64 MB together."""
THREADS: Final = 8
"""Threads for the rare operations, which use the blocking client."""
MOST_IN_THREADS: Final = 64
"""Operations in these threads, the waiting ones included; further ones are answered with 503."""

REQUEST_ID: Final = web.RequestKey("request_id", str)
Handler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]
Plain = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Threads:
    """Runs the rare operations, which block, beside the loop. For one event loop."""

    def __init__(self, *, most: int = MOST_IN_THREADS) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="api")
        self._most, self._running = most, 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run some work in a thread. Raises `Problem` if too much waits, and what the work does."""
        if self._running >= self._most:
            raise Problem(problems.UNAVAILABLE)
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._running -= 1

    def close(self) -> None:
        """Take no more work."""
        self._pool.shutdown(wait=False)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the handlers share.

    `store` serves the frequent requests, `refunds` the rare ones. `count` counts a request by its
    operation and the status of its answer.
    """

    store: AsyncStore
    refunds: Refunds
    nudge: Callable[[Iterable[Due]], None]
    auth: Auth
    rates: Rates
    waiters: Waiters
    count: Callable[[str, int], None]
    bodies: JsonReader = field(default_factory=lambda: JsonReader(most=MAX_READING))
    threads: Threads = field(default_factory=Threads)

    async def json(
        self, request: web.Request, allowed: tuple[str, ...], *, optional: bool = True
    ) -> dict[str, Any]:
        """Return the JSON object in the body of a request without query parameters.

        It has no other members than the allowed ones. Raises `Problem`, `InvalidRequest`.
        """
        Query(request, ()).check()
        body = await self.bodies.read(request, optional=optional)
        if errors := bodies.only(body, allowed):
            raise InvalidRequest(errors)
        return body

    def allowed(self, scope: Scope, handler: Handler) -> Plain:
        """Return a handler that first checks the token, its rate and its scope."""

        async def checked(request: web.Request) -> web.StreamResponse:
            caller = await self.auth.caller(request)
            request[CALLER] = caller
            self.rates.take(caller.name)
            if scope not in caller.scopes:
                raise Problem(
                    problems.FORBIDDEN, f"This needs a token with the scope {scope.value}."
                )
            return await handler(request, caller)

        return checked


def everyones(caller: Caller) -> None:
    """Refuse a caller that sees some ids only. Raises `Problem`."""
    if caller.ids_prefix:
        raise Problem(
            problems.FORBIDDEN, "This concerns all refunds, and the token is for some ids only."
        )


def unknown(refund_id: str) -> Problem:
    """Return the answer for a refund that does not exist, or not for this caller."""
    named = f"refund {refund_id}" if is_refund_id(refund_id) else "refund with this id"
    return Problem(
        problems.NOT_FOUND, f"No {named} was accepted here, or this token does not see it."
    )


def not_its_own(caller: Caller) -> Problem:
    """Return the answer to a refund that a caller may not create."""
    return Problem(
        problems.NOT_FOUND,
        f"This token is only for refund ids that begin with {caller.ids_prefix}: nothing was"
        " accepted.",
    )


async def answered(request: web.Request, handler: Plain) -> web.StreamResponse:
    """Answer every error as problem details, and add the headers of all answers."""
    request[REQUEST_ID] = secrets.token_hex(8)
    try:
        response = await handler(request)
    except Problem as problem:
        response = problems.answer(problem, request[REQUEST_ID])
    except RefundError as error:
        response = problems.answer(_known(error, request), request[REQUEST_ID])
    except web.HTTPException as error:
        if error.status < web.HTTPBadRequest.status_code:
            raise
        response = problems.answer(_of_aiohttp(error), request[REQUEST_ID])
    except Exception as error:  # noqa: BLE001 - one of the outermost loops; its text may repeat the body
        log.error(  # noqa: TRY400 - see above
            "request_failed",
            request_id=request[REQUEST_ID],
            error=type(error).__name__,
            alarm=True,
        )
        response = problems.answer(Problem(problems.INTERNAL), request[REQUEST_ID])
    if not response.prepared:
        dress(request, response)
    return response


def dress(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that every answer has."""
    response.headers["Request-Id"] = request[REQUEST_ID]
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"


def _known(error: RefundError, request: web.Request) -> Problem:
    problem = problems.of_error(error)
    problem.detail = problems.in_addresses(problem.detail)
    if problem.kind.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # The answer does not say which server is away, or why.
        log.warning("request_deferred", request_id=request[REQUEST_ID], error=str(error))
    return problem


def _of_aiohttp(error: web.HTTPException) -> Problem:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return Problem(
            problems.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(sorted(error.allowed_methods))}
        )
    if isinstance(error, web.HTTPNotFound):
        return Problem(problems.NOT_FOUND, "No such address: /openapi.json lists them.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Problem(problems.TOO_LARGE, ends=True)
    return Problem(problems.BAD_REQUEST, ends=True)
