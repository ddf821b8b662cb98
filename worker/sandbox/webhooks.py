"""The webhooks that the sandbox sends: an event for each refund made and each change of its status.

Sending runs beside the provider's endpoints, so a receiver that is away or slow delays no reply.
Only mode `early` waits for the receiver, for `EARLY_SECONDS` at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import secrets
import time
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

import aiohttp

from worker.sandbox import shapes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from worker.sandbox.bank import Bank, SandboxRefund
    from worker.sandbox.config import SandboxConfig

EVENT: Final = "charge.refund.updated"
HEADER: Final = "Wooshpay-Signature"
ANSWER_SECONDS: Final = 5
"""How long a receiver may take to answer one try."""
EARLY_SECONDS: Final = 2
SETTLE_EVERY_SECONDS: Final = 0.05
_FIRST_REDIRECT: Final = HTTPStatus.MULTIPLE_CHOICES


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookEndpoint:
    """A URL that events are sent to, and the secret that signs them."""

    id: str
    url: str
    secret: str = field(repr=False)
    enabled_events: tuple[str, ...] = (EVENT,)
    description: str = ""
    created: float = 0

    @property
    def wants_refunds(self) -> bool:
        """Whether events about refunds are sent to it."""
        return not {EVENT, "*"}.isdisjoint(self.enabled_events)


@dataclass(kw_only=True, slots=True)
class Delivery:
    """One event for one endpoint. Every try sends the same body with the same signed time `t`.

    `status` is the last HTTP status, None if the last try got no answer.
    """

    event: str
    refund: str
    endpoint: WebhookEndpoint
    t: str
    body: bytes
    tries: int = 0
    status: int | None = None
    state: Literal["waiting", "delivered", "given_up"] = "waiting"

    def shown(self) -> dict[str, Any]:
        """Return the delivery as JSON for `GET /_sandbox/webhooks`, without the secret."""
        return {
            "event": self.event,
            "type": EVENT,
            "refund": self.refund,
            "endpoint": self.endpoint.id,
            "url": self.endpoint.url,
            "t": self.t,
            "tries": self.tries,
            "status": self.status,
            "state": self.state,
        }

    def signature(self) -> str:
        """Return the value of `HEADER`."""
        signed = f"{self.t}.".encode("ascii") + self.body
        digest = hmac.new(self.endpoint.secret.encode(), signed, hashlib.sha256).hexdigest()
        return f"t={self.t},v1={digest}"


class Webhooks:
    """Sends the events of a bank while `running` is open.

    `config` returns the settings of the moment, since the modes of webhooks can change.
    """

    def __init__(self, config: Callable[[], SandboxConfig], bank: Bank) -> None:
        self._config = config
        self._bank = bank
        self._registered: list[WebhookEndpoint] = []
        self._deliveries: deque[Delivery] = deque(maxlen=config().log_requests)
        self._queues: dict[str, asyncio.Queue[Delivery]] = {}
        self._early: dict[str, set[asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._dice = random.Random(config().seed)  # noqa: S311 - reorders events, protects nothing
        self._life = secrets.token_hex(4)
        self._made = 0

    def register(self, url: str, events: tuple[str, ...], *, description: str) -> WebhookEndpoint:
        """Add an endpoint with a new secret; events go to it from now on."""
        made = WebhookEndpoint(
            id=f"we_{self._life}{len(self._registered) + 1:08d}",
            url=url,
            secret=f"whsec_{secrets.token_hex(16)}",
            enabled_events=events,
            description=description,
            created=time.time(),
        )
        self._registered.append(made)
        return made

    def deliveries(self) -> list[dict[str, Any]]:
        """Return the last deliveries as JSON, oldest first."""
        return [delivery.shown() for delivery in self._deliveries]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send events until the end, then drop what was not delivered."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            self._session = session
            self._bank.on_change = self._changed
            self._spawn(self._settle())
            try:
                yield
            finally:
                self._bank.on_change = lambda _refund: None
                for task in list(self._tasks):
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self._session = None

    async def sent_early(self, payment_id: str) -> None:
        """Wait until mode `early` has tried the events of a payment."""
        if tasks := self._early.get(payment_id):
            await asyncio.wait(list(tasks), timeout=EARLY_SECONDS)

    def _changed(self, refund: SandboxRefund) -> None:
        """Send the event of a refund's present state. Nothing here waits."""
        config = self._config()
        endpoints = self._endpoints(config)
        if not endpoints:
            return
        self._made += 1
        event_id = f"evt_{self._life}{self._made:08d}"
        body = shapes.as_json(shapes.event(config, event_id, EVENT, refund)).body
        for endpoint in endpoints:
            for _ in range(2 if config.webhook_mode == "twice" else 1):
                delivery = Delivery(
                    event=event_id,
                    refund=refund.id,
                    endpoint=endpoint,
                    t=_signed_time(config),
                    body=body,
                )
                self._deliveries.append(delivery)
                self._send(config, delivery, refund)

    def _endpoints(self, config: SandboxConfig) -> list[WebhookEndpoint]:
        if config.webhook_mode == "never":
            return []
        found = [endpoint for endpoint in self._registered if endpoint.wants_refunds]
        if config.webhook:
            found.append(
                WebhookEndpoint(id="we_option", url=config.webhook, secret=config.webhook_secret)
            )
        return found

    def _send(self, config: SandboxConfig, delivery: Delivery, refund: SandboxRefund) -> None:
        match config.webhook_mode:
            case "early":
                self._send_early(delivery, refund.payment.id)
            case "shuffled":
                seconds = self._dice.uniform(0, config.webhook_window_ms / 1000)
                self._spawn(self._try(delivery, after=seconds))
            case _:
                self._queue(delivery.endpoint.url).put_nowait(delivery)

    def _send_early(self, delivery: Delivery, payment_id: str) -> None:
        task = self._spawn(self._try(delivery))
        self._early.setdefault(payment_id, set()).add(task)
        task.add_done_callback(lambda _task: self._forget_early(payment_id, task))

    def _forget_early(self, payment_id: str, task: asyncio.Task[None]) -> None:
        tasks = self._early.get(payment_id, set())
        tasks.discard(task)
        if not tasks:
            self._early.pop(payment_id, None)

    def _queue(self, url: str) -> asyncio.Queue[Delivery]:
        """Return the queue of a URL, whose first tries are in order."""
        if url not in self._queues:
            self._queues[url] = asyncio.Queue()
            self._spawn(self._empty(self._queues[url]))
        return self._queues[url]

    async def _empty(self, queue: asyncio.Queue[Delivery]) -> None:
        while True:
            await self._try(await queue.get())

    async def _try(self, delivery: Delivery, *, after: float = 0) -> None:
        """Try once. A try that fails is repeated beside the deliveries that follow it."""
        await asyncio.sleep(after)
        config = self._config()
        delivery.tries += 1
        delivery.status = await self._post(delivery)
        if delivery.status is not None and HTTPStatus.OK <= delivery.status < _FIRST_REDIRECT:
            delivery.state = "delivered"
        elif delivery.tries >= config.webhook_tries:
            delivery.state = "given_up"
        else:
            self._spawn(self._try(delivery, after=config.webhook_retry_ms / 1000))

    async def _post(self, delivery: Delivery) -> int | None:
        """Return the HTTP status of one try, None if there is no answer."""
        if self._session is None:
            return None
        headers = {"Content-Type": "application/json", HEADER: delivery.signature()}
        try:
            async with self._session.post(
                delivery.endpoint.url, data=delivery.body, headers=headers, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    async def _settle(self) -> None:
        """Settle pending refunds in time: otherwise they would settle at the next request only."""
        while True:
            await asyncio.sleep(SETTLE_EVERY_SECONDS)
            if self._endpoints(self._config()):
                self._bank.settle_due()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _signed_time(config: SandboxConfig) -> str:
    """Return the time that a signature covers, in the unit that the sandbox is set to."""
    is_ms = config.webhook_mode == "ms" or (config.created_in_ms and config.webhook_mode != "s")
    return str(int(time.time() * (1000 if is_ms else 1)))
