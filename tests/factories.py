"""Refund records, requests and provider replies as tests need them.

Plausible by default, any field to be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.model.answers import Outcome, PaymentView, ProviderRefund, Reply, TryVerdict
from worker.model.refund import Lane, Refund, Stage, Status
from worker.model.request import RefundRequest, idempotency_key
from worker.rules import payloads
from worker.rules.attempts import Rules

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
PAYMENT = "pi_1787730829493927936"
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

VERIFY = Rules(idempotency="verify", readback="list")
TRUST = Rules(idempotency="trust", readback="list")
BLIND = Rules(idempotency="verify", readback="none")


def a_request(refund_id: str = "order-1001-1", **fields: Any) -> RefundRequest:
    """A valid request of 500 minor units; `fields` replace or add."""
    values: dict[str, Any] = {"refund_id": refund_id, "payment_intent": PAYMENT, "amount": 500}
    return RefundRequest(**(values | fields))


def a_refund(stage: Stage = Stage.SENDING, **fields: Any) -> Refund:
    """A record as it plausibly stands in `stage`.

    Doubt only in `in_doubt`, an attempt wherever something was sent.
    """
    sent = stage is not Stage.QUEUED
    values: dict[str, Any] = {
        "refund_id": "order-1001-1",
        "status": Status.SUCCEEDED if stage is Stage.SETTLED else Status.PENDING,
        "stage": stage,
        "payment_intent": PAYMENT,
        "amount": 500,
        "currency": "usd",
        "attempts": 1 if sent else 0,
        "created_at": NOW - HOUR,
        "updated_at": NOW - MINUTE,
        "next_check_at": None if stage is Stage.SETTLED else NOW,
        "version": 2 if sent else 1,
        "lane": Lane.SINGLE,
        "fingerprint": a_request(amount=None if fields.get("all_remaining") else 500).fingerprint,
        "first_attempt_at": NOW - MINUTE if sent else None,
    }
    if stage is Stage.IN_DOUBT:
        values |= {"doubt_since": NOW - MINUTE, "quiet_at": NOW - MINUTE}
    if stage in {Stage.PROCESSING, Stage.SETTLED}:
        values |= {"provider_refund_id": "re_1", "evidence": "reply"}
        values["provider_status"] = "pending" if stage is Stage.PROCESSING else "succeeded"
    if stage is Stage.PROCESSING:
        values["processing_since"] = NOW - MINUTE
    values |= fields
    if values["first_attempt_at"] is not None and "created_at" not in fields:
        values["created_at"] = min(values["created_at"], values["first_attempt_at"])
    values.setdefault(
        "idempotency_key", idempotency_key(values["refund_id"], values.get("generation", 1))
    )
    return Refund(**values)


def refund_payload(refund: Refund | None = None, **fields: Any) -> dict[str, Any]:
    """The provider's Refund object for a record of ours, succeeded unless `fields` say
    otherwise.
    """
    refund = refund or a_refund()
    return {
        "id": "re_1",
        "object": "refund",
        "amount": refund.amount,
        "currency": refund.currency,
        "payment_intent": refund.payment_intent,
        "metadata": {"refund_id": refund.refund_id, "refund_generation": str(refund.generation)},
        "status": "succeeded",
        "created": int(NOW.timestamp()),
    } | fields


def a_reply(
    http_status: int = 200,
    payload: Any = None,
    *,
    hide: Mapping[str, str] | None = None,
    **fields: Any,
) -> Reply:
    """A whole reply as it is read; a success shows our refund unless `payload` says otherwise.

    `hide` is the caller's metadata, which no text of the reply may repeat.
    """
    if payload is None and http_status == 200:
        payload = refund_payload()
    return Reply(
        http_status=http_status, payload=payloads.read(payload, (hide or {}).values()), **fields
    )


def refund_in(payload: Any) -> ProviderRefund | None:
    """The refund that is read in a decoded body."""
    read = payloads.read(payload)
    return None if read is None else read.refund


def payment_in(payload: Any) -> PaymentView:
    """The totals that are read in a decoded body."""
    read = payloads.read(payload)
    assert read is not None
    return read.payment


def error_in(payload: Any, *hide: str) -> tuple[str | None, str | None, str | None] | None:
    """Type, code and message of the error that is read in a decoded body."""
    read = payloads.read(payload, hide)
    error = None if read is None else read.error
    return None if error is None else (error.kind, error.code, error.message)


def an_error(
    http_status: int, code: str = "some_code", kind: str = "invalid_request_error"
) -> Reply:
    """A reply with the provider's error, nested as its documentation shows it."""
    return a_reply(http_status, {"error": {"type": kind, "code": code, "message": "because"}})


def found(**fields: Any) -> ProviderRefund:
    """Our refund as the provider shows it."""
    refund = a_refund()
    values: dict[str, Any] = {
        "id": "re_1",
        "status": "succeeded",
        "amount": refund.amount,
        "currency": refund.currency,
        "payment_intent": refund.payment_intent,
        "refund_id": refund.refund_id,
        "generation": str(refund.generation),
        "created": NOW,
    }
    return ProviderRefund(**(values | fields))


NOT_SENT = Outcome(verdict=TryVerdict.NOT_SENT, code="not_sent")
NOT_DONE = Outcome(verdict=TryVerdict.NOT_DONE, code="rate_limited", http_status=429)
BAD_KEY = Outcome(
    verdict=TryVerdict.NOT_DONE, code="credentials_refused", http_status=401, credentials=True
)
REFUSED = Outcome(verdict=TryVerdict.REFUSED, code="amount_too_large", http_status=400)
MAYBE = Outcome(verdict=TryVerdict.MAYBE, code="no_reply", doubt=True)
SERVER_ERROR = Outcome(
    verdict=TryVerdict.MAYBE,
    code="http_500",
    http_status=500,
    doubt=True,
    server_error=True,
    server_errors=1,
)
MISMATCH = Outcome(verdict=TryVerdict.MISMATCH, code="idempotency_error", http_status=400)


def done_as(status: str = "succeeded", **fields: Any) -> Outcome:
    """A proof of done by a reply, the provider saying `status`."""
    return Outcome(
        verdict=TryVerdict.DONE, code="done", http_status=200, found=found(status=status, **fields)
    )


def stepped(
    refund: Refund, changes: Any, stage: Stage, now: datetime, delay: timedelta | None
) -> Refund:
    """The record as a saved step would leave it, without a store."""
    due = None if stage is Stage.SETTLED else now + (delay or timedelta(0))
    known = {name: _kept(name, value) for name, value in changes.items()}
    return replace(refund, **known, stage=stage, next_check_at=due)


_COUNTERS = frozenset({"verdicts", "lapses", "server_errors", "looks", "resends", "attempts"})


def _kept(name: str, value: Any) -> Any:
    return 0 if value is None and name in _COUNTERS else value
