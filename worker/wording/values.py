"""Words for single values: a text that is safe to show, an amount, a time."""

from __future__ import annotations

from datetime import datetime

from worker.model.refund import Refund


def plain(value: object) -> str:
    """Return a value as text safe for a terminal: control characters are shown as escapes."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def amount_of(refund: Refund) -> str:
    """Return the amount in minor units with its currency, or `all that is left` if it is None."""
    if refund.amount is None:
        return "all that is left"
    return f"{refund.amount} {plain(refund.currency)}" if refund.currency else str(refund.amount)


def moment(value: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M:%SZ")
