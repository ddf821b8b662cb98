"""The provider's objects and errors as it writes them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.sandbox.bank import Refusal, SandboxPayment, SandboxRefund
    from worker.sandbox.config import SandboxConfig
    from worker.sandbox.webhooks import WebhookEndpoint


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A complete reply before it is sent; `body` is JSON text unless the headers say otherwise."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return an answer that carries a JSON value."""
    return Answer(
        status=status, body=json.dumps(value, separators=(",", ":")).encode(), headers=headers or {}
    )


def error(
    config: SandboxConfig,
    status: int,
    kind: str,
    code: str,
    message: str,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Return an error in the envelope that the sandbox is set to."""
    fields: dict[str, Any] = {"type": kind, "code": code, "message": message}
    if param is not None:
        fields["param"] = param
    return as_json(
        {"error": fields} if config.envelope == "nested" else fields, status=status, headers=headers
    )


def refused(config: SandboxConfig, refusal: Refusal) -> Answer:
    """Return the bank's refusal as a reply."""
    return error(
        config, refusal.status, refusal.type, refusal.code, refusal.message, param=refusal.param
    )


def refund(config: SandboxConfig, item: SandboxRefund) -> dict[str, Any]:
    """Return a Refund object. A field that does not apply is left out.

    The provider never sends null.
    """
    fields = {
        "id": item.id,
        "object": "refund",
        "amount": item.amount,
        "charge": item.payment.charge_ids()[-1],
        "created": _time(config, item.created),
        "currency": item.payment.currency,
        "metadata": item.metadata,
        "payment_intent": item.payment.id,
        "reason": item.reason,
        "status": item.status,
        "failure_reason": item.failure_reason,
    }
    return {name: value for name, value in fields.items() if value is not None}


def charge(config: SandboxConfig, payment: SandboxPayment, charge_id: str) -> dict[str, Any]:
    """Return a Charge object. Several share the amount evenly, and refunds fill them in order."""
    ids = payment.charge_ids()
    index = ids.index(charge_id)
    share, rest = divmod(payment.amount, len(ids))
    amounts = [share + rest, *[share] * (len(ids) - 1)]
    refunded = payment.succeeded + (payment.pending if config.pending_in_totals else 0)
    own = min(max(refunded - sum(amounts[:index]), 0), amounts[index])
    return {
        "id": charge_id,
        "object": "charge",
        "amount": amounts[index],
        "amount_captured": amounts[index],
        "amount_refunded": own,
        "captured": True,
        "created": _time(config, payment.created),
        "currency": payment.currency,
        "metadata": {},
        "paid": True,
        "payment_intent": payment.id,
        "refunded": own == amounts[index],
        "status": "succeeded",
    }


def payment_intent(config: SandboxConfig, payment: SandboxPayment) -> dict[str, Any]:
    """Return a PaymentIntent object, with its charges if the sandbox is set so."""
    ids = payment.charge_ids()
    shape: dict[str, Any] = {
        "id": payment.id,
        "object": "payment_intent",
        "amount": payment.amount,
        "amount_capturable": 0,
        "amount_received": payment.amount,
        "created": _time(config, payment.created),
        "currency": payment.currency,
        "latest_charge": ids[-1],
        "livemode": False,
        "metadata": {},
        "status": "succeeded",
    }
    if config.charges_expanded:
        shape["charges"] = {
            "object": "list",
            "data": [charge(config, payment, charge_id) for charge_id in reversed(ids)],
            "has_more": False,
            "total_count": len(ids),
            "url": f"/v1/charges?payment_intent={payment.id}",
        }
    return shape


def refund_list(
    config: SandboxConfig, items: Sequence[SandboxRefund], *, has_more: bool
) -> dict[str, Any]:
    """Return one page of refunds."""
    return {
        "object": "list",
        "url": "/v1/refunds",
        "has_more": has_more,
        "data": [refund(config, item) for item in items],
    }


def event(config: SandboxConfig, event_id: str, kind: str, item: SandboxRefund) -> dict[str, Any]:
    """Return an Event about a refund, in the shape that the sandbox is set to.

    `refund` shows the refund itself, `charge` its charge with the refund without metadata, `bare`
    only which payment it is about.
    """
    whole = refund(config, item)
    shown = whole
    if config.webhook_shape != "refund":
        shown = {"id": whole["charge"], "object": "charge", "payment_intent": item.payment.id}
    if config.webhook_shape == "charge":
        part = {name: value for name, value in whole.items() if name != "metadata"}
        shown = charge(config, item.payment, whole["charge"]) | {
            "refunds": {"object": "list", "data": [part], "has_more": False}
        }
    return {
        "id": event_id,
        "object": "event",
        "created": _time(config, time.time()),
        "data": {"object": shown},
        "livemode": False,
        "type": kind,
    }


def webhook_endpoint(config: SandboxConfig, item: WebhookEndpoint) -> dict[str, Any]:
    """Return a Webhook Endpoint object with its secret, as the reply to its creation shows it."""
    return {
        "id": item.id,
        "object": "webhook_endpoint",
        "created": _time(config, item.created),
        "description": item.description,
        "enabled_events": list(item.enabled_events),
        "livemode": False,
        "metadata": {},
        "secret": item.secret,
        "status": "enabled",
        "url": item.url,
    }


def _time(config: SandboxConfig, seconds: float) -> int:
    return int(seconds * 1000) if config.created_in_ms else int(seconds)
