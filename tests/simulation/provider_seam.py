"""The way to the provider: the sandbox's own rules behind httpx's transport seam, with a network
that spoils replies.

What has left a machine is the provider's: it is executed, now or later, whether or not the machine
is still there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import httpx
from aiohttp.client_reqrep import ConnectionKey

from tests.simulation.clock import EPOCH, FROZEN, OUTSIDE
from tests.simulation.known import Post
from tests.simulation.secrets import API_KEY
from worker.provider.gateway import PROBE_ID
from worker.sandbox import shapes, wire
from worker.sandbox.endpoints import Provider
from worker.sandbox.faults import KINDS, Fault
from worker.sandbox.schema import check_request
from worker.sandbox.shapes import Answer

if TYPE_CHECKING:
    from tests.simulation.clock import Machine, VirtualLoop
    from tests.simulation.judge import Judge
    from tests.simulation.odd_replies import OddReplies
    from tests.simulation.others import Others
    from worker.sandbox.bank import SandboxPayment
    from worker.sandbox.config import SandboxConfig

OK: Final = 200
REPEATS_REQUEST: Final = frozenset({400, 401, 402, 403, 500})
"""Errors that speak of what was asked, key and body."""
BY_STATUS_ALONE: Final = frozenset({401, 429})
"""Answers that need no readable body: whoever stands in front of the provider gives them too."""
CONNECT_SECONDS: Final = 10.0
_KEY: Final = ConnectionKey(
    "provider", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
)


def _foreign(name: type[httpx.TransportError], cause: BaseException) -> httpx.TransportError:
    """Return an error as the real transport words it: httpx's name, aiohttp's cause."""
    error = name(str(cause))
    error.__cause__ = cause
    return error


# Fault → the error that the worker meets, after how many seconds. Nothing has left in any of these.
UNSENT: Final[Mapping[str, tuple[Callable[[], Exception], float]]] = {
    "connect_refused": (
        lambda: _foreign(
            httpx.ConnectError, aiohttp.ClientConnectorError(_KEY, OSError(111, "refused"))
        ),
        0.01,
    ),
    "dns_failed": (
        lambda: _foreign(
            httpx.ConnectError, aiohttp.ClientConnectorDNSError(_KEY, OSError(-2, "unknown"))
        ),
        0.05,
    ),
    "connect_timeout": (
        lambda: _foreign(httpx.ConnectTimeout, aiohttp.ConnectionTimeoutError("no connection")),
        CONNECT_SECONDS,
    ),
}
# Fault → the error with which the connection ends; None holds it open until the worker gives up.
TOO_MANY: Final = 429
BROKEN: Final[Mapping[str, Callable[[], Exception] | None]] = {
    "request_lost_hang": None,
    "request_lost_reset": lambda: _foreign(httpx.ReadError, aiohttp.ClientOSError(104, "reset")),
    "request_lost_as_connect_timeout": lambda: _foreign(
        httpx.ConnectTimeout, aiohttp.ClientConnectionError("closed")
    ),
    "reply_lost_hang": None,
    "reply_lost_reset": lambda: _foreign(httpx.ReadError, aiohttp.ClientOSError(104, "reset")),
    "reply_lost_as_connect_timeout": lambda: _foreign(
        httpx.ConnectTimeout, aiohttp.ServerDisconnectedError("closed")
    ),
}
# Faults of the sandbox's own kinds: the reply that they make up is the sandbox's.
MADE_UP: Final = (
    "http_408_before",
    "http_409_before",
    "http_500_before",
    "http_500_after",
    "http_502_after",
    "http_503_before",
    "http_503_after",
    "html_502_before",
    "html_504_after",
    "http_401",
    "http_403",
    "redirect_before",
    "empty_200_before",
    "empty_200_after",
)
WRONG: Final = ("wrong_payment_intent_after", "wrong_amount_after", "wrong_refund_id_after")
REFUSED: Final = {
    "refused_400": (400, "invalid_request_error", "parameter_invalid"),
    "refused_402": (402, "card_error", "card_declined"),
}
READS: Final = (
    "connect_refused",
    "request_lost_hang",
    "reply_lost_reset",
    "http_500_before",
    "html_502_before",
    "http_429",
    "wrong_payment_intent_after",
    "list_leaves_out",
    "list_cut_short",
    "reply_cut",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What befalls one call: which fault, how long each way takes, and how late a late effect
    is.
    """

    fault: str = ""
    connect: float = 0.0
    there: float = 0.01
    back: float = 0.01
    late: float = 0.0
    lag: float = 0.0
    """Refunds younger than this are not listed yet."""
    choice: float = 0.0


