"""A refund in doubt, and the other refunds of its payment."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.factories import HOUR, NOW, a_refund
from worker.model.refund import Refund, Stage

STARTED = NOW - HOUR
LONG_AGO = STARTED - timedelta(days=1)
IN_DOUBT = a_refund(Stage.IN_DOUBT, first_attempt_at=STARTED)


def sibling(stage: Stage = Stage.SETTLED, refund_id: str = "order-1001-2", **fields: Any) -> Refund:
    known = (
        {"provider_refund_id": "re_2", "provider_status": "succeeded"}
        if stage is Stage.SETTLED
        else {}
    )
    return a_refund(stage, **({"refund_id": refund_id, "updated_at": LONG_AGO} | known | fields))
