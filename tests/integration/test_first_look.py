"""A look before the first send, for records that were moved or lost.

What the provider shows is not sent again.
"""

from __future__ import annotations

from typing import Any

import redis

from tests.support.installation import Installation
from worker.model.refund import Status
from worker.model.request import RefundRequest


def request(refund_id: str, payment_intent: str) -> RefundRequest:
    return RefundRequest(refund_id=refund_id, payment_intent=payment_intent, amount=500)


def test_refund_that_is_handed_in_again_after_the_records_were_lost_moves_no_money_again(
    installation: Installation,
) -> None:
    first = installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request("order-1-1", "pi_1"))
        before = refunds.wait("order-1-1", timeout=20)
    first.stop()
    with redis.Redis.from_url(installation.redis_url) as client:
        client.flushdb()
    installation.settings["REFUNDS_FIRST_LOOK"] = "true"
    installation.start()
    with installation.refunds() as refunds:
        refunds.submit(request("order-1-1", "pi_1"))
        refunds.submit(request("order-2-1", "pi_2"))
        again, other = (
            refunds.wait(refund_id, timeout=20) for refund_id in ("order-1-1", "order-2-1")
        )
    assert (again.status, again.provider_refund_id, again.attempts) == (
        Status.SUCCEEDED,
        before.provider_refund_id,
        0,
    )
    assert (other.status, other.attempts) == (Status.SUCCEEDED, 1)
    moved: list[dict[str, Any]] = installation.sandbox.effects()
    assert sorted(effect["refund"] for effect in moved) == sorted(
        str(refund.provider_refund_id) for refund in (before, other)
    )


def test_worker_that_shall_look_first_without_a_list_does_not_start(
    installation: Installation,
) -> None:
    installation.settings |= {"REFUNDS_FIRST_LOOK": "true", "REFUNDS_READBACK": "totals"}
    refused = installation.start()
    assert refused.process.wait(20) == 2
    assert "REFUNDS_FIRST_LOOK: may be true only with REFUNDS_READBACK=list" in refused.said
