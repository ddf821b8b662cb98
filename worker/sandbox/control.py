"""The control endpoints below `/_sandbox`, which read and change the sandbox. They need no key."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from worker.sandbox import shapes, wire
from worker.sandbox.bank import CAPTURED, CURRENCY, FAILURE_REASONS, LATER, Outcome
from worker.sandbox.config import SandboxConfigError
from worker.sandbox.export import exported
from worker.sandbox.faults import FaultSpecError, fault_from, parse_faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from worker.sandbox.endpoints import Provider

CHARGES_LIMIT: Final = 10


class _InputError(ValueError):
    """A control request that cannot be carried out; its text says why."""


class Control:
    """The handlers that set up and read a provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def health(self, _request: web.Request) -> web.Response:
        """`GET /_sandbox/health`."""
        return _json({"ok": True})

    async def ledger(self, request: web.Request) -> web.Response:
        """`GET /_sandbox/ledger`: all, those after `?after=<seq>` or of one `?refund_id=`.

        `?summary=1` counts.
        """
        self._provider.bank.settle_due()
        ledger = self._provider.ledger
        if request.query.get("summary", "0") not in {"", "0"}:
            return _json(ledger.summary())
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdigit()):
            return _rejected("after: must be a whole number")
        # Sequence numbers count from 1, so `after` is also the index of the first entry wanted.
        entries = ledger.entries[int(after) :]
        for name in ("refund_id", "payment_intent"):
            if name in request.query:
                entries = [entry for entry in entries if entry[name] == request.query[name]]
        return _json(entries)

    async def export(self, _request: web.Request) -> web.Response:
        """`GET /_sandbox/export`: all refunds as CSV, as a provider's dashboard exports them."""
        self._provider.bank.settle_due()
        text = exported(self._provider.config, self._provider.bank.refunds.values())
        headers = {"Content-Type": "text/csv; charset=utf-8"}
        return wire.respond(shapes.Answer(status=200, body=text.encode(), headers=headers))

    async def requests(self, _request: web.Request) -> web.Response:
        """`GET /_sandbox/requests`: the last requests received below `/v1`, oldest first."""
        return _json(self._provider.journal.entries())

    async def forget_requests(self, _request: web.Request) -> web.Response:
        """`DELETE /_sandbox/requests`."""
        self._provider.journal.clear()
        return _json({"requests": 0})

    async def webhooks(self, _request: web.Request) -> web.Response:
        """`GET /_sandbox/webhooks`: the last deliveries of events, oldest first."""
        return _json(self._provider.webhooks.deliveries())

    async def faults(self, _request: web.Request) -> web.Response:
        """`GET /_sandbox/faults`: faults with their counts, and modes.

        It also shows the numbers of 429s sent and keys replayed.
        """
        provider = self._provider
        return _json(
            {
                "faults": provider.faults.report(),
                "modes": provider.config.modes(),
                "received": provider.journal.received,
                "rate_limited": provider.rate_limited,
                "replayed": provider.keys.replayed,
            }
        )

    async def set_faults(self, request: web.Request) -> web.Response:
        """`POST /_sandbox/faults`: change faults or modes.

        `spec` (text) or `faults` (objects) replaces all faults. `modes` changes those it names.
        """
        try:
            asked = await _object(request, {"spec", "faults", "modes"})
            if "spec" in asked and "faults" in asked:
                return _rejected("spec and faults cannot be combined")
            faults = None
            if "spec" in asked:
                faults = parse_faults(_typed(asked, "spec", str))
            elif "faults" in asked:
                faults = tuple(
                    fault_from(_is_object(item, "faults")) for item in _typed(asked, "faults", list)
                )
            config = self._provider.config.with_modes(
                _typed(asked, "modes", dict) if "modes" in asked else {}
            )
        except (_InputError, FaultSpecError, SandboxConfigError) as error:
            return _rejected(str(error))
        self._provider.config = config
        if faults is not None:
            self._provider.faults.replace(faults)
        return await self.faults(request)

    async def clear_faults(self, request: web.Request) -> web.Response:
        """`DELETE /_sandbox/faults`; modes do not change."""
        self._provider.faults.replace(())
        return await self.faults(request)

    async def create_payment_intent(self, request: web.Request) -> web.Response:
        """`POST /_sandbox/payment_intents`: create a payment, or replace one without refunds."""
        provider = self._provider
        try:
            asked = await _object(
                request,
                {
                    "id",
                    "amount",
                    "currency",
                    "charges",
                    "outcome",
                    "failure_reason",
                    "settle_ms",
                    "refunded",
                },
            )
            facts = _payment_facts(asked)
        except _InputError as error:
            return _rejected(str(error))
        payment_id = facts.pop("id")
        known = provider.bank.payments.get(payment_id)
        if known is not None and known.refunds:
            return _rejected(f"id: {payment_id} exists and has refunds: use another id")
        payment = provider.bank.create_payment(payment_id, **facts)
        return _json(shapes.payment_intent(provider.config, payment))

    async def advance(self, _request: web.Request) -> web.Response:
        """`POST /_sandbox/advance`: settle now every pending refund that would settle by itself."""
        return _json({"settled": self._provider.bank.advance()})

    async def move_refund(self, request: web.Request) -> web.Response:
        """`POST /_sandbox/refunds/{id}`: settle one refund, or reverse it in either direction.

        409 if its status, or what is left of the payment, does not allow it.
        """
        bank = self._provider.bank
        bank.settle_due()
        refund = bank.refunds.get(request.match_info["id"])
        if refund is None:
            return _rejected("No such refund", status=404)
        try:
            asked = await _object(request, {"status", "failure_reason"})
            status = _chosen(asked, "status", tuple(LATER))
            reason = (
                _chosen(asked, "failure_reason", FAILURE_REASONS)
                if "failure_reason" in asked
                else None
            )
        except _InputError as error:
            return _rejected(str(error))
        if (barrier := bank.why_not(refund, status)) is not None:
            return _rejected(f"status: {barrier}", status=409)
        bank.move(refund, status, reason)
        return _json(shapes.refund(self._provider.config, refund))


