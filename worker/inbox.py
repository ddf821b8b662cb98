"""Messages that cannot be understood, kept in `refunds:rejected` with a reason; what `refunds.submit` carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Final

from worker.errors import FieldError, InvalidRequest
from worker.request import RefundRequest, scrubbed, shown

KEPT: Final = 10_000
_LONGEST: Final = 4_000
_LONGEST_NAME: Final = 60
_FIELDS: Final = tuple(each.name for each in fields(RefundRequest))
_NEEDED: Final = tuple(
    each.name for each in fields(RefundRequest) if each.default is MISSING and each.default_factory is MISSING
)

Keep = Callable[[str, str], bool]
_keepers: list[Keep] = []


def keep_with(keep: Keep) -> None:
    """Name the function that keeps (raw message, reason); the latest one named is used."""
    _keepers[:] = [keep]


def rejected(raw: object, reason: str) -> bool:
    """Keep a message that cannot be understood; return whether that was done."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw if isinstance(raw, str) else repr(raw)
    return all(keep(scrubbed(text[:_LONGEST], _LONGEST), scrubbed(reason)) for keep in _keepers)


def requested(args: Sequence[Any], kwargs: Mapping[str, Any]) -> RefundRequest:
    """Return the request that a message's args and kwargs spell; raises `InvalidRequest`."""
    wrong = [
        FieldError(
            field=scrubbed(name, _LONGEST_NAME),
            code="unknown_field",
            value=shown(value),
            rule=f"is no field of a refund, which has {', '.join(_FIELDS)}",
        )
        for name, value in kwargs.items()
        if name not in _FIELDS
    ]
    wrong += [
        FieldError(field=name, code="missing_field", value="", rule="is missing from kwargs")
        for name in _NEEDED
        if name not in kwargs
    ]
    if args:
        rule = "must be empty: the fields of a refund are named in kwargs"
        wrong.append(FieldError(field="args", code="positional", value=shown(args), rule=rule))
    if wrong:
        raise InvalidRequest(wrong)
    return RefundRequest(**kwargs)
