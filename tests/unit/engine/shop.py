"""One worker's service over real records and a provider that answers as it is told.

Every request is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import httpx
import redis.asyncio

from tests.factories import HOUR, NOW, PAYMENT, SECOND, VERIFY, a_request, refund_payload
from worker.engine.rate_gate import RateGate
from worker.engine.service import Service
from worker.engine.slots import Slots
from worker.errors import StoreUnavailable
from worker.model.answers import Outcome
from worker.model.refund import Lane, Refund, Stage
from worker.model.request import RefundRequest
from worker.provider.gateway import Gateway
from worker.rules.attempts import Rules
from worker.store import creations, reads, scripts
from worker.store.async_store import AsyncStore
from worker.store.records import Moves, decode

TOTALS = Rules(idempotency="verify", readback="totals", totals_proof=True)
MILLISECOND = timedelta(milliseconds=1)
ID = "order-1001-1"
POST = "POST /v1/refunds"
LIST = "GET /v1/refunds"
BY_ID = "GET /v1/refunds/re_1"
ACCOUNT = "GET /v1/account"
PROBE = "GET /v1/refunds/re_credentials_probe"
PAID = f"GET /v1/payment_intents/{PAYMENT}"
LOST = "account_lost_at"
"""The field of the records that stops everything since a payment was missing."""

Given = httpx.Response | Exception
Answer = Given | Callable[[httpx.Request], Given | Awaitable[Given]]


def says(status: int = 200, payload: Any = None, **headers: str) -> httpx.Response:
    """A reply; a success shows our refund."""
    body = refund_payload() if payload is None and status == 200 else payload
    return httpx.Response(status, json=body, headers=headers)


def error(
    status: int, code: str = "some_code", kind: str = "invalid_request_error", **headers: str
) -> httpx.Response:
    """The provider's error."""
    return says(status, {"error": {"type": kind, "code": code, "message": "because"}}, **headers)


GONE = error(404, "resource_missing")


def listing(*entries: dict[str, Any]) -> httpx.Response:
    """A whole list of a payment's refunds."""
    return says(200, {"object": "list", "data": list(entries), "has_more": False})


def totals(refunded: int, **fields: Any) -> httpx.Response:
    """A payment that carries its totals."""
    shown = {"id": PAYMENT, "currency": "usd", "amount_refunded": refunded, "amount_captured": 1000}
    return says(200, shown | fields)


class Provider(httpx.AsyncBaseTransport):
    """Answers by method and path, in the order given; the last answer of a path stays."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.keys: list[str] = []
        self._answers: dict[str, deque[Answer]] = defaultdict(deque)

    def will(self, what: str, *answers: Answer) -> None:
        """Answer requests of this method and path so, one after the other."""
        self._answers[what] = deque(answers)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        what = f"{request.method} {request.url.path}"
        self.asked.append(what)
        if request.method == "POST":
            self.bodies.append(await request.aread())
            self.keys.append(request.headers["Idempotency-Key"])
        answers = self._answers[what]
        assert answers, f"nobody expected {what}"
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        if callable(answer):
            made = answer(request)
            answer = await made if isinstance(made, Awaitable) else made
        if isinstance(answer, Exception):
            raise answer
        # A reply is read once, as it comes: each request gets one of its own.
        return httpx.Response(
            answer.status_code,
            headers=answer.headers,
            stream=httpx.ByteStream(answer.content),
            request=request,
        )


class Turnstile(RateGate):
    """The gate, with every passage counted."""

    def __init__(self, store: AsyncStore, **options: Any) -> None:
        super().__init__(store, **options)
        self.passed: list[str] = []

    async def acquire(self, lane: Lane) -> None:
        self.passed.append(f"waited as {lane}")
        await super().acquire(lane)

    async def go_on(self, lane: Lane) -> None:
        self.passed.append(f"went on as {lane}")
        await super().go_on(lane)

    async def try_now(self, lane: Lane) -> bool:
        self.passed.append(f"tried as {lane}")
        return await super().try_now(lane)


class NotedStore(AsyncStore):
    """Records whose every call is noted.

    `failing` names scripts, or `flag`, that cannot be reached the next time.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client, durable=False)
        self.asked: list[str] = []
        self.handed: dict[str, Any] = {}
        self.failing: list[str] = []
        self.away_at_save: int | None = None
        """Redis is away for the save of this number, counted from 1."""

    async def run(self, call: scripts.Command[Any]) -> Any:
        name = call.script.name
        self.asked.append(name)
        self.handed[name] = call.arguments
        self._fail(name)
        if name == "save" and self.asked.count(name) == self.away_at_save:
            raise StoreUnavailable("redis is away")
        return await super().run(call)

    async def flag(self, name: str, *, once: bool) -> bool:
        self._fail("flag")
        return await super().flag(name, once=once)

    def _fail(self, name: str) -> None:
        if name in self.failing:
            self.failing.remove(name)
            raise StoreUnavailable("redis is away")