class _Body(httpx.AsyncByteStream):
    """A reply's body: whole, or cut in the middle."""

    def __init__(
        self, machine: Machine, body: bytes, *, cut: bool, whole: Callable[[], None]
    ) -> None:
        self._machine = machine
        self._body = body
        self._cut = cut
        self._whole = whole

    async def __aiter__(self) -> AsyncIterator[bytes]:
        half = len(self._body) // 2
        yield self._body[:half]
        await self._machine.point("half a reply")
        if self._cut:
            raise _foreign(httpx.ReadError, aiohttp.ClientPayloadError("cut"))
        yield self._body[half:]
        self._whole()


class ProviderSeam:
    """The provider in this world, reached by all machines."""

    def __init__(
        self, loop: VirtualLoop, config: SandboxConfig, draw: Callable[[str, bytes], Draw]
    ) -> None:
        self._loop = loop
        self.provider = Provider(config=config, clock=loop.time)
        self.bank = self.provider.bank
        self.bank._life = "0"
        self.judge: Judge
        self.durable_body: Callable[[str], str | None]
        self.tell: Callable[..., None]
        self.limit = 0.0
        """Seconds that one call of a worker may take, connect to last byte."""
        self.draw = draw
        self.odd: OddReplies
        self.others: Others
        self.on_the_wire: dict[str, int] = {}
        """Requests for a refund that have left and are not yet through, by its id."""

    def accept(
        self, machine: Machine, request: httpx.Request, draw: Draw, reply: asyncio.Future[Answer]
    ) -> None:
        """Take what has left a machine; the reply arrives there unless the fault says otherwise."""
        self._loop.create_task(self._handle(machine, request, draw, reply), context=OUTSIDE)

    async def _handle(
        self, machine: Machine, request: httpx.Request, draw: Draw, reply: asyncio.Future[Answer]
    ) -> None:
        await asyncio.sleep(draw.there)
        fault = draw.fault
        if not fault.startswith("request_lost"):
            if request.method == "POST":
                answer = await self._create(request, draw)
                self.judge.effects.read_ledger()
            else:
                answer = self._read(request, draw)
            if fault not in BROKEN and fault != "late_effect":
                spoiled = self.odd.spoiled(request, _indiscreet(answer, request))
                machine.arriving(reply, draw.back, spoiled)
        broken = BROKEN.get(fault)
        if broken is not None:
            machine.arriving(reply, draw.back, broken())

    async def _create(self, request: httpx.Request, draw: Draw) -> Answer:
        provider, config = self.provider, self.provider.config
        checked = check_request(request.headers, request.content)
        asked: Any = SimpleNamespace(headers=request.headers)
        refusal = provider.turned_away(asked) or self._in_front(draw) or self.odd.instead(request)
        if refusal is not None:
            return refusal
        fault = _sandbox_fault(draw)
        if (
            fault is not None
            and fault.kind.before
            and not (config.store_5xx and fault.kind.is_application_error)
        ):
            return _spoiled(config, fault, None)
        answer = await provider._create(asked, checked, fault)
        if fault is not None and fault.kind.name != "late_effect":
            return _spoiled(config, fault, answer)
        return _wrong(answer, draw.fault) if draw.fault in WRONG else answer

    def _in_front(self, draw: Draw) -> Answer | None:
        """Return what is answered before the keys are looked at, None where nothing is."""
        config = self.provider.config
        if draw.fault == "http_429":
            seconds = int(1 + draw.choice * 20)
            when = EPOCH + timedelta(seconds=self._loop.time() + seconds)
            text = (str(seconds), format_datetime(when, usegmt=True), None)[int(draw.choice * 2.99)]
            return wire.rate_limited(config, text)
        if draw.fault in REFUSED:
            status, kind, code = REFUSED[draw.fault]
            return shapes.error(config, status, kind, code, "Refused by whatever stands in front.")
        return None

    def _read(self, request: httpx.Request, draw: Draw) -> Answer:
        provider, config = self.provider, self.provider.config
        asked: Any = SimpleNamespace(
            headers=request.headers, match_info={"id": request.url.path.rsplit("/", 1)[-1]}
        )
        refusal = provider.turned_away(asked) or self._in_front(draw) or self.odd.instead(request)
        if refusal is not None:
            return refusal
        fault = _sandbox_fault(draw)
        if fault is not None and fault.kind.before:
            return _spoiled(config, fault, None)
        self.bank.settle_due()
        answer = self._shown(request, asked)
        if draw.lag or draw.fault in {"list_leaves_out", "list_cut_short"}:
            answer = self._listed_badly(answer, draw)
        return _wrong(answer, draw.fault) if draw.fault in WRONG else answer

    def _shown(self, request: httpx.Request, asked: Any) -> Answer:
        provider, config, identity = self.provider, self.provider.config, asked.match_info["id"]
        path = request.url.path
        if path == "/v1/refunds":
            return self._page(request) if config.list_refunds else provider._missing("url", asked)
        if path.startswith("/v1/payment_intents/"):
            payment = self.bank.payment(identity)
            if payment is None:
                return provider._missing("payment_intent", asked)
            return self._totals(payment, lambda was: shapes.payment_intent(config, was))
        if path.startswith("/v1/charges/"):
            payment = self.bank.payment_of_charge(identity)
            if payment is None:
                return provider._missing("charge", asked)
            return self._totals(payment, lambda was: shapes.charge(config, was, identity))
        refund = self.bank.refunds.get(identity)
        if refund is None or self.odd.is_missing(refund):
            return provider._missing("refund", asked)
        return provider._shown(shapes.refund, self.odd.refund_as_it_was(refund))

    def _totals(
        self, payment: SandboxPayment, shape: Callable[[SandboxPayment], dict[str, Any]]
    ) -> Answer:
        self.judge.money.totals_shown(payment.id)
        self.others.totals_shown(payment.id)
        return shapes.as_json(shape(self.odd.payment_as_it_was(payment)))

    def _page(self, request: httpx.Request) -> Answer:
        answer = self.provider._page(request.url.params)
        if answer.status != OK or not (self.odd.is_late or self.odd.is_short):
            return answer
        shape = json.loads(answer.body)
        shape["data"] = [
            item
            for item in shape["data"]
            if not self.odd.is_unlisted(self.bank.refunds[item["id"]])
        ]
        for item in shape["data"]:
            item["status"] = self.odd.refund_as_it_was(self.bank.refunds[item["id"]]).status
        return shapes.as_json(shape)

    def _listed_badly(self, answer: Answer, draw: Draw) -> Answer:
        shape = json.loads(answer.body)
        if answer.status != OK or shape.get("object") != "list":
            return answer
        if draw.fault == "list_cut_short":
            shape["data"], shape["has_more"] = shape["data"][:1], True
        elif draw.fault == "list_leaves_out":
            # Somebody's known refund is missing: a list that is not to be trusted.
            shape["data"] = (
                shape["data"][: len(shape["data"]) - 1] if len(shape["data"]) > 1 else shape["data"]
            )
        else:
            young = (EPOCH + timedelta(seconds=self._loop.time() - draw.lag)).timestamp()
            scale = 1000 if self.provider.config.created_in_ms else 1
            shape["data"] = [item for item in shape["data"] if item["created"] / scale < young]
        return shapes.as_json(shape)


