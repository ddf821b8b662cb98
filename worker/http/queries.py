"""Reads what a request states outside its body: query parameters, ids, versions and keys."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from aiohttp import web
from multidict import MultiMapping

from worker.errors import FieldError, InvalidRequest
from worker.http import problems
from worker.http.bodies import named
from worker.http.problems import Problem
from worker.model.request import is_refund_id, shown

MAX_WAIT: Final = 60.0
"""The longest that a request may wait for a result, in seconds."""
_SECONDS: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,20})?(?:[eE]-?[0-9]{1,2})?")
_WHOLE: Final = re.compile(r"[0-9]{1,9}")
_QUOTED: Final = re.compile(r'"([^"\\]*)"')
_DOTS: Final = frozenset({".", ".."})


class Query:
    """The query parameters of a request; no unknown ones, and only `repeatable` ones repeatedly.

    The fields of a form can be given instead. `wrong` gathers what breaks a rule, and `check`
    raises it.
    """

    def __init__(
        self,
        request: web.Request | MultiMapping[str],
        allowed: Collection[str],
        repeatable: Collection[str] = (),
    ) -> None:
        self._values = request.query if isinstance(request, web.Request) else request
        rule = f"is not a parameter here; allowed are {', '.join(allowed) or 'none'}"
        self.wrong: list[FieldError] = []
        for name in dict.fromkeys(self._values):
            if name not in allowed:
                self.refuse(named(name), "unknown_parameter", "", rule)
            elif len(self._values.getall(name)) > 1 and name not in repeatable:
                self.refuse(name, "given_twice", "", "must be given once")

    def refuse(self, name: str, code: str, value: str, rule: str) -> None:
        """Note that a parameter breaks a rule."""
        self.wrong.append(FieldError(field=name, code=code, value=value, rule=rule))

    def text(self, name: str) -> str | None:
        """Return a parameter, None if it is absent."""
        return self._values.get(name)

    def texts(self, name: str) -> list[str]:
        """Return every value of a parameter."""
        return self._values.getall(name, [])

    def seconds(self, name: str = "wait") -> float:
        """Return how long to wait, 0 if the parameter is absent."""
        text = self._values.get(name)
        if text is None:
            return 0.0
        if not _SECONDS.fullmatch(text) or float(text) > MAX_WAIT:
            rule = f"must be a number of seconds from 0 to {MAX_WAIT:g}"
            self.refuse(name, "seconds", shown(text), rule)
            return 0.0
        return float(text)

    def whole(self, name: str, *, default: int, most: int) -> int:
        """Return a whole number from 1 to `most`."""
        text = self._values.get(name)
        if text is None:
            return default
        if not _WHOLE.fullmatch(text) or not 0 < int(text) <= most:
            self.refuse(name, "number", shown(text), f"must be a whole number from 1 to {most}")
            return default
        return int(text)

    def one_of(self, name: str, words: Collection[str]) -> str | None:
        """Return a parameter that must be one of some words."""
        text = self._values.get(name)
        if text is not None and text not in words:
            self.refuse(name, "choice", shown(text), f"must be one of {', '.join(words)}")
            return None
        return text

    def matching(self, name: str, is_valid: bool, rule: str) -> None:  # noqa: FBT001 - a finding
        """Refuse a parameter that is given and not valid."""
        if name in self._values and not is_valid:
            self.refuse(name, name, shown(self._values[name]), rule)

    def check(self) -> None:
        """Raise `InvalidRequest` if anything is wrong."""
        if self.wrong:
            raise InvalidRequest(self.wrong)


def refund_id_of(request: web.Request, body: object = None) -> str | None:
    """Return the id that the body states or else the header `Idempotency-Key`.

    None if the body states something that the request's own rules refuse. Raises `Problem`.
    """
    keys = request.headers.getall("Idempotency-Key", [])
    if len(keys) > 1:
        raise Problem(problems.BAD_REQUEST, "The header Idempotency-Key is given twice.")
    key = _unquoted(keys[0]) if keys else None
    if key is not None and (not is_refund_id(key) or key in _DOTS):
        raise Problem(
            problems.BAD_REQUEST,
            "The header Idempotency-Key must be 1 to 200 of A-Z a-z 0-9 . _ : - because it becomes"
            " the refund_id.",
        )
    if body is None and key is None:
        raise Problem(
            problems.BAD_REQUEST,
            "State your own id of the refund, as refund_id in the body or in the header"
            " Idempotency-Key: it makes a repeat safe.",
        )
    if key is not None and body is not None and body != key:
        raise Problem(
            problems.BAD_REQUEST, "refund_id and the header Idempotency-Key must be equal."
        )
    if isinstance(body, str) and body in _DOTS:
        rule = "must not be . or .. because it becomes part of an address"
        raise problems.wrong_field("refund_id", "refund_id", shown(body), rule)
    return key if body is None else body if isinstance(body, str) else None


def _unquoted(text: str) -> str:
    found = _QUOTED.fullmatch(text.strip())
    return found[1] if found else text.strip()


def etag(version: int) -> str:
    """Return the `ETag` of a version of a record."""
    return f'"{version}"'


def has(request: web.Request, version: int) -> bool:
    """Return whether the client holds this version already, by `If-None-Match`."""
    values = ",".join(request.headers.getall("If-None-Match", []))
    known = {value.strip().removeprefix("W/") for value in values.split(",")}
    return etag(version) in known


def has_gone(request: web.Request) -> bool:
    """Return whether the client has closed the connection, so that no client waits any more."""
    return request.transport is None or request.transport.is_closing()
