"""A key of another shape than the provider's own, repeated by everybody: it comes out nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from tests.support.installation import Installation, until
from tests.unit.model.test_redaction import basic, planted
from worker import RefundRequest
from worker.sandbox.config import SandboxConfig

KEY = "wp-live-9f8e7d6c5b4a39281706"


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(api_key=KEY, indiscreet=True)])
def test_key_that_the_provider_and_senders_repeat_is_in_no_record_message_or_log(
    installation: Installation,
) -> None:
    installation.settings["REFUNDS_API_KEY"] = KEY
    installation.sandbox.set_faults("http_503_before:n=1:pi=pi_1")
    worker = installation.start()
    payments = ["pi_1", "pi_declined_1", "pi_missing_1", "pi_refunded_1"]
    ids = [f"order-{payment}" for payment in payments]
    with (
        redis.Redis.from_url(installation.redis_url, decode_responses=True) as client,
        installation.refunds() as refunds,
    ):
        for refund_id, payment in zip(ids, payments, strict=True):
            refunds.submit(RefundRequest(refund_id=refund_id, payment_intent=payment, amount=500))
        told = {"refund_id": f"{KEY}!", "payment_intent": KEY, "amount": KEY, KEY: basic(KEY)}
        refunds.celery.send_task("refunds.submit", kwargs=told, queue="refunds")
        refunds.celery.send_task(
            "refunds.process", args=[[KEY]], argsrepr=KEY, kwargsrepr=KEY, queue="refunds"
        )
        refunds.celery.send_task(f"refunds.{KEY}", queue="refunds")
        client.lpush("refunds", json.dumps({"key": KEY, "body": basic(KEY)}), f"{{{KEY}")
        records = installation.settled(refunds, ids)
        until(
            lambda: int(str(client.llen("refunds:rejected"))) >= 4, "each rejected message is kept"
        )
        kept: list[Any] = [
            client.lrange("refunds:rejected", 0, -1),
            client.xrange("refunds:events"),
        ]
        kept += [client.hgetall("refunds:counters"), client.hgetall("refunds:meta")]
        kept += [
            [client.hgetall(f"refunds:refund:{refund_id}"), refunds.history(refund_id)]
            for refund_id in ids
        ]
    assert "***" in json.dumps([record.error_message for record in records])
    assert worker.stop() == 0
    assert planted(json.dumps(kept) + worker.said, KEY) == []
