"""Makes Python's garbage collector cheap in a process that runs for long."""

from __future__ import annotations

import gc


def settle_down() -> None:
    """Exempt what is loaded by now: the collector need not walk it again for every few refunds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
