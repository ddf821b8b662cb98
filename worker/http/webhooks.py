"""The part `webhooks`: receives the provider's events at `POST /webhooks/wooshpay`.

An event only says which refund to read. It is checked, its ids are noted, and a worker reads the
refund from the provider. A body is never logged.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final, Protocol

import structlog
from aiohttp import web

from worker.errors import NotDurable, RefundError, StoreUnavailable
from worker.http.bodies import Reader, Unreadable
from worker.model import hints, signatures
from worker.model.hints import Hint
from worker.store.sweeps import Due

log = structlog.get_logger(__name__)

PATH: Final = signatures.PATH
MAX_BODY: Final = 256 * 1024
NOTE_SECONDS: Final = 5.0
"""How long the records may take to note an event, so that the provider still waits for a 503."""
MAX_READING: Final = 256
"""The most bodies that are read at once: they may take 64 MB together."""
MAX_IN_FLIGHT: Final = 64
RETRY_AFTER_SECONDS: Final = 30
_NAMED: Final = 50
"""The most refunds of one event that are named in the log as not read."""
_QUIET_SECONDS: Final = 10.0
"""A refusal is logged once in this time for each reason, so that a flood cannot fill the log."""


class Result(StrEnum):
    """What became of a delivery; the label of `refunds_webhooks_total`."""

    HINTED = "hinted"
    PAYMENT = "payment"
    UNKNOWN = "unknown"
    IGNORED = "ignored"
    FORGED = "forged"
    STALE = "stale"
    MALFORMED = "malformed"


class Hinted(Protocol):
    """What the records hold about a hint: the kind of match, and the refunds that are due."""

    @property
    def result(self) -> str:
        """Return `hinted`, `payment` or `unknown`."""
        ...

    @property
    def due(self) -> tuple[Due, ...]:
        """Return the refunds to nudge at once."""
        ...

    @property
    def left_out(self) -> tuple[str, ...]:
        """Return our refunds for which the named one is not read."""
        ...


_BEST_FIRST: Final = (Result.HINTED, Result.PAYMENT, Result.UNKNOWN)
_WRONG: Final = HTTPStatus.BAD_REQUEST
_AWAY: Final = HTTPStatus.SERVICE_UNAVAILABLE


class _Refused(Exception):
    """A delivery that is answered with an HTTP status, and counted if it has a result."""

    def __init__(self, status: HTTPStatus, result: Result | None = None) -> None:
        self.status, self.result = status, result


class Webhooks:
    """Receives events. For one event loop.

    `hint` notes an event's ids in the records, durably; `nudge` tells the workers of refunds that
    are due; `count` counts each delivery once.
    """

    def __init__(
        self,
        *,
        secrets: Sequence[str],
        max_age: timedelta | None,
        hint: Callable[[Hint], Awaitable[Hinted]],
        nudge: Callable[[Iterable[Due]], None],
        count: Callable[[str], None],
        wall: Callable[[], datetime],
        body_seconds: float,
        note_seconds: float,
    ) -> None:
        self._secrets = tuple(secrets)
        self._max_age = max_age
        self._hint = hint
        self._nudge = nudge
        self._count = count
        self._wall = wall
        self._bodies = Reader(limit=MAX_BODY, most=MAX_READING, seconds=body_seconds)
        self._note_seconds = note_seconds
        self._in_flight = 0
        self._logged: dict[str, float] = {}

    def add(self, application: web.Application) -> None:
        """Add the one route of this part."""
        application.router.add_post(PATH, self.receive)

    def end(self) -> None:
        """Do nothing: no request waits."""

    async def close(self) -> None:
        """Do nothing: what was answered is in the records."""

    async def receive(self, request: web.Request) -> web.Response:
        """Answer one delivery; the provider repeats one that is not answered with 200."""
        try:
            result = await self._admit(request, await self._body(request))
        except _Refused as refused:
            return self._refuse(refused)
        except (StoreUnavailable, NotDurable) as error:
            self._say("webhook_deferred", error=str(error))
            return self._refuse(_Refused(_AWAY))
        except RefundError as error:
            # A person is needed, and the provider repeats the event meanwhile.
            self._say("webhook_not_kept", error=str(error), alarm=True)
            return self._refuse(_Refused(_AWAY))
        except Exception as error:  # noqa: BLE001 - one of the outermost loops; its text may repeat the body
            log.error("webhook_failed", error=type(error).__name__, alarm=True)  # noqa: TRY400 - see above
            return self._refuse(_Refused(_AWAY))
        self._count(result)
        return web.json_response({})

    def _refuse(self, refused: _Refused) -> web.Response:
        if refused.result is not None:
            self._count(refused.result)
            self._say("webhook_refused", result=refused.result.value, status=refused.status.value)
        if refused.status == _AWAY:
            return web.Response(status=_AWAY, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
        response = web.Response(status=refused.status)
        # What follows on this connection may be the rest of the body.
        response.force_close()
        return response

    async def _body(self, request: web.Request) -> bytes:
        try:
            return await self._bodies.read(request)
        except Unreadable as error:
            # A client that has gone sent no whole event, so it is not counted: an alert is about
            # bodies that came and are wrong.
            is_counted = error.status != _AWAY and not error.gone
            raise _Refused(error.status, Result.MALFORMED if is_counted else None) from None

    async def _admit(self, request: web.Request, body: bytes) -> Result:
        if self._in_flight >= MAX_IN_FLIGHT:
            raise _Refused(_AWAY)
        self._in_flight += 1
        try:
            return await self._handle(request, body)
        finally:
            self._in_flight -= 1

    async def _handle(self, request: web.Request, body: bytes) -> Result:
        verdict = signatures.check(
            request.headers.getall(signatures.HEADER, []),
            body,
            secrets=self._secrets,
            now=self._wall(),
            max_age=self._max_age,
        )
        if verdict != "valid":
            raise _Refused(_WRONG, Result(verdict))
        listed = hints.read_all(_event(body))
        if not listed:
            return Result.IGNORED
        found, rest = listed[: hints.MOST], listed[hints.MOST :]
        if rest:
            # Each is still read at its own time, only not because of this event.
            log.warning(
                "webhook_list_cut",
                payment_intent=found[0].payment_intent,
                count=len(rest),
                left_out=[hint.provider_refund_id for hint in rest[:_NAMED]],
            )
        try:
            # A note that is completed after this limit is harmless: the event comes again.
            async with asyncio.timeout(self._note_seconds):
                results = {await self._note(hint) for hint in found}
        except TimeoutError:
            raise StoreUnavailable(
                f"Redis did not note an event within {self._note_seconds:g} seconds"
            ) from None
        return next(result for result in _BEST_FIRST if result in results)

    async def _note(self, hint: Hint) -> Result:
        if not (hint.provider_refund_id or hint.refund_id or hint.payment_intent):
            return Result.UNKNOWN
        hinted = await self._hint(hint)
        self._nudge(hinted.due)
        log.info(
            "webhook_received",
            result=hinted.result,
            refund_id=hint.refund_id,
            provider_refund_id=hint.provider_refund_id,
            payment_intent=hint.payment_intent,
        )
        for refund_id in hinted.left_out:
            log.error(
                "webhook_left_out",
                refund_id=refund_id,
                provider_refund_id=hint.provider_refund_id,
                error=(
                    "webhooks named other refunds of the provider for this refund before, so many"
                    " that it is not read: see in the provider's dashboard whether it moved money"
                ),
                alarm=True,
            )
        return Result(hinted.result)

    def _say(self, event: str, **facts: Any) -> None:
        """Log a refusal, unless the same was logged a moment ago."""
        kind, now = f"{event} {facts.get('result')}", time.monotonic()
        if now - self._logged.get(kind, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            self._logged[kind] = now
            log.warning(event, **facts)


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _Refused(_WRONG, Result.MALFORMED) from None
    if not isinstance(event, dict):
        raise _Refused(_WRONG, Result.MALFORMED)
    return event
