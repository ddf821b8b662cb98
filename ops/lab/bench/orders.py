"""The refunds that the bench hands in."""

from __future__ import annotations

from collections.abc import Iterator

from worker.model.request import RefundRequest


def requests(count: int, *, start: int = 0, name: str = "tour") -> Iterator[RefundRequest]:
    """Yield requests as an order system would make them, each on a payment of its own."""
    for number in range(start, start + count):
        yield RefundRequest(
            refund_id=f"{name}-{number}-1",
            payment_intent=f"pi_17878297308{name}{number:07d}",
            amount=500 + number % 90_000,
            reason="requested_by_customer",
            metadata={"order": f"{name}-{number}", "channel": "web"},
        )
