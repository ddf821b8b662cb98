"""Checks of typed values, made before Redis is contacted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from worker.cli.session import note
from worker.errors import FieldError, InvalidRequest
from worker.model.request import MAX_AMOUNT, RefundRequest, shown
from worker.model.times import rfc3339

_AMOUNT: Final = re.compile(r"[0-9]{1,13}")


def request_of(
    *,
    refund_id: str,
    payment_intent: str,
    amount: str | None,
    currency: str | None,
    reason: str | None,
    metadata: Iterable[str],
) -> RefundRequest:
    """Return the request that the options state.

    Raises `InvalidRequest` with every broken rule of all options.
    """
    errors: list[FieldError] = []
    number = None
    if amount is not None:
        # ASCII digits only: the meaning of '1e3', '5.0', ' 5' or other scripts' digits is not
        # guessed.
        if _AMOUNT.fullmatch(amount):
            number = int(amount)
        else:
            rule = (
                f"must be a whole number of minor units from 1 to {MAX_AMOUNT}, in the digits 0-9"
                " only"
            )
            errors.append(FieldError(field="amount", code="amount", value=shown(amount), rule=rule))
    pairs: dict[str, str] = {}
    for item in metadata:
        name, equals, value = item.partition("=")
        if not equals:
            rule = "must be written as KEY=VALUE"
            errors.append(
                FieldError(field="metadata", code="metadata_pair", value=shown(item), rule=rule)
            )
        elif name in pairs:
            rule = "this metadata key is given twice: give it once"
            errors.append(
                FieldError(field="metadata", code="metadata_twice", value=shown(name), rule=rule)
            )
        pairs.setdefault(name, value)
    try:
        request = RefundRequest(
            refund_id=refund_id,
            payment_intent=payment_intent,
            amount=number,
            currency=currency,
            reason=reason,
            metadata=pairs,
        )
    except InvalidRequest as error:
        raise InvalidRequest([*errors, *error.errors]) from None
    if errors:
        raise InvalidRequest(errors)
    return request


def checked_moment(text: str, past: str, *, others: str = "") -> datetime:
    """Return a typed RFC 3339 time in the past, and print how it was read.

    `past` is the rule that a time in the future breaks. `others` are what else may be typed, for
    the error. Raises `InvalidRequest`.
    """
    try:
        typed = datetime.fromisoformat(text)
        moment = typed.replace(tzinfo=UTC) if typed.tzinfo is None else typed.astimezone(UTC)
    except (ValueError, OverflowError):
        rule = f"must be {others}a time such as 2026-01-31T09:00:00Z"
        raise InvalidRequest(
            [FieldError(field="since", code="since", value=shown(text), rule=rule)]
        ) from None
    if moment > datetime.now(UTC):
        raise InvalidRequest(
            [FieldError(field="since", code="since", value=shown(text), rule=past)]
        )
    zone = "" if typed.tzinfo else " (no time zone was given: UTC is assumed)"
    note(f"since {rfc3339(moment)}{zone}")
    return moment
