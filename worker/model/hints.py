"""The ids that a webhook event names: what to read, never what happened.

Only the provider's answer to our own GET changes a record. An event's amount is not read at all,
and its status only spares the GET for a record that agrees with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.model.request import is_provider_id, is_refund_id

MOST: Final = 10
"""The most refunds that are read from one event."""
_GENERATION: Final = re.compile(r"[1-9][0-9]{0,8}")
_STATUS: Final = re.compile(r"[a-z_]{1,40}")
_NOTHING: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Hint:
    """The ids of one refund in an event; each may be absent.

    `refund_id` and `generation` are our own, from the refund's metadata.
    """

    provider_refund_id: str | None = None
    refund_id: str | None = None
    generation: int | None = None
    payment_intent: str | None = None
    status: str | None = None


def read(event: object) -> Hint | None:
    """Return the first hint of a decoded event, None if the event is not about a refund."""
    return next(iter(read_all(event)), None)


def read_all(event: object) -> tuple[Hint, ...]:
    """Return the hints of a decoded event; none if it is not about a refund.

    An event shows a refund, or a charge that lists its refunds, or only a payment. Only the first
    `MOST` are to be read.
    """
    whole = _mapping(event)
    shown = _mapping(_mapping(whole.get("data")).get("object"))
    if _is_refund(shown):
        return (_hint(shown),)
    kind = whole.get("type")
    if not isinstance(kind, str) or "refund" not in kind:
        return ()
    payment = _payment(shown)
    listed = dict.fromkeys(_hint(entry, payment) for entry in _entries(shown))
    return tuple(listed) or (Hint(payment_intent=payment),)


def _entries(charge: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    refunds = charge.get("refunds")
    entries = _mapping(refunds).get("data") if isinstance(refunds, dict) else refunds
    if isinstance(entries, list):
        yield from (entry for entry in map(_mapping, entries) if _is_refund(entry))


def _is_refund(value: Mapping[str, Any]) -> bool:
    identity = value.get("id")
    return value.get("object") == "refund" or (
        isinstance(identity, str) and identity.startswith("re_")
    )


def _hint(refund: Mapping[str, Any], payment: str | None = None) -> Hint:
    metadata = _mapping(refund.get("metadata"))
    own = metadata.get("refund_id")
    return Hint(
        provider_refund_id=_id(refund.get("id")),
        refund_id=own if is_refund_id(own) else None,
        generation=_generation(metadata.get("refund_generation")),
        payment_intent=_id(refund.get("payment_intent")) or payment,
        status=_status(refund.get("status")),
    )


def _payment(shown: Mapping[str, Any]) -> str | None:
    """Return the payment of a charge, or of a payment intent that is shown itself."""
    if shown.get("object") == "payment_intent":
        return _id(shown.get("id"))
    return _id(shown.get("payment_intent"))


def _id(value: object) -> str | None:
    """Return a provider's id, given as text or inside an expanded object."""
    identity = value.get("id") if isinstance(value, dict) else value
    return identity if isinstance(identity, str) and is_provider_id(identity) else None


def _status(value: object) -> str | None:
    return value if isinstance(value, str) and _STATUS.fullmatch(value) is not None else None


def _generation(value: object) -> int | None:
    # The provider may show our number as text or as a number. True is an int, and not a generation.
    if type(value) is int and 0 < value < 10**9:
        return value
    if isinstance(value, str) and _GENERATION.fullmatch(value) is not None:
        return int(value)
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NOTHING
