"""Refunds that rest without an end.

What they wait for is missing at the provider, whose 404 is waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.model.refund import Stage
from worker.sandbox.bank import MAGIC
from worker.sandbox.wire import ELSEWHERE

_PAYMENTS: Final = tuple(beginning for beginning, payment in MAGIC.items() if payment is None)


def waits_for_the_missing(record: Mapping[str, str | None]) -> bool:
    """Return whether a refund waits for a payment or a refund that the simulated provider never
    had.

    The worker reads again for an hour before a person is asked, which is longer than any run.
    """
    if record.get("stage") == Stage.PROCESSING:
        return (
            record.get("provider_refund_id") == ELSEWHERE["id"]
            and record.get("missing_since") is not None
        )
    return record.get("stage") == Stage.IN_DOUBT and str(record.get("payment_intent")).startswith(
        _PAYMENTS
    )