class Shop:
    """A service whose clocks a test turns by hand, with all that it says and does."""

    def __init__(
        self, client: redis.asyncio.Redis, rules: Rules, *, rate: float = 0.0, slots: int = 4
    ) -> None:
        self.rules = rules
        self.provider = Provider()
        self.seconds = 1000.0
        self.suspended = 0.0
        """Seconds for which the worker's machine was suspended: most clocks stood still then."""
        self.skew = timedelta(0)
        """How far the worker's wall clock is ahead of the server's."""
        self.store = NotedStore(client)
        self.store.now = NOW
        self.attempts: list[Outcome] = []
        self.tokens = 0
        self._http = httpx.AsyncClient(base_url="https://provider.test", transport=self.provider)
        self.gateway = Gateway(
            self._http, rules, clock=self.lease_clock, sleep=self.sleep, jitter=lambda: 0.5
        )
        self.gate = Turnstile(self.store, rate=rate, bulk_share=0.7, clock=self.clock)
        self.slots = Slots(slots, 0.7)
        self.service = Service(
            self.store,
            self.gateway,
            rules=rules,
            slots=self.slots,
            gate=self.gate,
            clock=self.clock,
            lease_clock=self.lease_clock,
            wall=lambda: self.now + self.skew,
            jitter=lambda: 0.5,
            token=self.token,
            on_attempt=self.attempts.append,
        )

    @property
    def now(self) -> datetime:
        assert self.store.now is not None
        return self.store.now

    def clock(self) -> float:
        return self.seconds

    def lease_clock(self) -> float:
        return self.seconds + self.suspended

    async def sleep(self, seconds: float) -> None:
        self.pass_time(timedelta(seconds=seconds))

    def token(self) -> str:
        self.tokens += 1
        return f"token-{self.tokens}"

    def pass_time(self, span: timedelta) -> None:
        """Let time pass on both clocks."""
        self.seconds += span.total_seconds()
        self.store.now = self.now + span

    def suspend(self, span: timedelta) -> None:
        """Let time pass for everybody but the worker's machine, which only some clocks show."""
        self.suspended += span.total_seconds()
        self.store.now = self.now + span

    def later(self, span: timedelta, answer: Given) -> Answer:
        """An answer that takes its time."""

        def answered(_: httpx.Request) -> Given:
            self.pass_time(span)
            return answer

        return answered

    async def accept(
        self,
        refund_id: str = ID,
        lane: Lane = Lane.SINGLE,
        batch_id: str | None = None,
        **fields: Any,
    ) -> RefundRequest:
        request = a_request(refund_id, **fields)
        await self.store.run(creations.create(request, lane, batch_id))
        return request

    async def handle(self, refund_id: str = ID, lane: Lane = Lane.SINGLE, **options: Any) -> str:
        """Handle a refund; what that says of how it was left."""
        return str(await self.service.handle(refund_id, lane, **options))

    def wake_nobody(self) -> None:
        """Leave what a handling wakes alone: a test that counts calls wants one handling only."""
        self.service._wake = lambda *_: None  # type: ignore[method-assign] # the test's own loop

    async def refund(self, refund_id: str = ID) -> Refund:
        refund: Refund | None = (await self.store.run(reads.load(refund_id))).refund
        assert refund is not None
        return refund

    async def stored(self, refund_id: str = ID) -> Refund:
        """The record as it stands, without a script."""
        stored: Any = await self.store.redis.hgetall(f"refunds:refund:{refund_id}")
        return decode(stored)

    async def history(self, refund_id: str = ID) -> list[dict[str, Any]]:
        lines: Any = await self.store.redis.lrange(f"refunds:history:{refund_id}", 0, -1)
        return Moves().read(lines)

    async def set(self, refund_id: str = ID, **fields: str) -> None:
        """Write fields of a record, as only a test may."""
        for name, value in fields.items():
            await self.store.redis.hset(f"refunds:refund:{refund_id}", name, value)

    async def meta(self) -> dict[str, str]:
        stored: Any = await self.store.redis.hgetall("refunds:meta")
        return dict(stored)

    async def close(self) -> None:
        await self.service.drain()
        await self.store.close()
        await self._http.aclose()


