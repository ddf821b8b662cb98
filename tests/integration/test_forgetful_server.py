"""A server whose settings are changed under a real worker, so that it may forget records.

Nothing new is begun.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.support.installation import Installation, Worker, until
from worker.broker.names import SUBMIT_TASK
from worker.model.refund import Lane
from worker.sandbox.config import SandboxConfig
from worker.sandbox.redis_server import ThrowawayServer, running_server

IDS = [f"order-{number}-1" for number in range(4)]


@pytest.fixture
def redis_server() -> Iterator[ThrowawayServer]:
    """A server of this test alone, since its settings are changed."""
    with running_server(maxmemory="64mb") as server:
        yield server


@pytest.fixture
def redis_url(redis_server: ThrowawayServer) -> str:
    return redis_server.url


def lines(worker: Worker, event: str) -> list[dict[str, Any]]:
    logged = [json.loads(line) for line in worker.said.splitlines() if line.startswith("{")]
    return [line for line in logged if line.get("event") == event]


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(idempotency="ignore", latency_ms=4000)])
@pytest.mark.parametrize(
    ("setting", "wrong", "right", "named"),
    [
        ("appendonly", "no", "yes", "append-only file"),
        ("maxmemory-policy", "volatile-lru", "noeviction", "maxmemory-policy"),
    ],
)
def test_nothing_is_accepted_or_begun_until_the_setting_is_right_again(
    installation: Installation, setting: str, wrong: str, right: str, named: str
) -> None:
    installation.settings |= {
        "REFUNDS_REQUEST_TIMEOUT_SECONDS": "20",
        "REFUNDS_LEASE_SECONDS": "45",
    }
    worker = installation.start()
    sandbox = installation.sandbox
    with installation.refunds() as refunds, redis.Redis.from_url(installation.redis_url) as admin:

        def send(refund_id: str) -> None:
            fields = {
                "refund_id": refund_id,
                "payment_intent": f"pi_{refund_id}".replace("-", ""),
                "amount": 500,
            }
            refunds.celery.send_task(SUBMIT_TASK, kwargs=fields, queue=Lane.SINGLE.value)

        def stages() -> list[str | None]:
            found = refunds.store.get_many(IDS)
            return [None if refund is None else refund.stage.value for refund in found]

        send(IDS[0])
        until(lambda: stages()[0] == "sending", "the first is in flight")
        admin.config_set(setting, wrong)
        until(lambda: bool(lines(worker, "durability_lost")), "the worker has found it")
        for refund_id in IDS[1:]:
            send(refund_id)
        until(lambda: bool(sandbox.effects(IDS[0])), "the first was carried out")
        until(
            lambda: admin.hget(f"refunds:refund:{IDS[0]}", "stage") == b"settled",
            "the first is recorded",
        )
        assert [admin.exists(f"refunds:refund:{refund_id}") for refund_id in IDS[1:]] == [0, 0, 0]
        (alarm,) = lines(worker, "durability_lost")
        assert (alarm["alarm"], named in alarm["error"]) == (True, True)
        assert not {"background_failed", "refund_handling_failed", "submit_put_back"} & {
            json.loads(line)["event"] for line in worker.said.splitlines() if line.startswith("{")
        }
        assert "Traceback" not in worker.said
        admin.config_set(setting, right)
        until(lambda: bool(lines(worker, "durability_restored")), "the worker goes on")
        settled = installation.settled(refunds, IDS)
        assert [refund.status for refund in settled] == ["succeeded"] * len(IDS)
    assert sorted(effect["refund_id"] for effect in sandbox.effects()) == IDS
