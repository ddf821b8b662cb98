"""A refund that the provider fails after it had succeeded is seen by the watch, and shown."""

from __future__ import annotations

from typing import Any

import redis

from tests.integration.test_one_refund import request
from tests.support.installation import Installation, until
from worker.model.times import from_ms, rfc3339

HOUR_MS = 3_600_000


def command(installation: Installation, *arguments: str) -> list[dict[str, Any]]:
    """Run a command; return the objects that it printed."""
    ran = installation.cli(*arguments, "--json")
    assert ran.code == 0, ran.err
    return ran.objects


def test_reversal_is_seen_after_a_backfill_and_every_command_shows_exactly_it(
    installation: Installation,
) -> None:
    installation.settings["REFUNDS_WATCH"] = "1h"
    installation.start()
    with installation.refunds() as refunds:
        for refund_id, payment in (("order-1-1", "pi_1"), ("order-2-1", "pi_2")):
            refunds.submit(request(refund_id, payment))
        first, _ = installation.settled(refunds, ["order-1-1", "order-2-1"])
        assert command(installation, "list", "--reversed") == []
        assert first.provider_refund_id is not None
        installation.sandbox.move_refund(
            first.provider_refund_id, "failed", "expired_or_canceled_card"
        )
        with redis.Redis.from_url(installation.redis_url, decode_responses=True) as client:
            # Both settled two hours ago, before the watch began.
            until(lambda: bool(client.hexists("refunds:watch", "started_at")), "the watch began")
            long_ago = int(refunds.store.time().timestamp() * 1000) - 2 * HOUR_MS
            client.zadd(
                "refunds:index:succeeded", {"order-1-1": long_ago, "order-2-1": long_ago}, xx=True
            )
        (backfill,) = command(
            installation, "watch", "backfill", "--since", rfc3339(from_ms(long_ago))
        )
        assert backfill["refunds"] == 2
        until(lambda: refunds.get("order-1-1").status == "failed", "the reversal is seen")
        reversed_, other = refunds.get_many(["order-1-1", "order-2-1"])
    assert reversed_ is not None
    assert other is not None
    assert reversed_.reversed_at is not None
    assert reversed_.failure_reason == "expired_or_canceled_card"
    assert (other.status, other.reversed_at) == ("succeeded", None)
    assert command(installation, "list", "--reversed") == [reversed_.as_dict()]
    (status,) = command(installation, "watch", "status")
    assert (status["reversed"], status["blind"]) == (1, 0)
    assert [rung["rung"] for rung in status["rungs"]] == ["1h", "1h", "1h"]
    # Nothing was sent again.
    assert len(installation.sandbox.effects()) == 2
