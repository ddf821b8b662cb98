"""The HTTP API on the real server, within the test's own event loop; every answer is held to the
OpenAPI document.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.support import described_api
from tests.support.http_door import HttpDoor, served
from worker.http.running import api_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from worker.client import Refunds
    from worker.http.api import Api
    from worker.http.uploads import Uploads
    from worker.settings import Settings
    from worker.store.async_store import AsyncStore
    from worker.store.sweeps import Due

PAYMENT = "pi_1787730829493927936"


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem."""
        return str(self.json["code"])

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The wrong fields of a problem, each with its code."""
        return [(each["field"], each["code"]) for each in self.json["errors"]]


@dataclass
class Door(HttpDoor):
    part: Api
    store: AsyncStore
    token: str = ""
    nudged: list[str] = field(default_factory=list)
    counted: Counter[tuple[str, int]] = field(default_factory=Counter)

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: Any = None,
        token: str | None = None,
        **headers: str,
    ) -> Answer:
        """Send a request; `body` is sent as JSON, `data` as it is."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token != "":
            sent.setdefault("Authorization", f"Bearer {token or self.token}")
        if body is not None:
            data = json.dumps(body)
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.client.request(method, url, data=data, headers=sent) as response:
            got = Answer(
                status=response.status,
                headers=response.headers,
                body=await response.read(),
            )
        if method != "HEAD" and got.status != 405:
            described_api.check(method, path, got.status, got.headers, got.body)
        return got

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.ask("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return await self.ask("POST", path, body, **more)

    async def create(self, refund_id: str, /, **fields: Any) -> Answer:
        body = {"refund_id": refund_id, "payment_intent": PAYMENT, "amount": 500, **fields}
        return await self.post("/v1/refunds", body)

    async def waiting(self, count: int) -> None:
        """Return once so many requests wait."""
        async with asyncio.timeout(10):
            for _ in range(1000):
                if self.part.context.waiters.count >= count:
                    return
                await asyncio.sleep(0.01)

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        await writer.drain()
        return reader, writer


@asynccontextmanager
async def a_door(url: str, **changes: Any) -> AsyncIterator[Door]:
    nudged: list[str] = []
    counted: Counter[tuple[str, int]] = Counter()

    def nudge(dues: Iterable[Due]) -> None:
        nudged.extend(due.refund_id for due in dues)

    def count(operation: str, status: int) -> None:
        counted[operation, status] += 1

    def part_of(settings: Settings, store: AsyncStore, refunds: Refunds, uploads: Uploads) -> Api:
        return api_part(settings, store, refunds, nudge, count, uploads)

    async with (
        served(url, part_of, **changes) as here,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=60),
        ) as session,
    ):
        door = Door(
            here.port,
            here.refunds,
            session,
            part=here.part,
            store=here.store,
            nudged=nudged,
            counted=counted,
        )
        door.token = door.a_token("shop")
        try:
            yield door
        finally:
            here.part.end()
            here.uploads.end()
