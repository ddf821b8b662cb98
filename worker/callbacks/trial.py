"""Sends one callback outside the records: that of `refunds callbacks test`."""

from __future__ import annotations

import asyncio
import json
import secrets
from datetime import UTC, datetime

from worker.callbacks.endpoints import Endpoint
from worker.callbacks.posting import Poster, Reply
from worker.callbacks.signing import message_id
from worker.model.times import rfc3339, to_ms


def send_test(endpoint: Endpoint) -> Reply:
    """Send one callback of the type `refunds.test`, and return what became of it."""
    now = datetime.now(UTC)
    whole = {"type": "refunds.test", "timestamp": rfc3339(now), "data": {}}
    identity = message_id("test", secrets.token_hex(16), "1")

    async def send() -> Reply:
        poster = Poster(endpoint)
        try:
            return await poster.post(identity, to_ms(now) // 1000, json.dumps(whole).encode())
        finally:
            await poster.close()

    return asyncio.run(send())
