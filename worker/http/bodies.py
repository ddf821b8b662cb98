"""Reads the bodies of requests: limited bytes in limited time, and JSON whose names are unique."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from aiohttp import web

from worker.errors import FieldError, InvalidRequest
from worker.http import problems
from worker.http.problems import Problem
from worker.model.redaction import without_secrets
from worker.model.request import shown

BODY_SECONDS: Final = 10.0
"""How long a client may take to send a body."""
MAX_JSON: Final = 64 * 1024
JSON: Final = "application/json"
_LONGEST_NAME: Final = 40


class Unreadable(Exception):
    """A body that is too large, too slow or broken; `status` says which.

    `gone` is whether the client has gone, so that it reads no answer.
    """

    def __init__(self, status: HTTPStatus, *, gone: bool = False) -> None:
        self.status, self.gone = status, gone


class Reader:
    """Reads bodies; at most `most` at once, so that their memory is bounded. For one loop."""

    def __init__(self, *, limit: int, most: int, seconds: float = BODY_SECONDS) -> None:
        self._limit, self._most, self._seconds = limit, most, seconds
        self._reading = 0

    async def read(self, request: web.Request) -> bytes:
        """Return the body as it was sent. Raises `Unreadable`."""
        if self._reading >= self._most:
            raise Unreadable(HTTPStatus.SERVICE_UNAVAILABLE)
        if (request.content_length or 0) > self._limit:
            raise Unreadable(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._reading += 1
        try:
            if request.content.is_eof():
                # The usual case: a small body came with its head, and nothing is waited for.
                body = bytearray(request.content.read_nowait())
                self._check(body)
            else:
                body = bytearray()
                async with asyncio.timeout(self._seconds):
                    async for chunk in request.content.iter_any():
                        body += chunk
                        self._check(body)
        except TimeoutError:
            raise Unreadable(HTTPStatus.REQUEST_TIMEOUT) from None
        except (aiohttp.ClientError, web.RequestPayloadError, ConnectionError):
            # The client has gone, or its lengths are wrong.
            gone = request.transport is None or request.transport.is_closing()
            raise Unreadable(HTTPStatus.BAD_REQUEST, gone=gone) from None
        finally:
            self._reading -= 1
        return bytes(body)

    def _check(self, body: bytearray) -> None:
        if len(body) > self._limit:
            raise Unreadable(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


_KINDS: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: problems.TOO_LARGE,
    HTTPStatus.REQUEST_TIMEOUT: problems.TIMEOUT,
    HTTPStatus.SERVICE_UNAVAILABLE: problems.UNAVAILABLE,
}


class JsonReader:
    """Reads bodies that are one JSON object. For one event loop."""

    def __init__(self, *, most: int, seconds: float = BODY_SECONDS) -> None:
        self._reader = Reader(limit=MAX_JSON, most=most, seconds=seconds)

    async def read(self, request: web.Request, *, optional: bool) -> dict[str, Any]:
        """Return the object in the body; with `optional`, an empty body is an empty object.

        Raises `Problem`, and `InvalidRequest` for a name given twice.
        """
        if optional and not request.body_exists:
            return {}
        if (
            request.content_type != JSON
            or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}
            or "Content-Encoding" in request.headers
        ):
            raise Problem(problems.UNSUPPORTED, ends=True)
        try:
            body = await self._reader.read(request)
        except Unreadable as error:
            kind = _KINDS.get(error.status)
            if kind is None:
                raise Problem(
                    problems.BAD_REQUEST, "The body is not complete.", ends=True
                ) from None
            raise Problem(kind, ends=True) from None
        return {} if optional and not body else parsed(body)


def parsed(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises `Problem`, `InvalidRequest`."""
    twice: list[str] = []

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) < len(members):
            times = Counter(name for name, _ in members)
            twice.extend(name for name, count in times.items() if count > 1)
        return found

    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        # Its own text may repeat the body.
        raise Problem(
            problems.BAD_REQUEST, f"The body is not JSON: it is wrong at character {error.pos + 1}."
        ) from None
    except UnicodeDecodeError as error:
        raise Problem(
            problems.BAD_REQUEST, f"The body is not UTF-8: it is wrong at byte {error.start + 1}."
        ) from None
    except (ValueError, RecursionError):
        raise Problem(
            problems.BAD_REQUEST,
            "The body has a number of too many digits, or is nested too deeply.",
        ) from None
    if not isinstance(value, dict):
        raise problems.wrong_field("body", "type", shown(value), "must be a JSON object")
    if twice:
        rule = "must be given once"
        raise InvalidRequest(
            [
                FieldError(field=named(name), code="given_twice", value="", rule=rule)
                for name in dict.fromkeys(twice)
            ]
        )
    return value


def named(name: str) -> str:
    """Return a foreign name of a field as an answer shows it."""
    is_plain = name.isascii() and name.isprintable() and len(name) <= _LONGEST_NAME
    return without_secrets(name) if is_plain else shown(name)


def only(given: dict[str, Any], allowed: tuple[str, ...]) -> list[FieldError]:
    """Return an error for each member that is not allowed."""
    rule = f"is not a field here; allowed are {', '.join(allowed) or 'none'}"
    return [
        FieldError(field=named(name), code="unknown_field", value="", rule=rule)
        for name in given
        if name not in allowed
    ]


def flag(given: dict[str, Any], name: str) -> bool:
    """Return a member that is true or false, false if absent. Raises `InvalidRequest`."""
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise problems.wrong_field(name, "true_or_false", shown(value), "must be true or false")
    return value