def _sandbox_fault(draw: Draw) -> Fault | None:
    if draw.fault == "late_effect":
        return Fault(kind=KINDS["late_effect"], seconds=draw.late)
    return Fault(kind=KINDS[draw.fault]) if draw.fault in MADE_UP else None


def _spoiled(config: SandboxConfig, fault: Fault, answer: Answer | None) -> Answer:
    name, status = fault.kind.name, fault.kind.status
    if name.startswith("html"):
        return Answer(
            status=status,
            body=b"<html><body>Bad gateway</body></html>",
            headers={"Content-Type": "text/html"},
        )
    if name.startswith("redirect"):
        return Answer(status=status, body=b"", headers={"Location": "/v1/refunds"})
    if name.startswith("empty"):
        return Answer(status=OK, body=b"")
    return wire.made_up_error(config, fault) if answer is None or status != OK else answer


def _indiscreet(answer: Answer, request: httpx.Request) -> Answer:
    """Return an error that repeats what it was asked, the key and what the body holds, as careless
    servers do.
    """
    if answer.status not in REPEATS_REQUEST or not shapes_error(answer):
        return answer
    shape = json.loads(answer.body)
    told: dict[str, Any] = shape.get("error", shape)
    told["message"] += f" (key {API_KEY}, {request.headers['Authorization']})"
    told["message"] += f" {request.content!r}"
    return shapes.as_json(shape, status=answer.status, headers=answer.headers)


