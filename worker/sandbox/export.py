"""The provider's refunds as a file, as its dashboard exports them."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Final

from worker.sandbox import shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.sandbox.bank import SandboxRefund
    from worker.sandbox.config import SandboxConfig

COLUMNS: Final = (
    "id",
    "payment_intent",
    "amount",
    "currency",
    "status",
    "created",
    "failure_reason",
    "metadata.refund_id",
)


def exported(config: SandboxConfig, refunds: Iterable[SandboxRefund]) -> str:
    """Return refunds as CSV, one a row, in the order in which they were made."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for item in refunds:
        shown = shapes.refund(config, item)
        own = {**shown, "metadata.refund_id": item.metadata.get("refund_id")}
        writer.writerow([own.get(name) for name in COLUMNS])
    return out.getvalue()
