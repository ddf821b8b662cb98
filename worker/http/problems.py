"""The errors of the API, as problem details (RFC 9457): one table, and one page for each type."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from worker import errors
from worker.errors import FieldError, InvalidRequest, RefundError

CONTENT_TYPE: Final = "application/problem+json"
PATH: Final = "/problems/{name}"
_COMMAND: Final = re.compile(
    r"(?:run )?'refunds (status|retry|batch list|batch show)(?: ([^' ]+))?( --[a-z]+)?'"
)
_REPEAT: Final = (
    "The records cannot be reached now. Nothing is known to be accepted or changed: repeat the"
    " same request, with the same id."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A type of problem: its status, its title, and what to do about it."""

    name: str
    status: HTTPStatus
    title: str
    help: str
    detail: str | None = None
    """The detail of every such problem; None if it is the error's own sentence."""
    retry_after: int | None = None


def _kind(
    name: str,
    status: HTTPStatus,
    title: str,
    help_: str,
    *,
    detail: str | None = None,
    retry_after: int | None = None,
) -> Kind:
    return Kind(
        name=name, status=status, title=title, help=help_, detail=detail, retry_after=retry_after
    )


BAD_REQUEST: Final = _kind(
    "bad-request",
    HTTPStatus.BAD_REQUEST,
    "The request cannot be read.",
    "The body is not JSON in UTF-8, or no id was given, or two different ones.",
)
UNAUTHORIZED: Final = _kind(
    "unauthorized",
    HTTPStatus.UNAUTHORIZED,
    "A valid token is needed.",
    "Send `Authorization: Bearer rfw_…`. Tokens are made with 'refunds tokens create'; they may"
    " expire or be revoked.",
    detail="The header Authorization must hold a valid token, as `Bearer rfw_…`.",
)
FORBIDDEN: Final = _kind(
    "forbidden",
    HTTPStatus.FORBIDDEN,
    "The token does not allow this.",
    "Each operation needs a scope: read, submit or operate. A token for some ids only cannot change"
    " what concerns all.",
)
NOT_FOUND: Final = _kind(
    "not-found",
    HTTPStatus.NOT_FOUND,
    "This does not exist.",
    "No refund with this id was accepted, or the token does not see it, or the address is wrong.",
)
METHOD_NOT_ALLOWED: Final = _kind(
    "method-not-allowed",
    HTTPStatus.METHOD_NOT_ALLOWED,
    "The address does not have this method.",
    "The header Allow names the methods of the address.",
    detail="The header Allow names the methods of this address.",
)
TIMEOUT: Final = _kind(
    "request-timeout",
    HTTPStatus.REQUEST_TIMEOUT,
    "The body took too long.",
    "A body must arrive within ten seconds. Nothing was accepted.",
    detail="The body did not arrive within ten seconds. Nothing was accepted.",
)
TOO_LARGE: Final = _kind(
    "too-large",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "The body is too large.",
    "A JSON body may hold 64 KiB, and a file 1 GiB. Nothing was accepted.",
    detail="The body is larger than 64 KiB. Nothing was accepted.",
)
UNSUPPORTED: Final = _kind(
    "unsupported-media-type",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "The body has a wrong type.",
    "Send `Content-Type: application/json` and no Content-Encoding; a file as text/csv,"
    " application/x-ndjson or as an XLSX workbook, and gzip only with `Content-Encoding: gzip`.",
    detail="Send `Content-Type: application/json`, in UTF-8, and no Content-Encoding.",
)
TOO_MANY: Final = _kind(
    "too-many-requests",
    HTTPStatus.TOO_MANY_REQUESTS,
    "Too many requests.",
    "Wait for as many seconds as Retry-After says, then repeat the request.",
    retry_after=1,
)
INTERNAL: Final = _kind(
    "internal-error",
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "An unforeseen error.",
    "It is a bug. Nothing is known to be accepted: repeat the same request, with the same id, and"
    " report the request_id.",
    detail="Nothing is known to be accepted: repeat the same request, with the same id.",
)
UNAVAILABLE: Final = _kind(
    "unavailable",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The records cannot be reached.",
    _REPEAT,
    detail=_REPEAT,
    retry_after=5,
)

