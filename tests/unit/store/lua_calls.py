"""Calls of single Lua functions that the scripts share."""

from __future__ import annotations

from typing import Any

import redis

from worker.store import scripts


def call(
    client: redis.Redis,
    body: str,
    *arguments: str,
    now: int | str = 1_000_000,
    retention: str = "60000",
    first: str = "",
) -> Any:
    """Run Lua code after what comes before every script, and that after `first`."""
    text = f"{first}\n{scripts.shared_text()}\n{body}"
    return client.eval(text, 0, "refunds:", str(now), retention, *arguments)