def events(lines: list[Any], **facts: Any) -> list[str]:
    """The names of the events that carry these facts."""
    return [
        line["event"]
        for line in lines
        if all(line.get(name) == value for name, value in facts.items())
    ]


async def until(true: Callable[[], bool]) -> None:
    """Let the event loop turn until something is so."""
    for turn in range(12_000):
        if true():
            return
        # What waits for the server may need more than turns on a busy machine.
        await asyncio.sleep(0 if turn < 2000 else 0.001)
    raise AssertionError("it never came to be")


@contextlib.asynccontextmanager
async def opened(
    client: redis.asyncio.Redis, rules: Rules = VERIFY, **options: Any
) -> AsyncIterator[Shop]:
    """A shop that is closed with the block."""
    shop = Shop(client, rules, **options)
    try:
        yield shop
    finally:
        await shop.close()


async def in_doubt(shop: Shop, refund_id: str = ID) -> None:
    """A refund whose reply was lost."""
    await shop.accept(refund_id)
    shop.provider.will(POST, httpx.ReadError("reset"), says())
    await shop.handle(refund_id)
    assert (await shop.stored(refund_id)).stage is Stage.IN_DOUBT


async def shown_once(shop: Shop) -> None:
    """A refund in doubt whose payment was shown, and shown absent by a first look."""
    shop.provider.will(PAID, totals(0))
    shop.provider.will(LIST, listing())
    await in_doubt(shop)
    shop.pass_time(VERIFY.settle)
    await shop.handle()


async def long_in_doubt(shop: Shop) -> None:
    """A refund whose reply was lost an hour ago."""
    await shop.accept()
    shop.provider.will(POST, shop.later(30 * SECOND, httpx.ReadError("reset")), says())
    await shop.handle()
    assert (await shop.stored()).stage is Stage.IN_DOUBT
    shop.pass_time(HOUR)


async def handled(shop: Shop, refund_id: str = ID) -> list[str]:
    """What one handling asked of the records; what it wakes is left alone."""
    shop.wake_nobody()
    shop.store.asked.clear()
    await shop.handle(refund_id)
    return shop.store.asked


def freeze_before_save(shop: Shop, span: timedelta) -> None:
    """Let this time pass just before the next save."""
    run = shop.store.run

    async def freezing(call: Any) -> Any:
        if call.script is scripts.SAVE:
            shop.store.run = run  # type: ignore[method-assign]
            shop.pass_time(span)
        return await run(call)

    shop.store.run = freezing  # type: ignore[method-assign]
