"""A shop's receiver of callbacks, as a process of its own: it fails in the ways that it is set to.

`python -m ops.lab.prove.shop PORT FOLDER NAME`. It notes each callback in `FOLDER/NAME.jsonl`
before it answers, and reads from `FOLDER/NAME.ways` how it is to answer: a JSON object of ways and
their shares. `FOLDER/NAME.keys` holds the secrets that it knows, one a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, Final

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

LATE_SECONDS: Final = 2.5
"""How late a late answer is: after the worker has given up."""
HANG_SECONDS: Final = 3600.0
_OK: Final = frozenset({"ok", "late"})
"""Ways in which the shop keeps what it was sent."""

Way = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _ok(_: web.Request) -> web.StreamResponse:
    return web.Response(status=204)


async def _late(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(LATE_SECONDS)
    return web.Response(status=200, text="done")


async def _hang(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(HANG_SECONDS)
    return web.Response(status=200)


async def _reset(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=200)


async def _error(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="out of order")


async def _busy(_: web.Request) -> web.StreamResponse:
    return web.Response(status=503, headers={"Retry-After": "1"})


async def _gone(_: web.Request) -> web.StreamResponse:
    return web.Response(status=410)


async def _moved(_: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "/elsewhere"})


WAYS: Final[dict[str, Way]] = {
    "ok": _ok,
    "late": _late,
    "hang": _hang,
    "reset": _reset,
    "error": _error,
    "busy": _busy,
    "gone": _gone,
    "moved": _moved,
}


class Shop:
    """Receives callbacks, notes them, and answers as it is set to."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ways = folder / f"{name}.ways"
        self._keys = folder / f"{name}.keys"
        self._log = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._dice = Random(name)  # noqa: S311 - repeatable, not secret

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """Note a callback and answer it."""
        body = await request.read()
        message: Any = json.loads(body)
        data = message["data"]
        way = self._way_for(data.get("refund_id", ""))
        fact = {
            "at": time.time(),
            "webhook_id": request.headers.get("webhook-id", ""),
            "verified": self._is_genuine(body, request),
            "type": message["type"],
            "member": data.get("refund_id", ""),
            "version": data.get("version", 0),
            "status": data.get("status", ""),
            "path": request.path,
            "way": way,
            "held": way in _OK,
        }
        # One write, and before the answer: what is killed now has it, as a shop's database would.
        os.write(self._log, (json.dumps(fact) + "\n").encode())
        return await WAYS[way](request)

    def _way_for(self, refund_id: str) -> str:
        ways: dict[str, float] = json.loads(self._ways.read_text())
        never = ways.pop("never", None)
        if never is not None and refund_id.endswith(f"-{never:g}-1"):
            return "error"
        return self._dice.choices([*ways], [*ways.values()])[0]

    def _is_genuine(self, body: bytes, request: web.Request) -> bool:
        for line in self._keys.read_text().split():
            try:
                Webhook(line).verify(body, dict(request.headers))
            except WebhookVerificationError:
                continue
            return True
        return False


def main() -> None:
    """Serve until killed."""
    port, folder, name = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", Shop(folder, name).receive)
    web.run_app(application, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
