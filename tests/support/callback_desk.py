"""A shop that receives callbacks at a real socket, and the records and the sender of one worker."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import fakeredis
from aiohttp import web
from standardwebhooks import Webhook

from tests.factories import found
from tests.support.store_world import ID, World, at_stage
from worker.callbacks.delivery import Sender
from worker.callbacks.endpoints import Endpoint
from worker.callbacks.pace import Pace
from worker.callbacks.signing import secret_bytes
from worker.errors import StoreUnavailable
from worker.model.refund import Stage
from worker.model.times import to_ms
from worker.rules.rechecks import changed_by_provider
from worker.store import callbacks, meta
from worker.store.async_store import AsyncStore
from worker.store.scripts import Command

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()
CANARY = "canary-ann@example.com"


class Receiver:
    """A shop's endpoint: keeps what arrives, and answers as told, 200 unless told otherwise."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.raw: list[tuple[bytes, dict[str, str]]] = []
        self.answers: list[Callable[[web.Request], Awaitable[web.StreamResponse]] | int] = []
        self.port = 0
        self._arrived = asyncio.Event()

    async def until(self, count: int) -> None:
        """Return once so many requests have arrived."""
        async with asyncio.timeout(20):
            while len(self.bodies) < count:
                self._arrived.clear()
                await self._arrived.wait()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        # The independent verifier accepts every body, by its own clock.
        Webhook(SECRET).verify(body, dict(request.headers))
        self.raw.append((body, {name.lower(): value for name, value in request.headers.items()}))
        self.bodies.append(json.loads(body))
        self.ids.append(request.headers["webhook-id"])
        self._arrived.set()
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, int):
            return web.Response(status=answer, text=f"said {answer}")
        return await answer(request)

    def endpoint(self, name: str = "shop", **fields: Any) -> Endpoint:
        key = secret_bytes(SECRET)
        assert key is not None
        usual: dict[str, Any] = {"keys": (key,), "timeout_seconds": 5, "allow_private": True}
        url = f"http://127.0.0.1:{self.port}/{name}"
        return Endpoint(name=name, url=url, **(usual | fields))


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", receiver.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()


class Losing(AsyncStore):
    """A store that loses the next ends of tries, as a crash between POST and note does.

    It counts the scripts that share out. `after` is called after each end that was noted.
    """

    lost = 0
    outboxes = 0
    after: Callable[[], object] | None = None

    async def run(self, command: Command[Any]) -> Any:
        self.outboxes += command.script is callbacks.OUTBOX
        if command.script is callbacks.DELIVERED and self.lost:
            self.lost -= 1
            raise StoreUnavailable("it went away")
        reply = await super().run(command)
        if command.script is callbacks.DELIVERED and self.after is not None:
            self.after()
        return reply


class Desk:
    """Records with callbacks switched on, and the sender of one worker."""

    def __init__(self) -> None:
        server = fakeredis.FakeServer()
        self.world = World(fakeredis.FakeRedis(server=server, decode_responses=True))
        self.store = Losing(
            fakeredis.FakeAsyncRedis(server=server, decode_responses=True), durable=False
        )
        self.world.store.run(meta.flag("callbacks", once=True))
        self.sender: Sender

    async def sweep(self) -> dict[str, list[str]]:
        """Hand what is due to the sender, as a message does."""
        self.store.now = self.world.now
        sent: dict[str, list[str]] = {}

        def nudge(name: str, members: Sequence[str]) -> None:
            sent.setdefault(name, []).extend(members)

        await self.sender.sweep(nudge)
        for name, members in sent.items():
            self.sender.accept(name, members)
        return sent

    def note(self, count: int) -> None:
        """Let so many refunds wait to be shared out."""
        self.store.now = self.world.now
        waiting = {f"r{number}": to_ms(self.world.now) for number in range(count)}
        self.world.redis.zadd("refunds:callbacks", waiting)

    async def deliver(self) -> dict[str, list[str]]:
        sent = await self.sweep()
        await self.sender.idle()
        return sent

    def log(self, name: str = "shop") -> list[dict[str, str]]:
        entries: Any = self.world.redis.xrange(f"refunds:callback-log:{name}")
        return [fields for _, fields in entries]


@asynccontextmanager
async def working(*endpoints: Endpoint, pace: Pace | None = None) -> AsyncIterator[Desk]:
    desk = Desk()
    pace = pace or Pace(lambda: False)
    desk.sender = Sender(endpoints, desk.store, worker="w1", pace=pace, chance=lambda: 0.5)
    try:
        yield desk
    finally:
        await desk.sender.close()
        await desk.store.close()
        desk.world.redis.close()


def settle(desk: Desk, refund_id: str = ID, **fields: Any) -> None:
    at_stage(desk.world, Stage.SETTLED, refund_id, payment_intent=f"pi_{refund_id}", **fields)


def fail_at_provider(desk: Desk) -> None:
    refund = desk.world.get()
    shown = found(id=f"re_{ID}", payment_intent=refund.payment_intent, status="failed")
    step = changed_by_provider(refund, shown, "list", desk.world.now)
    assert step is not None
    desk.world.save(desk.world.get(), step)