INVALID_ROWS: Final = _kind(
    "invalid-rows",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "Rows of the file are invalid.",
    "`report` counts them, and shows the first 100 errors. Nothing was imported. Send the corrected"
    " file, or add on_error=skip to import the valid rows.",
)
REFUSED: Final = _kind(
    "refused",
    HTTPStatus.CONFLICT,
    "A guard refused.",
    "The detail says why. Nothing was changed.",
)
BUSY: Final = _kind(
    "busy",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "Too many files are being read.",
    "Two files are read at once. Send the same file again later: nothing of it was accepted.",
    detail="Other files are being read. Nothing was accepted: send the same file again later.",
    retry_after=30,
)
NO_SPACE: Final = _kind(
    "no-space",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The disk has too little room for the file.",
    "A file may take half of the free space in REFUNDS_SPOOL_DIR. Nothing was accepted.",
    detail="The disk of the server has too little room for this file. Nothing was accepted.",
    retry_after=60,
)

TABLE: Final[tuple[tuple[type[RefundError], Kind], ...]] = (
    (
        InvalidRequest,
        _kind(
            "invalid-request",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "A field breaks a rule.",
            "`errors` names every field that is wrong, and its rule. Nothing was changed.",
        ),
    ),
    (
        errors.InputError,
        _kind(
            "invalid-file",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The file cannot be read.",
            "The detail names the place in the file and what to do. Nothing was accepted.",
        ),
    ),
    (
        errors.MessageRejected,
        _kind(
            "message-rejected",
            HTTPStatus.NOT_FOUND,
            "A message with this id was refused.",
            "The refund was sent as a Celery message that was not valid, and was not accepted.",
        ),
    ),
    (errors.NotFound, NOT_FOUND),
    (
        errors.IdempotencyConflict,
        _kind(
            "idempotency-conflict",
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The id exists with other contents.",
            "The existing refund is unchanged. Use a new id for a new refund.",
        ),
    ),
    (
        errors.NotCancelable,
        _kind(
            "not-cancelable",
            HTTPStatus.CONFLICT,
            "The refund cannot be canceled.",
            "It may have been sent already, or it is settled. It is unchanged.",
        ),
    ),
    (
        errors.NotInReview,
        _kind(
            "not-in-review",
            HTTPStatus.CONFLICT,
            "The refund is not in review.",
            "Only a refund whose stage is `review` can be resolved. It is unchanged.",
        ),
    ),
    (
        errors.NotRetriable,
        _kind(
            "not-retriable",
            HTTPStatus.CONFLICT,
            "The refund cannot be sent again.",
            "It has not failed, or sending it again cannot help. It is unchanged.",
        ),
    ),
    (
        errors.Changed,
        _kind(
            "changed",
            HTTPStatus.CONFLICT,
            "The refund has changed meanwhile.",
            "Read it again, and decide on the version that it has now. It is unchanged.",
        ),
    ),
    (
        errors.NotDurable,
        _kind(
            "not-durable",
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The records may be lost.",
            "The records' server may forget what it acknowledges. 'refunds doctor' shows why.",
            detail="The records cannot be kept safely now. Nothing is known to be accepted: repeat"
            " the same request later, with the same id.",
            retry_after=30,
        ),
    ),
    (
        errors.NotStorable,
        _kind(
            "not-storable",
            HTTPStatus.CONFLICT,
            "The records cannot hold this.",
            "A value, or one already stored, cannot be held by the records. Nothing was changed.",
            detail="The records cannot hold a value of this request, or one that they hold already"
            " is wrong. Nothing was changed.",
        ),
    ),
    (
        errors.KnownFile,
        _kind(
            "known-file",
            HTTPStatus.CONFLICT,
            "The file was imported before.",
            "`batch_id` names its batch. Nothing was changed. To import only new rows of the file,"
            " add again=true.",
        ),
    ),
    (errors.GuardRefused, REFUSED),
    (
        errors.StoreFull,
        _kind(
            "full",
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The records are nearly full.",
            "No new refund is accepted until the server of the records has more memory.",
            detail="The records have too little memory for new refunds. Nothing was accepted:"
            " repeat the same request later, with the same id.",
            retry_after=30,
        ),
    ),
    (
        errors.TooFewReplicas,
        _kind(
            "too-few-replicas",
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Too few replicas have the records.",
            "Fewer replicas than REFUNDS_REPLICAS confirm a write. 'refunds doctor' shows why.",
            detail="Too few replicas of the records confirmed this. Nothing is known to be"
            " accepted: repeat the same request later, with the same id.",
            retry_after=5,
        ),
    ),
    (errors.StoreUnavailable, UNAVAILABLE),
    (errors.SettingsError, UNAVAILABLE),
    (errors.ProviderUnavailable, UNAVAILABLE),
    (RefundError, INTERNAL),
)
"""The first row whose error matches counts."""

