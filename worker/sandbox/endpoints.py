"""The provider's endpoints below `/v1`.

Check the key and the rate, draw a fault, execute, in this order.

A request with a refused key, or above the rate, does not count for faults. Faults act outside the
idempotency layer, as a proxy would: before the effect, or after it on the finished answer. Only the
application's own 5xx are stored under a key, and only with `store_5xx`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from worker.sandbox import shapes, wire
from worker.sandbox.bank import Bank, Order, Refusal
from worker.sandbox.faults import Act, Endpoint, FaultBook, parse_faults
from worker.sandbox.journal import Journal
from worker.sandbox.keys import KeyStore
from worker.sandbox.ledger import Ledger
from worker.sandbox.schema import CheckedRequest, check_request
from worker.sandbox.webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from worker.sandbox.config import SandboxConfig
    from worker.sandbox.faults import Fault
    from worker.sandbox.shapes import Answer

TEST_KEY: Final = "sk_test_"
PAGE_LIMIT: Final = 100
PAGE_DEFAULT: Final = 10
RATE_WINDOW_SECONDS: Final = 1.0
_CODES: Final = {
    "missing": "parameter_missing",
    "unknown": "parameter_unknown",
    "invalid": "parameter_invalid",
}


@dataclass(kw_only=True)
class Provider:
    """One simulated provider: its settings, its state and its handlers."""

    config: SandboxConfig
    clock: Callable[[], float] = time.monotonic
    rate_limited: int = 0
    _passed: deque[float] = field(default_factory=deque)
    _owners: dict[str, str] = field(default_factory=dict)
    """Payment → the account that named it first; used if each key has an account of its own."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(path=self.config.ledger_file)
        self.bank = Bank(ledger=self.ledger, clock=self.clock)
        self.webhooks = Webhooks(lambda: self.config, self.bank)
        self.keys = KeyStore(clock=self.clock)
        self.journal = Journal(size=self.config.log_requests)
        self.faults = FaultBook(seed=self.config.seed)
        self.faults.replace(parse_faults(self.config.faults))

    async def create_refund(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/refunds`.

        A request that was read completely is executed even if the client has disconnected.
        """
        raw = await request.read()
        checked = check_request(request.headers, raw)
        entry = self.journal.note(request, raw, checked.errors)
        refusal = self.turned_away(request)
        if refusal is not None:
            return _reply(entry, refusal)
        payment = (checked.body or {}).get("payment_intent")
        fault = self._draw(entry, Endpoint.CREATE, lambda: payment)
        if fault is None:
            return _reply(entry, await self._create(request, checked, None))
        if fault.kind.before and not (self.config.store_5xx and fault.kind.is_application_error):
            await self._wait()
            return await self._spoil(request, entry, fault, None)
        return await self._spoil(request, entry, fault, await self._create(request, checked, fault))

    async def get_refund(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/refunds/{id}`."""
        refund = self.bank.refunds.get(request.match_info["id"])
        if refund is not None and self._is_foreign(request, refund.payment.id):
            refund = None
        return await self._look(
            request,
            Endpoint.REFUND,
            lambda: None if refund is None else refund.payment.id,
            lambda: (
                self._missing("refund", request)
                if refund is None
                else self._shown(shapes.refund, refund)
            ),
        )

    async def list_refunds(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/refunds?payment_intent=&limit=&starting_after=`, newest first.

        404 if lists are disabled.
        """
        if not self.config.list_refunds:
            return await self.unknown_url(request)
        return await self._look(
            request,
            Endpoint.LIST,
            lambda: request.query.get("payment_intent"),
            partial(self._page, request.query, request),
        )

    async def get_payment_intent(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/payment_intents/{id}`."""
        payment = self.bank.payment(request.match_info["id"])
        if payment is not None and self._is_foreign(request, payment.id):
            payment = None
        return await self._look(
            request,
            Endpoint.PAYMENT,
            lambda: request.match_info["id"],
            lambda: (
                self._missing("payment_intent", request)
                if payment is None
                else self._shown(shapes.payment_intent, payment)
            ),
        )

    async def get_charge(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/charges/{id}`."""
        charge_id = request.match_info["id"]
        payment = self.bank.payment_of_charge(charge_id)
        if payment is not None and self._is_foreign(request, payment.id):
            payment = None
        return await self._look(
            request,
            Endpoint.CHARGE,
            lambda: None if payment is None else payment.id,
            lambda: (
                self._missing("charge", request)
                if payment is None
                else shapes.as_json(shapes.charge(self.config, payment, charge_id))
            ),
        )

    async def get_account(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/account`: the account of the key; 404 unless accounts are shown."""
        if self.config.accounts != "shown":
            return await self.unknown_url(request)
        entry = self.journal.note(request)
        shown = {"id": _account_of(request), "object": "account"}
        return _reply(entry, self.turned_away(request) or shapes.as_json(shown))

    async def unknown_url(self, request: web.Request) -> web.StreamResponse:
        """Answer any URL that the provider does not have with 404."""
        entry = self.journal.note(request, await request.read())
        refusal = self.turned_away(request)
        message = f"Unrecognized request URL ({request.method}: {request.path})."
        unknown = shapes.error(self.config, 404, "invalid_request_error", "url_unknown", message)
        return _reply(entry, refusal or unknown)

    async def _create(
        self, request: web.Request, checked: CheckedRequest, fault: Fault | None
    ) -> Answer:
        invalid = self._invalid(checked)
        if invalid is not None:
            await self._wait(fault)
            return invalid
        body = checked.body or {}
        key = request.headers.get("Idempotency-Key")
        keyed = key if key and self.config.idempotency == "honour" else None
        earlier = None if keyed is None else self.keys.begin(self.config, keyed, body)
        if earlier is not None:
            await self._wait()
            return earlier
        answer = stored = None
        try:
            await self._wait(fault)
            failure = (
                wire.made_up_error(self.config, fault)
                if fault and fault.kind.is_application_error
                else None
            )
            blocked = fault is not None and fault.kind.before
            answer = (
                failure if blocked and failure is not None else self._execute(request, body, key)
            )
            stored = failure if self.config.store_5xx and failure is not None else answer
        finally:
            if keyed is not None:
                self.keys.finish(keyed, stored)
        await self.webhooks.sent_early(body["payment_intent"])
        return answer

    def _execute(self, request: web.Request, body: dict[str, Any], key: str | None) -> Answer:
        """Move the money, write the ledger, and only then build the answer. Nothing here waits."""
        self.bank.settle_due()
        if self._is_foreign(request, body["payment_intent"]):
            return self._no_payment(body["payment_intent"])
        order = Order(
            payment_intent=body["payment_intent"],
            amount=int(body["amount"]) if "amount" in body else None,
            reason=body.get("reason"),
            metadata=body.get("metadata", {}),
            idempotency_key=key,
        )
        made = self.bank.refund(order, settle_ms=self.config.settle_ms)
        if isinstance(made, Refusal):
            return shapes.refused(self.config, made)
        return self._shown(shapes.refund, made)

    async def _look(
        self,
        request: web.Request,
        endpoint: Endpoint,
        payment: Callable[[], str | None],
        answer: Callable[[], Answer],
    ) -> web.StreamResponse:
        entry = self.journal.note(request)
        refusal = self.turned_away(request)
        if refusal is not None:
            return _reply(entry, refusal)
        fault = self._draw(entry, endpoint, payment)
        await self._wait(fault)
        if fault is not None and fault.kind.before:
            return await self._spoil(request, entry, fault, None)
        self.bank.settle_due()
        if fault is None:
            return _reply(entry, answer())
        return await self._spoil(request, entry, fault, answer())

    def turned_away(self, request: web.Request) -> Answer | None:
        """Return the refusal of a request with a refused key or above the rate.

        None if it may go on.
        """
        header = request.headers.get("Authorization")
        if header is None or not self._is_accepted(header):
            code, word = (
                ("api_key_missing", "No") if header is None else ("api_key_invalid", "Invalid")
            )
            return shapes.error(
                self.config,
                401,
                "invalid_request_error",
                code,
                f"{word} API key provided: send the secret key as the user name of HTTP Basic, with"
                " no password.",
                headers={"WWW-Authenticate": 'Basic realm="sandbox"'},
            )
        if self.config.rate_limit and not self._is_within_rate():
            self.rate_limited += 1
            return wire.rate_limited(self.config, "1")
        return None

    def _is_accepted(self, header: str) -> bool:
        scheme, _, encoded = header.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            user, _, password = base64.b64decode(encoded, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        if password:
            return False
        if self.config.api_key is None:
            return user.startswith(TEST_KEY.encode()) and len(user) > len(TEST_KEY)
        return hmac.compare_digest(user, self.config.api_key.encode())

    def _is_foreign(self, request: web.Request, payment_id: str) -> bool:
        """Return whether a payment belongs to another account."""
        if self.config.accounts == "one":
            return False
        account = _account_of(request)
        return self._owners.setdefault(payment_id, account) != account

    def _no_payment(self, payment_id: str) -> Answer:
        message = f"No such payment_intent: '{payment_id}'"
        return shapes.error(
            self.config,
            404,
            "invalid_request_error",
            "resource_missing",
            message,
            param="payment_intent",
        )

    def _is_within_rate(self) -> bool:
        now = self.clock()
        while self._passed and self._passed[0] <= now - RATE_WINDOW_SECONDS:
            self._passed.popleft()
        if len(self._passed) >= self.config.rate_limit:
            return False
        self._passed.append(now)
        return True

    def _draw(
        self, entry: dict[str, Any] | None, endpoint: Endpoint, payment: Callable[[], str | None]
    ) -> Fault | None:
        fault = self.faults.draw(endpoint, payment)
        if fault is not None and entry is not None:
            entry["fault"] = fault.kind.name
        return fault

    async def _wait(self, fault: Fault | None = None) -> None:
        seconds = self.config.latency_ms / 1000
        if fault is not None and fault.kind.act is Act.LATE:
            seconds += fault.seconds or 0
        if seconds:
            await asyncio.sleep(seconds)

    async def _spoil(
        self,
        request: web.Request,
        entry: dict[str, Any] | None,
        fault: Fault,
        answer: Answer | None,
    ) -> web.StreamResponse:
        response = await wire.spoil(request, fault, answer, self.config)
        if entry is not None and fault.kind.act not in {Act.HOLD, Act.RESET}:
            entry["status"] = response.status
        return response

    def _invalid(self, checked: CheckedRequest) -> Answer | None:
        if not checked.violations:
            return None
        field_name, rule, text = checked.violations[0]
        param = field_name.removeprefix("body.").removeprefix("header.")
        return shapes.error(
            self.config, 400, "invalid_request_error", _CODES[rule], text, param=param
        )

    def _missing(self, noun: str, request: web.Request) -> Answer:
        message = f"No such {noun}: '{request.match_info['id']}'"
        return shapes.error(
            self.config, 404, "invalid_request_error", "resource_missing", message, param="id"
        )

    def _shown(self, shape: Callable[[SandboxConfig, Any], dict[str, Any]], item: object) -> Answer:
        return shapes.as_json(shape(self.config, item))

    def _page(self, query: Any, request: web.Request | None = None) -> Answer:
        bad = partial(shapes.error, self.config, 400, "invalid_request_error")
        unknown = set(query) - {"payment_intent", "limit", "starting_after"}
        if unknown:
            name = min(unknown)
            return bad("parameter_unknown", f"Received unknown parameter: {name}", param=name)
        text = query.get("limit", str(PAGE_DEFAULT))
        if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= PAGE_LIMIT:
            return bad(
                "parameter_invalid",
                f"limit: must be a whole number from 1 to {PAGE_LIMIT}",
                param="limit",
            )
        if "payment_intent" in query:
            payment = self.bank.payment(query["payment_intent"])
            if payment is None:
                return self._no_payment(query["payment_intent"])
            refunds = payment.refunds[::-1]
        else:
            refunds = list(self.bank.refunds.values())[::-1]
        if request is not None:
            refunds = [
                refund for refund in refunds if not self._is_foreign(request, refund.payment.id)
            ]
        start = 0
        if "starting_after" in query:
            positions = [
                index
                for index, refund in enumerate(refunds)
                if refund.id == query["starting_after"]
            ]
            if not positions:
                return bad(
                    "resource_missing", "No such refund in this list", param="starting_after"
                )
            start = positions[0] + 1
        end = start + int(text)
        return shapes.as_json(
            shapes.refund_list(self.config, refunds[start:end], has_more=end < len(refunds))
        )


def _account_of(request: web.Request) -> str:
    """Return the account id of the accepted key in a request."""
    credentials = base64.b64decode(request.headers.get("Authorization", "").partition(" ")[2])
    return f"acct_{hashlib.sha256(credentials).hexdigest()[:16]}"


def _reply(entry: dict[str, Any] | None, answer: Answer) -> web.Response:
    if entry is not None:
        entry["status"] = answer.status
    return wire.respond(answer)
