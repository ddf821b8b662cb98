"""The floor: a bare event loop with the worker's own client, posting the same bodies and writing
the same records.

No queue, no rules, no log, no record ever decoded: for each refund one claim, one POST and one
save, where the commands of many refunds leave for Redis together. The leaner floor hands its
requests to the client's transport, as the worker does. Started by the rig, which counts the ledger
behind it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import httpx
import redis.asyncio

from ops.lab.bench.orders import requests
from worker.model.answers import Reply
from worker.model.refund import Baseline
from worker.model.request import idempotency_key
from worker.provider.transport import build_client, hand_on
from worker.rules import attempts, payloads
from worker.rules.outcomes import classify
from worker.settings import Settings
from worker.store import claims, saves, scripts
from worker.store.async_store import AsyncStore
from worker.store.connection import connect_async
from worker.store.scripts import Argument, Command, Script

TOKEN = "t" * 16
PREFIX = "refunds:"


class Scripts:
    """The worker's scripts, where those of many coroutines leave for Redis together, and those of
    one kind run together.
    """

    def __init__(self, client: redis.asyncio.Redis, retention: timedelta) -> None:
        self._store = AsyncStore(client, prefix=PREFIX, retention=retention, durable=False)

    async def run(self, script: Script, arguments: Sequence[Argument]) -> Any:
        """Run one script and return its raw reply."""
        return await self._store.run(
            Command(script=script, arguments=arguments, read=lambda reply: reply, durable=False)
        )


class Floor:
    """One refund after the other from a shared list, on as many coroutines as there may be calls in
    flight.
    """

    def __init__(
        self, settings: Settings, ran: Scripts, client: httpx.AsyncClient, *, lean: bool
    ) -> None:
        self._rules = settings.rules
        self._redis = ran
        self._client = client
        self._send = self._send_lean if lean else self._send_by_client
        # A GET has no Content-Length, so each request made by this pattern gets its own.
        self._pattern = client.build_request(
            "GET", "/v1/refunds", headers={"Content-Type": "application/json"}
        )

    async def _post(self, refund_id: str, body: str) -> dict[str, Any]:
        payload: dict[str, Any] = await self._send(idempotency_key(refund_id, 1), body)
        return payload

    async def _send_by_client(self, key: str, body: str) -> Any:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        response = await self._client.post("/v1/refunds", content=body, headers=headers)
        response.raise_for_status()
        return response.json()

    async def _send_lean(self, key: str, body: str) -> Any:
        pattern = self._pattern
        request = httpx.Request(
            "POST",
            pattern.url,
            headers=pattern.headers,
            content=body,
            # The client's time limits: its transport has no other place to find them.
            extensions={**pattern.extensions},
        )
        request.headers["Idempotency-Key"] = key
        response = await hand_on(self._client, request)
        try:
            content = await response.aread()
        finally:
            await response.aclose()
        if not response.is_success:
            raise RuntimeError(f"the sandbox answered {response.status_code}")
        return json.loads(content)

    async def _read_payment(self, payment_intent: str) -> None:
        response = await self._client.get(f"/v1/payment_intents/{payment_intent}")
        response.raise_for_status()
        response.json()

    async def learn(self, refund_id: str, payment_intent: str) -> None:
        """Take the first refund by the worker's own functions, and keep what they wrote as the
        others' pattern.
        """
        asked: dict[str, Any] = {}
        if self._rules.wants_baseline:
            await self._read_payment(payment_intent)
            asked = {
                "seq": "0",
                "baseline": Baseline(refunded=0, currency="usd", remaining=100_000),
            }
        self._claim = claims.claim(refund_id, "send", token=TOKEN, lease=self._rules.lease, **asked)
        claim = self._claim.read(await self._redis.run(self._claim.script, self._claim.arguments))
        if claim.refund is None:
            raise RuntimeError(f"the first refund could not be claimed: {claim.result}")
        payload = await self._post(refund_id, claim.body.decode())
        outcome = classify(Reply(http_status=200, payload=payloads.read(payload)), claim.refund)
        step = attempts.after_attempt(claim.refund, outcome, self._rules, claim.now, 0.5)
        detail = {"attempt": 1, "seen": outcome.verdict.value, "ms": 50, "http_status": 200}
        self._save = saves.save(claim.refund, step, detail)
        await self._redis.run(self._save.script, self._save.arguments)
        self._first = (refund_id, str(payload["id"]), str(payload["amount"]))

    async def take(self, numbered: Iterator[tuple[str, str]]) -> None:
        """Take refunds until none is left."""
        first_id, first_provider_id, first_amount = self._first
        for refund_id, payment_intent in numbered:
            if self._rules.wants_baseline:
                await self._read_payment(payment_intent)
            token = secrets.token_hex(8)
            claim = {first_id: refund_id, TOKEN: token}
            reply = await self._redis.run(
                self._claim.script, [claim.get(a, a) for a in self._claim.arguments]
            )  # type: ignore[arg-type]  # a number is no key and stays
            payload = await self._post(refund_id, reply[3])
            save = {
                first_id: refund_id,
                first_provider_id: payload["id"],
                first_amount: str(payload["amount"]),
            }
            await self._redis.run(self._save.script, [save.get(a, a) for a in self._save.arguments])  # type: ignore[arg-type]  # likewise


async def _run(*, count: int, concurrency: int, lean: bool) -> None:
    settings = Settings.load()
    connected = connect_async(settings.redis_url.get_secret_value())
    for script in (scripts.CLAIM, scripts.SAVE):
        await connected.script_load(script.text)
    ran = Scripts(connected, timedelta(days=settings.retention_days))
    async with build_client(settings) as client:
        numbered = ((request.refund_id, request.payment_intent) for request in requests(count))
        floor = Floor(settings, ran, client, lean=lean)
        await floor.learn(*next(numbered))
        await asyncio.gather(*(floor.take(numbered) for _ in range(concurrency)))
    await connected.aclose()


if __name__ == "__main__":
    asyncio.run(_run(**json.loads(sys.argv[1])))