_OTHERS: Final = (
    BAD_REQUEST,
    UNAUTHORIZED,
    FORBIDDEN,
    METHOD_NOT_ALLOWED,
    TIMEOUT,
    TOO_LARGE,
    UNSUPPORTED,
    TOO_MANY,
    INVALID_ROWS,
    BUSY,
    NO_SPACE,
)
KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind for kind in (*(kind for _, kind in TABLE), *_OTHERS)
}


@dataclass(eq=False)
class Problem(Exception):
    """A problem to be answered; `errors` names the wrong fields."""

    kind: Kind
    detail: str = ""
    errors: Sequence[FieldError] = ()
    retry_after: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the body."""
    ends: bool = False
    """Whether the connection is closed, because the rest of the body is not read."""


def wrong_field(name: str, code: str, value: str, rule: str) -> InvalidRequest:
    """Return the error of one wrong field or query parameter."""
    return InvalidRequest([FieldError(field=name, code=code, value=value, rule=rule)])


def of_error(error: RefundError) -> Problem:
    """Return the problem of one of the product's errors."""
    kind = next(kind for cause, kind in TABLE if isinstance(error, cause))
    if isinstance(error, InvalidRequest):
        detail = "; ".join(f"{each.field}: {each.rule}" for each in error.errors)
        return Problem(kind, detail, error.errors)
    more = {"batch_id": error.batch_id} if isinstance(error, errors.KnownFile) else {}
    return Problem(kind, kind.detail or str(error), more=more)


def in_addresses(sentence: str) -> str:
    """Return a sentence with addresses of the API in place of commands: a caller has no shell."""

    def address(found: re.Match[str]) -> str:
        command, name, option = found.groups()
        if command.startswith("batch"):
            return f"GET /v1/batches/{name}" if name else "GET /v1/batches"
        if command == "retry":
            return f"POST /v1/refunds/{name}/retry" + (' with {"unknown": true}' if option else "")
        return f"GET /v1/refunds/{name}" + ("/history" if option else "")

    return _COMMAND.sub(address, sentence)


def answer(problem: Problem, request_id: str) -> web.Response:
    """Return the response to a problem."""
    kind = problem.kind
    body: dict[str, Any] = {
        "type": f"/problems/{kind.name}",
        "title": kind.title,
        "status": kind.status.value,
        "detail": problem.detail or kind.detail or kind.title,
        "code": kind.name.replace("-", "_"),
        "request_id": request_id,
    }
    if problem.errors:
        body["errors"] = [
            {"field": each.field, "code": each.code, "rule": each.rule} for each in problem.errors
        ]
    body |= problem.more
    headers = dict(problem.headers)
    wait = problem.retry_after or kind.retry_after
    if wait is not None:
        headers["Retry-After"] = str(wait)
    response = web.Response(
        status=kind.status.value,
        headers=headers,
        body=json.dumps(body).encode("ascii"),
        content_type=CONTENT_TYPE,
    )
    if problem.ends:
        response.force_close()
    return response


async def page(request: web.Request) -> web.Response:
    """Describe a type of problem, for people."""
    kind = KINDS.get(request.match_info["name"])
    if kind is None:
        raise Problem(NOT_FOUND, "No problem has this name.")
    return web.json_response(
        {
            "type": f"/problems/{kind.name}",
            "title": kind.title,
            "status": kind.status.value,
            "help": kind.help,
        }
    )
