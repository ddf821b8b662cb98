"""Reads `refunds.submit` messages; malformed messages are stored in `refunds:rejected`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Final

from worker.broker.kept import RejectedMessage, kept_of
from worker.errors import FieldError, InvalidRequest
from worker.model.request import RefundRequest, scrubbed, shown

_LONGEST_NAME: Final = 60
_FIELDS: Final = tuple(each.name for each in fields(RefundRequest))
_NEEDED: Final = tuple(
    each.name
    for each in fields(RefundRequest)
    if each.default is MISSING and each.default_factory is MISSING
)

Keep = Callable[[RejectedMessage], bool]
_keepers: list[Keep] = []


def keep_with(keep: Keep) -> None:
    """Set the function that stores a message and returns whether it succeeded.

    The latest one set is used.
    """
    _keepers[:] = [keep]


def rejected(raw: object, reason: str) -> bool:
    """Store a malformed message; return whether that succeeded.

    `raw` is read as `kept_of` reads it.
    """
    kept = kept_of(raw, reason)
    return all(keep(kept) for keep in _keepers)


def requested(args: Sequence[Any], kwargs: Mapping[str, Any]) -> RefundRequest:
    """Return the request in a message's args and kwargs; raises `InvalidRequest`."""
    wrong = [
        FieldError(
            field=scrubbed(name, _LONGEST_NAME),
            code="unknown_field",
            value=shown(value),
            rule=f"is not a field of a refund; the fields are {', '.join(_FIELDS)}",
        )
        for name, value in kwargs.items()
        if name not in _FIELDS
    ]
    wrong += [
        FieldError(field=name, code="missing_field", value="", rule="is missing from kwargs")
        for name in _NEEDED
        if name not in kwargs
    ]
    if "amount" in kwargs and kwargs["amount"] is None:
        # JavaScript writes NaN as null: a mistake must not refund all that is left.
        rule = "must not be null: leave it out to refund all that is left"
        wrong.append(FieldError(field="amount", code="amount", value="null", rule=rule))
    if args:
        rule = "must be empty: the fields of a refund go into kwargs"
        wrong.append(FieldError(field="args", code="positional", value=shown(args), rule=rule))
    if wrong:
        raise InvalidRequest(wrong)
    return RefundRequest(**kwargs)