def _json(value: object, status: int = 200) -> web.Response:
    return wire.respond(shapes.as_json(value, status=status))


def _rejected(message: str, *, status: int = 400) -> web.Response:
    return _json({"error": {"type": "sandbox_error", "message": message}}, status)


async def _object(request: web.Request, known: set[str]) -> dict[str, Any]:
    try:
        value = json.loads(await request.read() or b"{}")
    except ValueError:
        raise _InputError("body: is not JSON") from None
    asked = _is_object(value, "body")
    unknown = asked.keys() - known
    if unknown:
        raise _InputError(
            f"{min(unknown)}: is not a known field; known are {', '.join(sorted(known))}"
        )
    return asked


def _is_object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _InputError(f"{name}: is not a JSON object")
    return value


def _typed(asked: dict[str, Any], name: str, wanted: type) -> Any:
    if not isinstance(asked.get(name), wanted):
        raise _InputError(f"{name}: is not a {wanted.__name__}")
    return asked[name]


def _chosen(asked: dict[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    if asked.get(name) not in allowed:
        raise _InputError(f"{name}: must be one of {', '.join(allowed)}")
    return str(asked[name])


def _payment_facts(asked: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    # Field → check of its value, and the rule that a wrong value breaks.
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "id": (
            lambda value: isinstance(value, str) and value[:3] == "pi_" and len(value) > len("pi_"),
            "must be a pi_…",
        ),
        "amount": (lambda value: _is_whole(value) and value > 0, "must be a whole number above 0"),
        "currency": (
            lambda value: (
                isinstance(value, str)
                and len(value) == len(CURRENCY)
                and value.isascii()
                and value.islower()
            ),
            "must be three lower-case letters",
        ),
        "charges": (
            lambda value: _is_whole(value) and 1 <= value <= CHARGES_LIMIT,
            f"must be a whole number from 1 to {CHARGES_LIMIT}",
        ),
        "outcome": (lambda value: value in tuple(Outcome), f"must be one of {', '.join(Outcome)}"),
        "failure_reason": (
            lambda value: value in FAILURE_REASONS,
            f"must be one of {', '.join(FAILURE_REASONS)}",
        ),
        "settle_ms": (
            lambda value: (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and 0 <= value < math.inf
            ),
            "must be a number, 0 or more",
        ),
        "refunded": (
            lambda value: _is_whole(value) and value >= 0,
            "must be a whole number, 0 or more",
        ),
    }
    for name, value in asked.items():
        is_right, rule = rules[name]
        if not is_right(value):
            raise _InputError(f"{name}: {rule}")
        facts[name] = value
    if "id" not in facts:
        raise _InputError("id: is missing")
    if facts.get("refunded", 0) > facts.get("amount", CAPTURED):
        raise _InputError("refunded: is more than the amount")
    if "outcome" in facts:
        facts["outcome"] = Outcome(facts["outcome"])
    return facts


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
