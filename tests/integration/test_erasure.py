"""A worker erases metadata by itself, and the same refund by message or call moves nothing."""

from __future__ import annotations

import pytest
import redis

from tests.integration.test_one_refund import request
from tests.integration.test_processes import message
from tests.support.installation import Installation, until
from worker.errors import IdempotencyConflict


def test_repeat_of_an_erased_refund_moves_nothing_and_other_contents_conflict(
    installation: Installation,
) -> None:
    worker = installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request())
        settled = refunds.wait("order-1-1", timeout=20)
        assert settled.metadata == {"order": "1"}
        worker.stop()
        with redis.Redis.from_url(installation.redis_url) as client:
            client.zincrby("refunds:index:succeeded", -2 * 86_400_000, "order-1-1")
        installation.settings["REFUNDS_METADATA_DAYS"] = "1"
        again = installation.start()
        until(lambda: not refunds.get("order-1-1").metadata, "the metadata are erased")
        erased = refunds.get("order-1-1")
        assert refunds.submit(request()) == erased
        with pytest.raises(IdempotencyConflict):
            refunds.submit(request(metadata={"order": "2"}))
        with redis.Redis.from_url(installation.redis_url) as client:
            for order in ("1", "2"):
                fields: dict[str, object] = {
                    "refund_id": "order-1-1",
                    "payment_intent": "pi_1",
                    "amount": 500,
                    "reason": "requested_by_customer",
                    "metadata": {"order": order},
                }
                client.lpush("refunds", message("refunds.submit", [], fields))
            until(lambda: client.llen("refunds:rejected") == 1, "the conflict is rejected")
        assert refunds.get("order-1-1") == erased
        assert again.stop() == 0
    assert len(installation.sandbox.effects()) == 1
