"""What an answer means: the provider's words parsed leniently, judged strictly.

An allow-list: whatever is not named here may have happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from worker.model import Answer, NoReply, NotSent, Outcome, ProviderRefund, Refund, Reply, Seen, Status
from worker.request import is_provider_id, scrubbed

FINAL_STATUSES: Final = MappingProxyType(
    {"succeeded": Status.SUCCEEDED, "failed": Status.FAILED, "canceled": Status.CANCELED}
)
KNOWN_STATUSES: Final = frozenset({*FINAL_STATUSES, "pending"})
REFUSALS: Final = frozenset({400, 402, 403, 404, 422})


def parse_refund(payload: Mapping[str, Any]) -> ProviderRefund | None:
    """Return the refund in a payload, None where it has no usable id."""
    identity = payload.get("id")
    if not isinstance(identity, str) or not is_provider_id(identity):
        return None
    payment = payload.get("payment_intent")
    if isinstance(payment, Mapping):
        payment = payment.get("id") or ""
    metadata = payload.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    return ProviderRefund(
        id=identity,
        status=_text(payload.get("status")),
        amount=read_amount(payload.get("amount")),
        currency=_lower(payload.get("currency")),
        payment_intent=_text(payment),
        failure_reason=_text(payload.get("failure_reason")),
        refund_id=_text(metadata.get("refund_id")),
        generation=_text(metadata.get("refund_generation")),
        created=read_time(payload.get("created")),
    )


def _text(value: Any) -> str | None:
    """Return a present value as text: a value of another type must contradict, not vanish."""
    if value is None or isinstance(value, str):
        return value
    return str(value)


def _lower(value: Any) -> str | None:
    text = _text(value)
    return None if text is None else text.lower()


def read_amount(value: Any) -> int | None:
    """Return an amount in minor units, None where absent, -1 where it is present and no amount."""
    if value is None:
        return None
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and len(value) <= _LONGEST_AMOUNT and value.isascii() and value.isdigit():
        return int(value)
    return -1


_LONGEST_AMOUNT: Final = 15
_MILLISECONDS_FROM: Final = 10**11


def read_time(value: Any) -> datetime | None:
    """Return a provider's time, given in seconds or in milliseconds; None where it is neither."""
    if type(value) is not int or value <= 0 or value > 10**14:
        return None
    seconds = value / 1000 if value >= _MILLISECONDS_FROM else value
    return datetime.fromtimestamp(seconds, UTC)


_SHORTEST_HIDDEN: Final = 4
"""Characters from which on a value of the caller's metadata is looked for: shorter ones stand in many a word."""


def parse_error(
    payload: Mapping[str, Any] | None, metadata: Mapping[str, str] = MappingProxyType({})
) -> tuple[str | None, str, str | None] | None:
    """Return (type, code, message) of a provider error, nested or flat; None where it is not readable as one.

    A careless provider repeats what it was asked: the message is kept without a request's body, which begins with a
    brace, and without the values of its `metadata`.
    """
    if payload is None:
        return None
    nested = payload.get("error")
    body = nested if isinstance(nested, Mapping) else payload
    kind, code, message = body.get("type"), body.get("code"), body.get("message")
    if not isinstance(kind, str) and not isinstance(code, str):
        return None
    kind = kind if isinstance(kind, str) else None
    name = code if isinstance(code, str) and code else kind or "error"
    return kind, scrubbed(name), _without(message, metadata) if isinstance(message, str) else None


def _without(message: str, metadata: Mapping[str, str]) -> str:
    text = message.partition("{")[0]
    # The longest first: another may be a part of it.
    for value in sorted(metadata.values(), key=len, reverse=True):
        if len(value) >= _SHORTEST_HIDDEN:
            text = text.replace(value, "***")
    return scrubbed(text)


def contradiction(found: ProviderRefund, refund: Refund) -> str | None:
    """Return the name of the first present field that cannot belong to our refund, None where all agree.

    A field that is absent contradicts nothing, since the provider describes each as optional. That is safe only where
    something else ties the refund to ours: a reply came on the connection of our own request, an entry of a list has
    our id in its metadata, a poll shows the id that was asked for. And one provider refund belongs to one record.
    """
    asked = refund.asked_amount
    if found.payment_intent is not None and found.payment_intent != refund.payment_intent:
        return "payment_intent"
    if found.amount is not None and (found.amount <= 0 or (asked is not None and found.amount != asked)):
        return "amount"
    if found.currency is not None and refund.currency is not None and found.currency != refund.currency:
        return "currency"
    if found.refund_id is not None and found.refund_id != refund.refund_id:
        return "metadata.refund_id"
    if found.generation is not None and found.generation != str(refund.generation):
        return "metadata.refund_generation"
    return None


