"""Which refunds a run asks for: most on a payment of their own, some that share one, some with
another outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Final

from worker.model.request import RefundRequest

SHARED_BY: Final = 3
_SHARED_AMOUNT: Final = 40_000
"""Of three on one payment the third is more than what is left."""
PERSON: Final = {"email": "canary.person@customer.example", "name": "Zebulon Quarkweather"}
"""What each refund says of its customer.

For the provider and for whoever asks for the record, and for nobody else.
"""
_KINDS: Final = (
    ("own", 70),
    ("shared", 10),
    ("remaining", 6),
    ("pi_pending_succeeded", 6),
    ("pi_pending_failed", 2),
    ("pi_failed", 2),
    ("pi_declined", 2),
    ("pi_missing", 2),
)
"""What the payment of a refund is like, with how many of a hundred are like that."""
_PLAIN: Final = frozenset({"own", "shared", "remaining"})


def requests(seed: int, *, name: str, plain: bool) -> Iterator[RefundRequest]:
    """Yield refunds without end; `plain` leaves out the payments whose refunds take another
    course.
    """
    dice = Random(f"{seed}:{name}")  # noqa: S311 - repeatable, not secret
    kinds = [(kind, weight) for kind, weight in _KINDS if not plain or kind in _PLAIN]
    for number in count():
        (kind,) = dice.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
        refund_id = f"{name}-{number}-1"
        metadata = {**PERSON, "order": f"{name}-{number}"}
        if kind == "shared":
            for part in range(1, SHARED_BY + 1):
                yield RefundRequest(
                    refund_id=f"{name}-{number}-{part}",
                    payment_intent=f"pi_{name}_{number}_shared",
                    amount=_SHARED_AMOUNT,
                    metadata=metadata,
                )
            continue
        amount = None if kind == "remaining" else 100 + dice.randrange(50_000)
        payment = f"pi_{name}_{number}" if kind in _PLAIN else f"{kind}_{name}_{number}"
        yield RefundRequest(
            refund_id=refund_id, payment_intent=payment, amount=amount, metadata=metadata
        )
