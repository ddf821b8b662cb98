"""The floor of `refunds serve`: a bare aiohttp handler that writes the same records.

No token, no rate, no rules, no problem details and no message to the workers: for each POST the
body is parsed and the script that accepts a refund is run, where those of concurrent requests leave
for Redis together.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from aiohttp import web

from ops.lab.bench.floor import Scripts
from ops.lab.bench.orders import requests
from worker.model.refund import Lane
from worker.model.request import RefundRequest
from worker.settings import Settings
from worker.store import creations, scripts
from worker.store.connection import connect_async
from worker.store.scripts import Argument


class Bare:
    """Answers POSTs by the pattern of the first request."""

    def __init__(self, ran: Scripts, first: RefundRequest) -> None:
        self._redis, self._first = ran, first
        self._pattern = creations.create(first, Lane.SINGLE, by="bench").arguments

    async def create(self, request: web.Request) -> web.Response:
        """Write the record of a body, which is not checked."""
        body: dict[str, Any] = json.loads(await request.read())
        row = [self._like(each, body) for each in self._pattern]
        await self._redis.run(scripts.CREATE, row)
        answer = {"refund_id": body["refund_id"], "status": "pending"}
        return web.json_response(answer, status=HTTPStatus.ACCEPTED.value)

    def _like(self, argument: Argument, body: dict[str, Any]) -> Argument:
        """Return an argument of the pattern with this request's own values."""
        if argument == self._first.amount:
            return int(body["amount"])
        if not isinstance(argument, str):
            return argument
        # The key and the body to the provider contain the id.
        return argument.replace(self._first.refund_id, body["refund_id"]).replace(
            self._first.payment_intent, body["payment_intent"]
        )


async def _run() -> None:
    settings = Settings.load(api_key=None)
    connected = connect_async(settings.redis_url.get_secret_value())
    await connected.script_load(scripts.CREATE.text)
    ran = Scripts(connected, timedelta(days=settings.retention_days))
    application = web.Application()
    application.router.add_post("/v1/refunds", Bare(ran, next(requests(1))).create)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stderr.write(f"listening at http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stderr.flush()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()
    await connected.aclose()


if __name__ == "__main__":
    asyncio.run(_run())