def classify(answer: Answer, refund: Refund) -> Outcome:
    """Return what one try says of the refund; whatever is not listed here may have happened."""
    if isinstance(answer, NotSent):
        return Outcome(seen=Seen.NOT_SENT, code="not_sent", message=answer.reason)
    if isinstance(answer, NoReply):
        return _maybe("no_reply", answer.reason)
    status = answer.http_status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return _classify_success(answer, refund)
    error = parse_error(answer.payload, refund.metadata)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Outcome(
            seen=Seen.NOT_DONE,
            code="rate_limited",
            message=error[2] if error else None,
            http_status=status,
            retry_after=answer.retry_after,
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return Outcome(
            seen=Seen.NOT_DONE,
            code="credentials_refused",
            message=error[2] if error else None,
            http_status=status,
            credentials=True,
        )
    if status in REFUSALS and error is not None:
        kind, code, message = error
        if kind == "idempotency_error":
            return Outcome(seen=Seen.MISMATCH, code="idempotency_error", message=message, http_status=status)
        return Outcome(
            seen=Seen.REFUSED,
            code=code,
            message=message,
            http_status=status,
            credentials=status == HTTPStatus.FORBIDDEN,
        )
    code = error[1] if error else f"http_{status}"
    outcome = _maybe(code, error[2] if error else None)
    return replace(
        outcome,
        http_status=status,
        server_error=status >= HTTPStatus.INTERNAL_SERVER_ERROR,
        retry_after=answer.retry_after,
    )


def _maybe(code: str, message: str | None) -> Outcome:
    return Outcome(seen=Seen.MAYBE, code=code, message=message, doubt=True)


def owned_elsewhere(outcome: Outcome, owner: str) -> Outcome:
    """Return a success as a doubt, once it is known that its refund belongs to another record, `owner`."""
    identity = outcome.found.id if outcome.found is not None else "?"
    doubt = _maybe("owned_elsewhere", f"the reply's refund {identity} belongs to refund {owner}")
    return replace(doubt, http_status=outcome.http_status, tries=outcome.tries)


def _classify_success(answer: Reply, refund: Refund) -> Outcome:
    found = None if answer.payload is None else parse_refund(answer.payload)
    if found is None or answer.payload is None:
        return replace(_maybe("unreadable_success", "a success without a refund in it"), http_status=answer.http_status)
    kind = answer.payload.get("object")
    wrong = "object" if kind is not None and kind != "refund" else contradiction(found, refund)
    if wrong is None and found.status not in KNOWN_STATUSES:
        wrong = "status"
    if wrong is not None:
        message = f"the reply's {wrong} does not belong to this refund"
        return replace(_maybe("contradictory_reply", message), http_status=answer.http_status)
    return Outcome(seen=Seen.DONE, code="done", http_status=answer.http_status, found=found)


def key_refused(outcome: Outcome) -> Outcome:
    """Return a 403 as everyone's trouble, once a harmless GET was refused too."""
    return replace(outcome, seen=Seen.NOT_DONE, code="credentials_refused", credentials=True)


def key_accepted(outcome: Outcome) -> Outcome:
    """Return a 403 as this refund's own refusal, once a harmless GET was answered."""
    return replace(outcome, credentials=False)


_STRENGTH: Final = {seen: rank for rank, seen in enumerate(Seen)}


def fold(outcomes: Sequence[Outcome]) -> Outcome:
    """Return an attempt's outcome: its strongest try (the latest of equals); doubt stays whatever follows it."""
    strongest = max(enumerate(outcomes), key=lambda pair: (_STRENGTH[pair[1].seen], pair[0]))[1]
    # A try that never left is no answer, so it does not end a row of 5xx.
    answered = [outcome for outcome in outcomes if outcome.seen is not Seen.NOT_SENT]
    errors = 0
    for outcome in reversed(answered):
        if not outcome.server_error:
            break
        errors += 1
    return replace(
        strongest,
        doubt=any(outcome.doubt for outcome in outcomes),
        credentials=any(outcome.credentials for outcome in outcomes),
        tries=len(outcomes),
        server_errors=errors,
        only_server_errors=errors == len(answered),
    )
