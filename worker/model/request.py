"""The refund request: its validation, the bytes sent for it and its idempotency key.

Also how foreign texts are shown.

A request is frozen and keyword-only. Amounts are integers in minor units.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final

from worker.errors import FieldError, InvalidRequest
from worker.model.redaction import without_secrets

MAX_AMOUNT: Final = 10**12
"""The largest amount allowed, in minor units.

In a request, a file's row, a reply and the Lua scripts.
"""
MAX_METADATA_KEYS: Final = 48
MAX_METADATA_KEY_LENGTH: Final = 40
MAX_METADATA_VALUE_LENGTH: Final = 500
RESERVED_METADATA: Final = frozenset({"refund_id", "refund_generation"})
REASONS: Final = ("duplicate", "fraudulent", "requested_by_customer", "resolved_dispute")
_REFUND_ID: Final = re.compile(r"[A-Za-z0-9._:\-]{1,200}")
# A provider id goes into a URL path: no separators, no dots, nothing that would need escaping.
_PROVIDER_ID: Final = re.compile(r"[A-Za-z0-9_\-]{1,200}")
_CURRENCY: Final = re.compile(r"[a-z]{3}")
_SHOWN: Final = 60


def shown(value: object) -> str:
    """Return a value as shown in a message.

    Quoted, control characters escaped, without secrets, shortened.
    """
    try:
        text = without_secrets(repr(value))
    except ValueError:
        # Python does not convert an integer of thousands of digits to text.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def scrubbed(text: str, limit: int = 300) -> str:
    """Return a foreign text made safe to store and show: one line, no secrets, shortened."""
    # Redact before blanks are collapsed, because a secret may contain some, and before the text is
    # cut.
    text = line = without_secrets(text)
    if not text.isprintable() or "  " in text or text != text.strip():
        line = " ".join(
            "".join(character if character.isprintable() else " " for character in text).split()
        )
    return (line if line is text else without_secrets(line))[:limit]


def is_refund_id(value: object) -> bool:
    """Return whether a value can be a caller's refund id."""
    return isinstance(value, str) and _REFUND_ID.fullmatch(value) is not None


def is_provider_id(value: object) -> bool:
    """Return whether a value can be used in a URL path as a provider's id."""
    return isinstance(value, str) and _PROVIDER_ID.fullmatch(value) is not None


def is_currency(value: str) -> bool:
    """Return whether a text has the form of a currency code: three lowercase letters."""
    return _CURRENCY.fullmatch(value) is not None


def _text_problem(value: str, limit: int) -> str | None:
    if len(value) > limit:
        return f"must be at most {limit} characters"
    if value.isascii() and value.isprintable():
        return None
    for character in value:
        category = unicodedata.category(character)
        if category in {"Cc", "Cs"}:
            return "must not hold control characters or broken Unicode"
    return None


def _metadata_errors(metadata: object) -> list[FieldError]:
    if not isinstance(metadata, Mapping):
        return [
            FieldError(
                field="metadata",
                code="metadata_type",
                value=shown(metadata),
                rule="must be a mapping",
            )
        ]
    errors = []
    if len(metadata) > MAX_METADATA_KEYS:
        rule = f"must have at most {MAX_METADATA_KEYS} keys"
        errors.append(
            FieldError(
                field="metadata", code="metadata_keys", value=f"{len(metadata)} keys", rule=rule
            )
        )
    for key, value in metadata.items():
        if not isinstance(key, str) or not key:
            rule = "a metadata key must be text of at least one character"
            errors.append(
                FieldError(field="metadata", code="metadata_key", value=shown(key), rule=rule)
            )
            continue
        if key in RESERVED_METADATA:
            rule = "this metadata key is reserved for the worker"
            errors.append(
                FieldError(field="metadata", code="metadata_reserved", value=shown(key), rule=rule)
            )
        if problem := _text_problem(key, MAX_METADATA_KEY_LENGTH):
            rule = f"a metadata key {problem}"
            errors.append(
                FieldError(field="metadata", code="metadata_key", value=shown(key), rule=rule)
            )
        problem = (
            _text_problem(value, MAX_METADATA_VALUE_LENGTH)
            if isinstance(value, str)
            else "must be text"
        )
        if problem:
            # Redacting a key takes longer than all of its checks, so only a key in an error is
            # redacted.
            known_as = (
                without_secrets(key)[:MAX_METADATA_KEY_LENGTH] if key.isprintable() else shown(key)
            )
            field = f"metadata.{known_as}"
            errors.append(
                FieldError(field=field, code="metadata_value", value=shown(value), rule=problem)
            )
    return errors


