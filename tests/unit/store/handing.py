"""What a command hands its script, and a record as a script returns it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.factories import NOW, PAYMENT
from worker.store.records import decode
from worker.store.scripts import Command

MS = timedelta(milliseconds=1)
AT = int(NOW.timestamp() * 1000)
RECORD = [
    *(
        "refund_id",
        "a",
        "status",
        "pending",
        "stage",
        "queued",
        "payment_intent",
        PAYMENT,
        "amount",
        "500",
    ),
    *("created_at", str(AT), "updated_at", str(AT), "version", "1", "fingerprint", "f"),
]
REFUND = decode(dict(zip(RECORD[::2], RECORD[1::2], strict=True)))


def handed(call: Command[Any]) -> list[str]:
    """The arguments as they are written: 45000 is not 45000.0."""
    return [repr(one) for one in call.arguments]


def written(*arguments: Any) -> list[str]:
    return [repr(one) for one in arguments]
