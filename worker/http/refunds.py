"""The routes of refunds: create, read, list, and what people decide about them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, get_args

from aiohttp import web

from worker.client import Decision, Refunds, record_of
from worker.errors import (
    FieldError,
    InvalidRequest,
    MessageRejected,
    NotDurable,
    NotFound,
    StoreUnavailable,
)
from worker.http import bodies, problems
from worker.http.context import Context, not_its_own, unknown
from worker.http.creations import Creations
from worker.http.deeds import deed_of
from worker.http.queries import Query, etag, has, has_gone, refund_id_of
from worker.model.callers import Caller, Scope
from worker.model.hints import Hint
from worker.model.refund import Lane, Refund, Stage, Status
from worker.model.request import RefundRequest, is_provider_id, is_refund_id, shown
from worker.model.times import to_ms
from worker.store import rechecks
from worker.store.audit import Deed, carry_out, carry_out_async
from worker.store.listing import Filter, page
from worker.store.reads import Loaded
from worker.store.records import history_as_json
from worker.store.sweeps import Due

PATH: Final = "/v1/refunds"
FIELDS: Final = ("refund_id", "payment_intent", "amount", "currency", "reason", "metadata")
MAX_VERSION: Final = 2**53
"""A version above it cannot be one: JavaScript and Lua count no further."""
RESOLVING: Final = ("decision", "provider_refund_id", "code", "note", "version", "unverified")
MOST_LISTED: Final = 500
LISTED: Final = 100
_LONGEST_RETRY: Final = 60
_IDS: Final = "must be 1 to 200 of A-Z a-z 0-9 . _ : -"
_VERSIONS: Final = "must be the whole number version of the record that you read"
_PAYMENTS: Final = "must be the provider's id, 1 to 200 of A-Z a-z 0-9 _ -"


class RefundRoutes:
    """Answers the requests about refunds."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._creations = Creations(context.store.run)

    def add(self, application: web.Application) -> None:
        """Add the routes."""
        router, allowed = application.router, self._context.allowed
        one = f"{PATH}/{{refund_id}}"
        router.add_post(PATH, allowed(Scope.SUBMIT, self.create))
        router.add_get(PATH, allowed(Scope.READ, self.list))
        router.add_get(one, allowed(Scope.READ, self.get))
        router.add_get(f"{one}/history", allowed(Scope.READ, self.history))
        router.add_post(f"{one}/cancel", allowed(Scope.SUBMIT, self.cancel))
        router.add_post(f"{one}/retry", allowed(Scope.OPERATE, self.retry))
        router.add_post(f"{one}/resolve", allowed(Scope.OPERATE, self.resolve))
        for name in ("recheck", "look"):
            router.add_post(f"{one}/{name}", allowed(Scope.OPERATE, self.recheck))

    async def create(self, request: web.Request, caller: Caller) -> web.Response:
        """Accept a refund once; a repeat of the same request returns the record as it is."""
        query = Query(request, ("wait",))
        seconds = query.seconds()
        query.check()
        wanted = request_in(request, await self._context.bodies.read(request, optional=False))
        if not caller.sees(wanted.refund_id):
            raise not_its_own(caller)
        created = await self._creations.create(wanted, by=caller.name)
        refund = record_of(wanted, Lane.SINGLE, created)
        if created.result == "created":
            due = Due(refund_id=wanted.refund_id, lane=Lane.SINGLE, stage=Stage.QUEUED)
            self._context.nudge([due])
        try:
            loaded = await self._awaited(request, refund, created.now, seconds)
        except (StoreUnavailable, NotDurable):
            # It is accepted, and that is on disk: only its result is not known.
            loaded = Loaded(now=created.now, seq="", refund=refund)
        refund = loaded.refund or refund
        status = HTTPStatus.OK if refund.settled else HTTPStatus.ACCEPTED
        return _answer(refund, loaded.now, status, {"Location": f"{PATH}/{refund.refund_id}"})

    async def get(self, request: web.Request, caller: Caller) -> web.Response:
        """Return a refund's record."""
        query = Query(request, ("wait",))
        seconds = query.seconds()
        query.check()
        refund_id = _id_of(request, caller)
        loaded = await self._context.store.load(refund_id)
        refund = loaded.refund
        if refund is None:
            # Perhaps a message that named it was refused: then the answer says so.
            refund = await self._in_thread(refund_id, lambda client: client.get(refund_id))
        loaded = await self._awaited(request, refund, loaded.now, seconds)
        refund = loaded.refund or refund
        if has(request, refund.version) and not await self._may_be_counted_again(refund):
            return web.Response(
                status=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag(refund.version)}
            )
        return _answer(refund, loaded.now)

    async def _may_be_counted_again(self, refund: Refund) -> bool:
        """Return whether a lost record may have had the same version with other contents.

        A restored server counts what has moved since its snapshot once more.
        """
        (since,) = await self._context.store.meta("suspect_since")
        return since is not None and int(since) <= to_ms(refund.updated_at)

    async def history(self, request: web.Request, caller: Caller) -> web.Response:
        """Return a refund's moves, oldest first."""
        Query(request, ()).check()
        refund_id = _id_of(request, caller)

        def read(client: Refunds) -> list[dict[str, Any]]:
            client.get(refund_id)
            return history_as_json(client.history(refund_id))

        return web.json_response({"data": await self._in_thread(refund_id, read)})

    async def list(self, request: web.Request, caller: Caller) -> web.Response:
        """Return a page of the refunds that match."""
        names = ("status", "stage", "batch", "payment_intent", "reversed", "after", "limit")
        query = Query(request, names)
        limit = query.whole("limit", default=LISTED, most=MOST_LISTED)
        status = query.one_of("status", [each.value for each in Status])
        stage = query.one_of("stage", [each.value for each in Stage])
        only_reversed = query.one_of("reversed", ["true", "false"]) == "true"
        payment, batch = query.text("payment_intent"), query.text("batch")
        query.matching("payment_intent", is_provider_id(payment), _PAYMENTS)
        query.matching("batch", is_refund_id(batch), "must be the id of a batch")
        query.check()
        wanted = Filter(
            status=None if status is None else Status(status),
            stage=None if stage is None else Stage(stage),
            batch=batch,
            payment_intent=payment,
            reversed_only=only_reversed,
            ids_prefix=caller.ids_prefix,
        )
        after = query.text("after")
        found = await self._context.threads.run(
            lambda: page(self._context.refunds.store, wanted, after=after, limit=limit)
        )
        return web.json_response(
            {"data": [refund.as_dict() for refund in found.refunds], "next": found.cursor}
        )

    async def cancel(self, request: web.Request, caller: Caller) -> web.Response:
        """Cancel a refund that was not sent; one that is canceled already is returned."""
        await self._context.json(request, ())
        refund_id = _id_of(request, caller)
        return await self._decided(
            deed_of(request, caller, "cancel", refund_id),
            lambda client: client.cancel_once(refund_id, by=caller.name),
        )

    async def retry(self, request: web.Request, caller: Caller) -> web.Response:
        """Send a failed refund again; one that is being sent again already is returned."""
        body = await self._context.json(request, ("unknown", "version"))
        refund_id = _id_of(request, caller)
        anyway, version = bodies.flag(body, "unknown"), _version_in(body)
        return await self._decided(
            deed_of(request, caller, "retry", refund_id),
            lambda client: client.retry_once(
                refund_id, unknown=anyway, by=caller.name, version=version
            ),
        )

    async def resolve(self, request: web.Request, caller: Caller) -> web.Response:
        """Resolve a refund in review by a person's decision on the version that they read."""
        decision = _decision_in(await self._context.json(request, RESOLVING, optional=False))
        refund_id = _id_of(request, caller)
        action, note = f"resolve as {decision['decision']}", decision["note"]
        return await self._decided(
            deed_of(request, caller, action, refund_id, note=note),
            lambda client: (True, client.resolve(refund_id, by=caller.name, **decision)),
        )

    async def recheck(self, request: web.Request, caller: Caller) -> web.Response:
        """Have a worker read the refund from the provider now, if it was sent."""
        await self._context.json(request, ())
        refund_id = _id_of(request, caller)
        loaded = await self._context.store.load(refund_id)
        if loaded.refund is None:
            raise unknown(refund_id)
        hint = Hint(provider_refund_id=loaded.refund.provider_refund_id, refund_id=refund_id)
        store = self._context.store
        deed = deed_of(request, caller, "recheck", refund_id)
        hinted = await carry_out_async(store, deed, lambda: store.run(rechecks.hint(hint)))
        self._context.nudge(hinted.due)
        return _answer(loaded.refund, loaded.now)

    async def _awaited(
        self, request: web.Request, refund: Refund, now: datetime, seconds: float
    ) -> Loaded:
        """Return the record once it is settled or in review, or as it is after `seconds`."""
        latest = Loaded(now=now, seq="", refund=refund)
        if refund.rests or seconds <= 0:
            return latest

        async def is_over() -> bool:
            nonlocal latest
            latest = await self._context.store.load(refund.refund_id)
            return latest.refund is None or latest.refund.rests or has_gone(request)

        await self._context.waiters.until(is_over, refund_id=refund.refund_id, seconds=seconds)
        return latest

    async def _decided(
        self, deed: Deed, decide: Callable[[Refunds], tuple[bool, Refund]]
    ) -> web.Response:
        _, refund = await self._in_thread(
            deed.target,
            lambda client: carry_out(client.store, deed, lambda: decide(client)),
        )
        return _answer(refund, refund.updated_at)

    async def _in_thread(self, refund_id: str, work: Callable[[Refunds], Any]) -> Any:
        try:
            return await self._context.threads.run(partial(work, self._context.refunds))
        except MessageRejected:
            raise
        except NotFound:
            raise unknown(refund_id) from None


