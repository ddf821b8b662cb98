"""Streams long answers, a part at a time, so that their memory does not grow with their length."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import hdrs, web

from worker.errors import RefundError
from worker.http.context import REQUEST_ID, dress
from worker.http.problems import Problem

log = structlog.get_logger(__name__)

SLOW_SECONDS: Final = 60.0
"""How long a client may take to receive a part."""


async def streamed(
    request: web.Request,
    content_type: str,
    read: Callable[[], Awaitable[bytes | None]],
    *,
    saved: str | None = None,
) -> web.StreamResponse:
    """Answer with all that `read` returns until it returns None.

    With `saved`, a plain name, a browser keeps it as a file of this name.

    If the first part cannot be read, its error is raised. After that the connection is cut, so that
    the client sees that the answer is not complete.
    """
    part = await read()
    response = web.StreamResponse(headers={"Content-Type": content_type})
    dress(request, response)
    if saved is not None:
        response.headers["Content-Disposition"] = f'attachment; filename="{saved}"'
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        # Whatever follows the head is taken for the next answer.
        part = None
    try:
        while part is not None:
            if part:
                async with asyncio.timeout(SLOW_SECONDS):
                    await response.write(part)
            part = await read()
        # The last part may still wait for the client, since only a full buffer makes a write wait.
        async with asyncio.timeout(SLOW_SECONDS):
            await response.write_eof()
    except (RefundError, Problem, TimeoutError, ConnectionError) as error:
        log.warning("answer_cut", request_id=request[REQUEST_ID], error=type(error).__name__)
        _cut(request)
    except BaseException:
        _cut(request)
        raise
    return response


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