def _no_metadata() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class RefundRequest:
    """A refund as requested by a caller; raises `InvalidRequest` naming every broken rule.

    `refund_id` is the caller's own id and makes the request idempotent. Without `amount` (minor
    units) all that is left of the payment is refunded. `currency` is stored and checked, never
    sent.
    """

    refund_id: str
    payment_intent: str
    amount: int | None = None
    currency: str | None = None
    reason: str | None = None
    metadata: Mapping[str, str] = field(default_factory=_no_metadata)

    def __post_init__(self) -> None:
        # A wrong one stays as it is, so that the error shows what was written.
        if (
            isinstance(self.currency, str)
            and not self.currency.islower()
            and is_currency(self.currency.lower())
        ):
            object.__setattr__(self, "currency", self.currency.lower())
        if errors := self._errors():
            raise InvalidRequest(errors)
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    def _errors(self) -> list[FieldError]:
        errors = []
        if not is_refund_id(self.refund_id):
            rule = "must be 1 to 200 of A-Z a-z 0-9 . _ : -"
            errors.append(
                FieldError(
                    field="refund_id", code="refund_id", value=shown(self.refund_id), rule=rule
                )
            )
        if not is_provider_id(self.payment_intent):
            rule = "must be the provider's id, 1 to 200 of A-Z a-z 0-9 _ -"
            value = shown(self.payment_intent)
            errors.append(
                FieldError(field="payment_intent", code="payment_intent", value=value, rule=rule)
            )
        # `type` and not isinstance: True is an int, and is not an amount of money.
        if self.amount is not None and (
            type(self.amount) is not int or not 0 < self.amount <= MAX_AMOUNT
        ):
            rule = f"must be a whole number of minor units from 1 to {MAX_AMOUNT}"
            errors.append(
                FieldError(field="amount", code="amount", value=shown(self.amount), rule=rule)
            )
        if self.currency is not None and (
            not isinstance(self.currency, str) or not is_currency(self.currency)
        ):
            rule = "must be a three-letter ISO code such as usd"
            errors.append(
                FieldError(field="currency", code="currency", value=shown(self.currency), rule=rule)
            )
        if self.reason is not None and self.reason not in REASONS:
            rule = f"must be one of {', '.join(REASONS)}"
            errors.append(
                FieldError(field="reason", code="reason", value=shown(self.reason), rule=rule)
            )
        # An empty mapping is the common case and needs no check; `()` or `""` is a caller's
        # mistake.
        if self.metadata or type(self.metadata) not in {dict, MappingProxyType}:
            errors.extend(_metadata_errors(self.metadata))
        return errors

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled, and producers do pass requests to process pools.
        values = {name.name: getattr(self, name.name) for name in fields(self)}
        return (_rebuild_request, ({**values, "metadata": dict(self.metadata)},))

    @property
    def fingerprint(self) -> str:
        """Return 32 hex digits over every field but the id: equal contents, equal fingerprint."""
        contents = [
            self.payment_intent,
            self.amount,
            self.currency,
            self.reason,
            dict(sorted(self.metadata.items())),
        ]
        return hashlib.sha256(_canonical(contents)).hexdigest()[:32]


def _rebuild_request(values: dict[str, Any]) -> RefundRequest:
    return RefundRequest(**values)


def _canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def request_body(request: RefundRequest, generation: int) -> bytes:
    """Return the body of `POST /v1/refunds` for one generation.

    The same request always gives the same bytes.

    The provider requires `amount` as text. Our id is sent in `metadata.refund_id`.
    """
    body: dict[str, Any] = {"payment_intent": request.payment_intent}
    if request.amount is not None:
        body["amount"] = str(request.amount)
    if request.reason is not None:
        body["reason"] = request.reason
    body["metadata"] = {
        **dict(sorted(request.metadata.items())),
        "refund_id": request.refund_id,
        "refund_generation": str(generation),
    }
    return _canonical(body)


def idempotency_key(refund_id: str, generation: int) -> str:
    """Return the `Idempotency-Key` of one generation of a refund; derived once, then stored."""
    digest = hashlib.sha256(f"{refund_id}\n{generation}".encode("ascii")).hexdigest()
    return f"refund-{digest[:40]}"
