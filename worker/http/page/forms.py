"""Reads what a form or a link of the page states."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web

from worker.http import problems
from worker.http.bodies import Reader, Unreadable
from worker.http.problems import Problem

MAX_FORM: Final = 64 * 1024
MAX_FIELDS: Final = 50
MAX_READING: Final = 64
_TYPE: Final = "application/x-www-form-urlencoded"
_KINDS: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: problems.TOO_LARGE,
    HTTPStatus.REQUEST_TIMEOUT: problems.TIMEOUT,
    HTTPStatus.SERVICE_UNAVAILABLE: problems.UNAVAILABLE,
}


class FormReader:
    """Reads ordinary forms, of limited size and in limited time. For one event loop."""

    def __init__(self) -> None:
        self._reader = Reader(limit=MAX_FORM, most=MAX_READING)

    async def read(self, request: web.Request) -> Mapping[str, str]:
        """Return the fields, each without spaces around it. Raises `Problem`."""
        if request.content_type != _TYPE:
            raise Problem(problems.UNSUPPORTED, "This address takes ordinary forms.", ends=True)
        try:
            body = await self._reader.read(request)
            pairs = parse_qsl(
                body.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(body),
                errors="strict",
                max_num_fields=MAX_FIELDS,
            )
        except Unreadable as error:
            kind = _KINDS.get(error.status, problems.BAD_REQUEST)
            raise Problem(kind, "The form is not complete.", ends=True) from None
        except ValueError:
            raise Problem(problems.BAD_REQUEST, "The form cannot be read.") from None
        return {name: value.strip() for name, value in pairs}


def without_blanks(request: web.Request) -> str | None:
    """Return the address without its blank parameters, None if it has none.

    A browser sends every field of a search form, the blank ones too.
    """
    full = [(name, value.strip()) for name, value in request.query.items()]
    kept = [(name, value) for name, value in full if value]
    if len(kept) == len(request.query) and kept == list(request.query.items()):
        return None
    return str(request.rel_url.with_query(kept))
