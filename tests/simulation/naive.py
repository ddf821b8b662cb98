"""The control: a worker as it is commonly written, Celery's retries around tenacity's, in the very
same worlds.

A fresh key a call, retries on whatever fails, a status written when the task is done, redelivery as
Celery does it.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import httpx
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from tests.simulation.provider_seam import Transport
from tests.simulation.secrets import API_KEY
from tests.simulation.snapshot import FIELDS
from worker.model.refund import Lane
from worker.model.request import RefundRequest, request_body

if TYPE_CHECKING:
    from tests.simulation.clock import Machine
    from tests.simulation.world import World

MOST_REDELIVERIES: Final = 3
TIMEOUT_SECONDS: Final = 20.0


class NaiveWorker:
    """One worker process of the control."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world = world
        self._machine = machine
        self._dice = random.Random(f"naive:{machine.name}:{world.plan.seed}")  # noqa: S311 - repeatable
        self._client = httpx.AsyncClient(
            base_url="https://provider.test",
            transport=Transport(machine, world.seam),
            auth=httpx.BasicAuth(API_KEY, ""),
            headers={"Accept": "application/json"},
            trust_env=False,
        )

    def start(self) -> None:
        """There is no sweep: what is lost is lost."""

    async def end(self) -> None:
        """Celery waits for the tasks in hand, and there is nothing beside them."""
        await self._machine.idle()

    async def handle(self, refund_ids: Sequence[str], lane: Lane) -> None:
        """Take one message, and again later where it failed."""
        for refund_id in refund_ids:
            known = self._world.judge.refunds[refund_id]
            if known.record.get("status") == "succeeded":
                continue
            try:
                await self._refund(refund_id)
            except (httpx.HTTPError, RetryError):
                known.moves += 1
                if known.moves <= MOST_REDELIVERIES:
                    self._world.mail.nudge([refund_id], lane)
                else:
                    self._write(refund_id, "failed", {})

    async def _refund(self, refund_id: str) -> None:
        request = next(
            one.request for one in self._world.plan.asked if one.request.refund_id == refund_id
        )
        async for turn in AsyncRetrying(
            retry=retry_if_exception_type(httpx.HTTPError),
            stop=stop_after_attempt(3),
            wait=wait_exponential(multiplier=1, max=10),
        ):
            with turn:
                payload = await self._post(request)
        self._write(refund_id, str(payload["status"]), payload)

    async def _post(self, request: RefundRequest) -> dict[str, Any]:
        key = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        body = request_body(request, 1)
        response = await _bounded(self._client.post("/v1/refunds", content=body, headers=headers))
        response.raise_for_status()
        try:
            payload: dict[str, Any] = response.json()
        except ValueError as error:
            raise httpx.DecodingError(str(error)) from error
        return payload

    def _write(self, refund_id: str, status: str, payload: dict[str, Any]) -> None:
        judge = self._world.judge
        judge.effects.read_ledger()
        record: dict[str, str | None] = dict.fromkeys(FIELDS)
        stage = "processing" if status == "pending" else "settled"
        record |= {
            "stage": stage,
            "status": status,
            "amount": str(payload.get("amount")),
            "generation": "1",
        }
        record["provider_refund_id"] = payload.get("id")
        judge.refunds[refund_id].record = record
        if stage == "settled":
            judge.effects.settled(refund_id, record)


async def _bounded(call: Any) -> httpx.Response:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            response: httpx.Response = await call
    except TimeoutError as error:
        raise httpx.ReadTimeout("no reply") from error
    return response
