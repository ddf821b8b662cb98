"""Sends the sandbox's answers, unchanged or spoiled as a fault says."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

from aiohttp import web

from worker.sandbox import shapes
from worker.sandbox.faults import Act

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from worker.sandbox.config import SandboxConfig
    from worker.sandbox.faults import Fault
    from worker.sandbox.shapes import Answer

    Spoiler = Callable[[web.Request, Fault, Answer, SandboxConfig], Awaitable[web.StreamResponse]]

LOOK_EVERY_SECONDS: Final = 0.02
OVERSIZED_BYTES: Final = 1_200_000
DRIP_SECONDS: Final = 0.05
_JSON: Final = {"Content-Type": "application/json"}
_NOTHING: Final = shapes.Answer(status=200, body=b"")

# Status → type and code of an error that a fault makes up.
_MADE_UP: Final = {
    401: ("invalid_request_error", "api_key_invalid"),
    403: ("invalid_request_error", "permission_denied"),
    408: ("api_error", "request_timeout"),
    409: ("idempotency_error", "idempotency_key_in_use"),
}
# Field → its value on the wrong resource; amount and refund_id are derived from the right one.
ELSEWHERE: Final = {
    "payment_intent": "pi_somebody_elses",
    "currency": "xts",
    "id": "re_somebody_elses",
}


def respond(answer: Answer) -> web.Response:
    """Return the answer unchanged."""
    headers = {**_JSON, **answer.headers} if answer.headers else _JSON
    return web.Response(body=answer.body, status=answer.status, headers=headers)


def made_up_error(config: SandboxConfig, fault: Fault) -> Answer:
    """Return the error, in the provider's envelope, of a fault with an HTTP status."""
    kind, code = _MADE_UP.get(fault.kind.status, ("api_error", "internal_error"))
    return shapes.error(
        config, fault.kind.status, kind, code, f"The sandbox fails on request: {fault.kind.name}."
    )


def rate_limited(config: SandboxConfig, retry_after: str | None) -> Answer:
    """Return a 429, with the text of its `Retry-After` if that is not None."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return shapes.error(
        config,
        429,
        "invalid_request_error",
        "rate_limit",
        "Too many requests; slow down.",
        headers=headers,
    )


async def spoil(
    request: web.Request, fault: Fault, answer: Answer | None, config: SandboxConfig
) -> web.StreamResponse:
    """Reply as the fault says; `answer` is the executed answer, None if nothing was executed."""
    return await _SPOILERS[fault.kind.act](request, fault, answer or _NOTHING, config)


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _close(request: web.Request) -> web.Response:
    """Close the connection after what was already written.

    Aiohttp drops the response returned here.
    """
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def _hold(
    request: web.Request, fault: Fault, _answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    loop = asyncio.get_running_loop()
    until = None if fault.seconds is None else loop.time() + fault.seconds
    while not _is_gone(request) and (until is None or loop.time() < until):  # noqa: ASYNC110 - aiohttp has no such event
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    return _close(request)


async def _reset(
    request: web.Request, _fault: Fault, _answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        # A linger time of zero makes the kernel send RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


async def _cut(
    request: web.Request, _fault: Fault, answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    response = await _begin(request, answer)
    await response.write(answer.body[: len(answer.body) // 2])
    return _close(request)


async def _drip(
    request: web.Request, fault: Fault, answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    response = await _begin(request, answer)
    steps = max(int((fault.seconds or 0) / DRIP_SECONDS), 1)
    size = max(-(-len(answer.body) // steps), 1)
    pause = (fault.seconds or 0) / max(-(-len(answer.body) // size), 1)
    for start in range(0, len(answer.body), size):
        await asyncio.sleep(pause)
        if _is_gone(request):
            break
        await response.write(answer.body[start : start + size])
    return response


async def _begin(request: web.Request, answer: Answer) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers={**_JSON, **answer.headers})
    response.content_length = len(answer.body)
    await response.prepare(request)
    return response


async def _status(
    _request: web.Request, fault: Fault, _answer: Answer, config: SandboxConfig
) -> web.StreamResponse:
    return respond(made_up_error(config, fault))


async def _html(
    _request: web.Request, fault: Fault, _answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    page = (
        f"<html><head><title>{fault.kind.status}</title></head><body><h1>Bad"
        " gateway</h1></body></html>"
    )
    return web.Response(text=page, status=fault.kind.status, content_type="text/html")


async def _rate(
    _request: web.Request, fault: Fault, _answer: Answer, config: SandboxConfig
) -> web.StreamResponse:
    seconds = fault.seconds or 0
    # The header has whole seconds in either form.
    when = datetime.now(UTC) + timedelta(seconds=seconds)
    texts = {
        "seconds": str(int(seconds)),
        "date": format_datetime(when, usegmt=True),
        "garbage": "soon, we hope",
        "absent": None,
    }
    return respond(rate_limited(config, texts[fault.retry_after]))


async def _redirect(
    request: web.Request, fault: Fault, _answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    # To the same URL, with a status that keeps method and body: a client that follows sends the
    # refund twice.
    return web.Response(status=fault.kind.status, headers={"Location": request.path_qs})


async def _empty(
    _request: web.Request, _fault: Fault, _answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    return respond(_NOTHING)


async def _oversized(
    _request: web.Request, _fault: Fault, answer: Answer, _c: SandboxConfig
) -> web.StreamResponse:
    shape = {**json.loads(answer.body), "padding": "x" * OVERSIZED_BYTES}
    return respond(shapes.as_json(shape, status=answer.status, headers=answer.headers))


async def _wrong(
    _request: web.Request, fault: Fault, answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    if answer.status != 200:  # noqa: PLR2004 - only a successful answer can show the wrong resource
        return respond(answer)
    shape = json.loads(answer.body)
    for item in shape["data"] if shape["object"] == "list" else [shape]:
        if fault.field == "amount":
            item["amount"] += 1
        elif fault.field == "refund_id":
            item["metadata"] = {**item["metadata"], "refund_id": "somebody-elses"}
        else:
            item[fault.field] = ELSEWHERE[fault.field]
    return respond(shapes.as_json(shape, headers=answer.headers))


async def _late(
    _request: web.Request, _fault: Fault, answer: Answer, _config: SandboxConfig
) -> web.StreamResponse:
    return respond(answer)


_SPOILERS: Final[dict[Act, Spoiler]] = {
    Act.HOLD: _hold,
    Act.RESET: _reset,
    Act.CUT: _cut,
    Act.STATUS: _status,
    Act.HTML: _html,
    Act.RATE_LIMITED: _rate,
    Act.REDIRECT: _redirect,
    Act.EMPTY: _empty,
    Act.OVERSIZED: _oversized,
    Act.DRIP: _drip,
    Act.WRONG: _wrong,
    Act.LATE: _late,
}
