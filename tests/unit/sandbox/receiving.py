"""A receiver of webhooks: an aiohttp server in a thread that keeps each request and answers with
the statuses it was given.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.unit.sandbox.asking import DEADLINE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

OK = 200


@dataclass(frozen=True, kw_only=True)
class Received:
    signature: str
    body: bytes
    monotonic: float

    @property
    def event(self) -> Any:
        return json.loads(self.body)

    @property
    def t(self) -> str:
        return self.signature.partition(",")[0].removeprefix("t=")

    @property
    def shown(self) -> Any:
        return self.event["data"]["object"]


@dataclass(kw_only=True)
class Receiver:
    """`statuses` are used up first, then every answer is 200. While `is_open` is not set no answer
    is given.
    """

    url: str = ""
    statuses: deque[int] = field(default_factory=deque)
    received: list[Received] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int) -> list[Received]:
        with self.changed:
            came = self.changed.wait_for(lambda: len(self.received) >= count, DEADLINE_SECONDS)
            assert came, f"{len(self.received)} of {count} events came"
            return list(self.received)

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        (signature,) = request.headers.getall("Wooshpay-Signature")
        with self.changed:
            self.received.append(
                Received(signature=signature, body=body, monotonic=time.monotonic())
            )
            status = self.statuses.popleft() if self.statuses else OK
            self.changed.notify_all()
        await asyncio.to_thread(self.is_open.wait, DEADLINE_SECONDS)
        return web.Response(status=status)


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    receiver = Receiver(statuses=deque(statuses))
    receiver.is_open.set()
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = Future()

    async def served() -> None:
        app = web.Application()
        app.router.add_post("/hook", receiver.receive)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stop = asyncio.Event()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        ready.set_result((asyncio.get_running_loop(), stop, url))
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(served()), daemon=True)
    thread.start()
    loop, stop, receiver.url = ready.result(DEADLINE_SECONDS)
    try:
        yield receiver
    finally:
        receiver.is_open.set()
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_SECONDS)
