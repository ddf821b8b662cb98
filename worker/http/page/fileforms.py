"""Reads a form with a file, as a browser sends it: short fields first, and the file last.

The file is read in parts and never held in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import aiohttp
from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import MultiDict

from worker.http import problems
from worker.http.bodies import BODY_SECONDS
from worker.http.page.forms import MAX_FIELDS, MAX_FORM
from worker.http.problems import Problem

FILE: Final = "file"
TOKEN: Final = "form_token"  # noqa: S105 - the name of a field
_TYPE: Final = "multipart/form-data"
_BLOCK: Final = 256 * 1024
_LONGEST_NAME: Final = 100
# What aiohttp raises for a form that is wrong; it has no error of its own for that.
_WRONG: Final = (ValueError, AssertionError, RuntimeError, HttpProcessingError)
_GONE: Final = (aiohttp.ClientError, web.RequestPayloadError, ConnectionError)


class FileForm:
    """A form whose fields are read; its file is not. For one request."""

    def __init__(
        self, parts: MultipartReader, fields: MultiDict[str], file: BodyPartReader
    ) -> None:
        self._parts, self._file = parts, file
        self.fields = fields
        self.name = _plain(file.filename or "")

    async def read(self) -> bytes:
        """Return the next bytes of the file, none at its end. Raises `Problem`."""
        try:
            block = await self._file.read_chunk(_BLOCK)
            if not block and await self._parts.next() is not None:
                raise _incomplete()
        except _WRONG:
            raise _incomplete() from None
        return block


async def read_file_form(request: web.Request, check: Callable[[str], None]) -> FileForm:
    """Read the fields up to the file, in limited size and time. Raises `Problem`.

    `check` gets the form's token, which comes first, before anything else is read.
    """
    if request.content_type != _TYPE:
        raise Problem(problems.UNSUPPORTED, "This address takes a form with a file.", ends=True)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(await request.multipart(), check)
    except TimeoutError:
        raise Problem(problems.TIMEOUT, "The form arrived too slowly.", ends=True) from None
    except (*_WRONG, *_GONE):
        raise _incomplete() from None


async def _read(parts: MultipartReader, check: Callable[[str], None]) -> FileForm:
    fields: MultiDict[str] = MultiDict()
    left = MAX_FORM
    while True:
        part = await parts.next()
        if not isinstance(part, BodyPartReader) or len(fields) >= MAX_FIELDS:
            raise _incomplete()
        if not fields and part.name != TOKEN:
            raise _incomplete()
        if part.name == FILE:
            if not part.filename:
                raise problems.wrong_field(FILE, "file", "", "must be chosen")
            return FileForm(parts, fields, part)
        value = await _field(part, left)
        left -= len(value)
        text = value.decode("utf-8").strip()
        if not fields:
            check(text)
        fields.add(part.name or "", text)


async def _field(part: BodyPartReader, limit: int) -> bytes:
    value = bytearray()
    while block := await part.read_chunk():
        value += block
        if len(value) > limit:
            raise Problem(problems.TOO_LARGE, "The fields of the form are too long.", ends=True)
    return bytes(value)


def _plain(name: str) -> str:
    """Return the name of a file without its folders; what is not text is escaped."""
    last = name.replace("\\", "/").rpartition("/")[2]
    text = last.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    # The end of a long name has the ending.
    return text[-_LONGEST_NAME:] or "upload"


def _incomplete() -> Problem:
    return Problem(
        problems.BAD_REQUEST, "The form is not complete. Nothing was accepted.", ends=True
    )