def request_in(request: web.Request, body: Mapping[str, Any]) -> RefundRequest:
    """Return the refund that a request asks for.

    Raises `Problem`, and `InvalidRequest` with every broken rule.
    """
    errors = bodies.only(dict(body), FIELDS)
    refund_id: Any = refund_id_of(request, body.get("refund_id"))
    # JavaScript writes NaN as null: a mistake must not refund all that is left.
    for name, meaning in (("refund_id", "use the header"), ("amount", "refund all that is left")):
        if name in body and body[name] is None:
            rule = f"must not be null: leave it out to {meaning}"
            errors.append(FieldError(field=name, code=name, value="null", rule=rule))
    given = {name: body[name] for name in FIELDS if body.get(name) is not None}
    try:
        made = RefundRequest(**{"payment_intent": "", **given, "refund_id": refund_id})
    except InvalidRequest as error:
        raise InvalidRequest([*errors, *error.errors]) from None
    if errors:
        raise InvalidRequest(errors)
    return made


def _decision_in(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decision in a body, as `Refunds.resolve` takes it. Raises `InvalidRequest`."""
    errors: list[FieldError] = []

    def refuse(name: str, code: str, rule: str) -> None:
        errors.append(FieldError(field=name, code=code, value=shown(body.get(name)), rule=rule))

    decision = body.get("decision")
    if decision not in get_args(Decision):
        refuse("decision", "choice", f"must be one of {', '.join(get_args(Decision))}")
    for name, of in (("provider_refund_id", "succeeded"), ("code", "failed")):
        if decision == of and not isinstance(body.get(name), str):
            refuse(name, name, f"must be a text if the decision is {of}")
        elif decision != of and name in body:
            refuse(name, name, f"may only be given if the decision is {of}")
    if not isinstance(body.get("note"), str):
        refuse("note", "note", "must be a text that says how you know")
    version: Any = body.get("version")
    if not _is_version(version):
        refuse("version", "version", _VERSIONS)
    if errors:
        raise InvalidRequest(errors)
    return {
        **body,
        "version": int(version),
        "unverified": bodies.flag(dict(body), "unverified"),
    }


def _version_in(body: Mapping[str, Any]) -> int | None:
    """Return the version in a body, None if it has none. Raises `InvalidRequest`."""
    version: Any = body.get("version")
    if "version" not in body:
        return None
    if not _is_version(version):
        raise problems.wrong_field("version", "version", shown(version), _VERSIONS)
    return int(version)


def _is_version(value: Any) -> bool:
    """Return whether a value is a whole number from 1 on; JSON may write 7 as 7.0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # An integer may be longer than any float can be.
    is_whole = isinstance(value, int) or (math.isfinite(value) and value == value // 1)
    return is_whole and 1 <= value <= MAX_VERSION


def _id_of(request: web.Request, caller: Caller) -> str:
    """Return the id in the address. Raises `Problem` if no such refund can exist for the caller."""
    refund_id = request.match_info["refund_id"]
    if not is_refund_id(refund_id) or not caller.sees(refund_id):
        raise unknown(refund_id)
    return refund_id


def _retry_seconds(refund: Refund, now: datetime) -> int:
    """Return the seconds after which to ask for a pending refund again."""
    if refund.stage is Stage.QUEUED or refund.next_check_at is None:
        return 1
    left = math.ceil((refund.next_check_at - now).total_seconds())
    return min(max(left, 1), _LONGEST_RETRY)


def _answer(
    refund: Refund,
    now: datetime,
    status: HTTPStatus = HTTPStatus.OK,
    more: Mapping[str, str] | None = None,
) -> web.Response:
    """Return a record; a pending one with the time after which to ask again."""
    headers = {"ETag": etag(refund.version), **(more or {})}
    if not refund.settled:
        headers["Retry-After"] = str(_retry_seconds(refund, now))
    return web.Response(
        status=status.value,
        body=json.dumps(refund.as_dict()).encode("ascii"),
        content_type=bodies.JSON,
        headers=headers,
    )