def _wrong(answer: Answer, fault: str) -> Answer:
    """Return a good answer that tells of something else."""
    if answer.status != OK:
        return answer
    shape = json.loads(answer.body)
    if shape["object"] not in {"refund", "list"}:
        return answer
    for item in shape["data"] if shape["object"] == "list" else [shape]:
        if fault == "wrong_amount_after":
            item["amount"] = 0
        elif fault == "wrong_payment_intent_after":
            item["payment_intent"] = "pi_somebody_elses"
        else:
            item["metadata"] = {**item["metadata"], "refund_id": "somebody-elses"}
    return shapes.as_json(shape)


class Transport(httpx.AsyncBaseTransport):
    """httpx's transport on one machine."""

    def __init__(self, machine: Machine, seam: ProviderSeam) -> None:
        self._machine = machine
        self._seam = seam

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Carry one request over the simulated network; raises what the real transport would."""
        machine, seam = self._machine, self._seam
        write_until = machine.loop.time() + seam.limit
        body = await request.aread()
        draw = seam.draw(request.method, body)
        creates = request.method == "POST"
        if not request.url.path.endswith(PROBE_ID):
            seam.judge.brakes.requests(machine.name, f"{request.method} {request.url.path}")
        asked_at = (
            seam.judge.tries(json.loads(body)["metadata"]["refund_id"], machine.name)
            if creates
            else 0
        )
        was_stopped = await machine.point("before bytes")
        if draw.fault in UNSENT:
            make, seconds = UNSENT[draw.fault]
            await machine.arrival(seconds)
            raise make()
        if draw.connect or was_stopped:
            # A connection kept alive is gone after a stop; making one lets an overdue time limit
            # speak first.
            await machine.arrival(draw.connect or 0.001)
        if machine.loop.time() >= write_until:
            # As the real transport does: a process that was stopped before the first byte writes
            # none when it wakes.
            raise _foreign(httpx.ReadError, aiohttp.ClientOSError(104, "cut"))
        post = self._leave(request, body, asked_at) if creates else None
        reply: asyncio.Future[Answer] = machine.loop.create_future()
        seam.accept(machine, request, draw, reply)
        await machine.point("bytes left")
        answer = await reply
        await machine.point("reply begins")

        def whole() -> None:
            seam.odd.delivered(answer)
            if not creates:
                seam.judge.webhooks.shown(request.url.path, answer)
            if post is not None and (answer.status in BY_STATUS_ALONE or shapes_error(answer)):
                post.answered = answer.status
            if post is not None and answer.status == TOO_MANY:
                seam.odd.turned_away(post.refund_id)
            if creates and seam.odd.freezes():
                machine.planned[machine.points + 1] = FROZEN

        stream = _Body(machine, answer.body, cut=draw.fault == "reply_cut", whole=whole)
        return httpx.Response(answer.status, headers={**answer.headers}, stream=stream)

    def _leave(self, request: httpx.Request, body: bytes, asked_at: int) -> Post:
        metadata = json.loads(body)["metadata"]
        post = Post(
            refund_id=metadata["refund_id"],
            generation=metadata["refund_generation"],
            key=request.headers.get("Idempotency-Key", ""),
            body=body,
            left_at=self._machine.loop.time(),
            asked_at=asked_at,
        )
        seam = self._seam
        seam.tell(self._machine.name, "bytes left", post.refund_id, post.generation)
        seam.judge.bytes_left(post, seam.durable_body(post.refund_id), seam.judge.now_ms())
        seam.others.sent(json.loads(body)["payment_intent"])
        return post


def shapes_error(answer: Answer) -> bool:
    """Tell whether an answer is a JSON object, as every readable error is."""
    return answer.body.startswith(b"{")
