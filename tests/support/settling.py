"""Refunds that settle and change afterwards, as the sums and the comparison see them."""

from __future__ import annotations

from typing import Any

from tests.factories import a_request, done_as, found
from tests.support.store_world import World
from worker.rules.rechecks import changed_by_provider


def settle(world: World, refund_id: str, amount: int = 500, **fields: Any) -> None:
    """Let a refund of its own payment succeed now."""
    shown = {name: fields.pop(name) for name in ("currency",) if name in fields}
    batch = fields.pop("batch", None)
    payment = f"pi_{refund_id}"
    world.accept(a_request(refund_id, payment_intent=payment, amount=amount, **fields), batch=batch)
    world.attempt(
        done_as(
            id=f"re_{refund_id}",
            amount=amount,
            payment_intent=payment,
            refund_id=refund_id,
            **shown,
        ),
        refund_id,
    )


def turn(world: World, refund_id: str, status: str) -> None:
    """Let the provider show a settled refund with the opposite end."""
    refund = world.get(refund_id)
    shown = found(
        id=f"re_{refund_id}",
        status=status,
        payment_intent=refund.payment_intent,
        refund_id=refund_id,
        generation=str(refund.generation),
    )
    step = changed_by_provider(refund, shown, "lookup", world.now)
    assert step is not None
    assert world.save(refund, step).result == "saved"


def forget_id(world: World, refund_id: str) -> None:
    """Make a settled refund one that only the payment's totals proved."""
    record = f"refunds:refund:{refund_id}"
    world.redis.hdel(record, "provider_refund_id")
    world.redis.hset(record, "evidence", "totals")
    world.redis.delete(f"refunds:owner:re_{refund_id}")
    world.redis.hdel(f"refunds:payment:pi_{refund_id}", f"owner:re_{refund_id}")
