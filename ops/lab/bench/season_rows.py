"""The rows of a season's files."""

from __future__ import annotations

from typing import Final

BAD_EVERY: Final = 100
_ROWS_A_PAYMENT: Final = 7
HEADER: Final = ("order", "payment_intent", "refund_id", "amount", "currency", "metadata.store")


def rows(name: str, count: int) -> list[tuple[str, ...]]:
    """Return a file's rows: one in a hundred bad, a few of each way in which a refund can end,
    several on a payment.
    """
    made: list[tuple[str, ...]] = []
    for number in range(count):
        amount, currency, refund_id = str(100 + number % 900), "usd", f"{name}-{number}"
        payment = f"pi_{name}{number // _ROWS_A_PAYMENT}"
        match number % BAD_EVERY:
            case 13:
                amount = ("1e3", "0", "12.50", "-5")[number // BAD_EVERY % 4]
            case 37 | 71:
                payment = f"pi_declined_{name}{number}"
            case 53:
                payment = f"pi_pending_succeeded_{name}{number}"
            case 59:
                payment = f"pi_pending_failed_{name}{number}"
            case 83:
                # A payment that cannot be read confirms no currency: with one, this refund would
                # wait for an hour.
                payment, currency = f"pi_missing_{name}{number}", ""
            case 97:
                payment, amount = f"pi_{name}over{number}", "250000"
        made.append((f"{number}", payment, refund_id, amount, currency, f"store {number % 12}"))
    return made
