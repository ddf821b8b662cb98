"""RabbitMQ as broker, Redis for the records: on a real server where one is installed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.lab.prove.rabbit import RabbitMQ
from tests.support.compose import until
from tests.support.installation import Installation
from tests.support.rabbit import running_rabbitmq
from worker import RefundRequest, Refunds
from worker.broker import queues, wire
from worker.model.refund import Lane
from worker.monitoring import check_records, metrics
from worker.monitoring.checks import State
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import running_sandbox
from worker.settings import Settings


@pytest.fixture
def rabbitmq() -> Iterator[RabbitMQ]:
    with running_rabbitmq() as broker:
        yield broker


@pytest.fixture
def installation(redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    with running_sandbox(SandboxConfig(idempotency="ignore", latency_ms=20)) as sandbox:
        made = Installation(redis_url, sandbox, tmp_path)
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.stop()


def settings_with(installation: Installation, broker_url: str) -> Settings:
    """The settings of a producer; the workers to come get the same broker."""
    installation.settings["REFUNDS_BROKER_URL"] = broker_url
    return Settings.load(redis_url=installation.redis_url, broker_url=broker_url)


def requests(name: str, count: int) -> list[RefundRequest]:
    return [
        RefundRequest(refund_id=f"{name}-{number}", payment_intent=f"pi_{name}{number}", amount=100)
        for number in range(count)
    ]


def test_refunds_go_through_rabbitmq_and_each_moves_once_even_when_it_is_started_anew(
    installation: Installation, rabbitmq: RabbitMQ
) -> None:
    with Refunds(settings=settings_with(installation, rabbitmq.url)) as refunds:
        refunds.submit_many(requests("file", 150))
        for request in requests("single", 5):
            refunds.submit(request)
        depths = {lane: queues.queue_depth(refunds.celery, lane) for lane in Lane}
        assert depths == {Lane.SINGLE: 5, Lane.BULK: 2}
        assert 'refunds_queue_messages{lane="refunds.bulk"} 2.0' in metrics.render(
            refunds.store, refunds.celery
        )
        assert refunds.store.redis.exists("refunds", "refunds.bulk") == 0
        worker = installation.start("worker", "worker")
        until(lambda: len(installation.sandbox.effects()) >= 30, "thirty refunds are done")
        rabbitmq.stop()
        late = refunds.submit(requests("late", 1)[0])
        assert late.stage == "queued"
        rabbitmq.start()
        ids = [*(f"file-{n}" for n in range(150)), *(f"single-{n}" for n in range(5)), "late-0"]
        records = installation.settled(refunds, ids)
        assert Counter(record.status for record in records) == {"succeeded": 156}
        assert Counter(e["refund_id"] for e in installation.sandbox.effects()) == dict.fromkeys(
            ids, 1
        )
    assert worker.stop() == 0


def test_a_broker_that_hangs_holds_nobody_who_hands_in_a_refund(
    installation: Installation,
    rabbitmq_server: RabbitMQ,
    rabbitmq_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wire, "REPLY_SECONDS", 0.5)
    settings = settings_with(installation, rabbitmq_url)
    used, fresh = Refunds(settings=settings), Refunds(settings=settings)
    used.submit(requests("before", 1)[0])
    with rabbitmq_server.frozen():
        assert used.submit(requests("used", 1)[0]).stage == "queued"
        assert fresh.submit(requests("fresh", 1)[0]).stage == "queued"
    assert [record.message for record in caplog.records if record.name == "worker.client"] == [
        "nudge_not_sent"
    ] * 2
    assert used.submit(requests("after", 1)[0]).stage == "queued"
    worker = installation.start("worker", "worker")
    ids = ["before-0", "used-0", "fresh-0", "after-0"]
    assert {record.status for record in installation.settled(used, ids)} == {"succeeded"}
    assert Counter(e["refund_id"] for e in installation.sandbox.effects()) == dict.fromkeys(ids, 1)
    assert worker.stop() == 0


def test_a_broker_that_is_full_holds_nobody_and_what_waits_is_sent_once_it_has_room(
    installation: Installation,
    rabbitmq: RabbitMQ,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Nobody waits for the broker's answer, which would come only once there is room.
    monkeypatch.setattr(wire, "REPLY_SECONDS", 600)
    settings = settings_with(installation, rabbitmq.url)
    used, fresh = Refunds(settings=settings), Refunds(settings=settings)
    used.submit(requests("before", 1)[0])
    with rabbitmq.full():
        assert used.submit(requests("used", 1)[0]).stage == "queued"
        assert fresh.submit(requests("fresh", 1)[0]).stage == "queued"
        for _ in range(2):
            (said,) = [
                check
                for check in check_records.queues(used.celery, "here")
                if check.name == "queues"
            ]
            assert said.text == f"the broker at here {wire.BLOCKED}"
        assert "refunds_broker_up 0.0" in metrics.render(used.store, used.celery)
        # What RabbitMQ holds already is read and sent.
        worker = installation.start("worker", "worker")
        installation.settled(used, ["before-0"])
        until(lambda: wire.BLOCKED in worker.said, "it says so")
        assert worker.stop() == 0
        worker = installation.start("worker", "worker")
    assert [record.message for record in caplog.records if record.name == "worker.client"] == [
        "nudge_not_sent"
    ] * 2
    ids = ["before-0", "used-0", "fresh-0"]
    assert {record.status for record in installation.settled(used, ids)} == {"succeeded"}
    assert Counter(e["refund_id"] for e in installation.sandbox.effects()) == dict.fromkeys(ids, 1)
    assert all(check.state is State.OK for check in check_records.queues(used.celery, "here"))
    assert "refunds_broker_up 1.0" in metrics.render(used.store, used.celery)
    assert worker.stop() == 0


def test_messages_that_cannot_be_understood_come_through_rabbitmq_without_harm(
    installation: Installation, rabbitmq_url: str
) -> None:
    settings = settings_with(installation, rabbitmq_url)
    worker = installation.start("worker", "worker")
    with Refunds(settings=settings) as refunds:
        # The first one comes through: so the queue is there, without which RabbitMQ drops what is
        # sent to it.
        refunds.submit(requests("good", 1)[0])
        assert refunds.wait("good-0", timeout=30).status == "succeeded"
        with refunds.celery.connection_for_write() as connection, connection.Producer() as producer:
            for body, content_type in [
                (b"{no json", "application/json"),
                (b"[1, 2]", "text/plain"),
                (b"\xff", "x/y"),
            ]:
                producer.publish(
                    body, routing_key="refunds", content_type=content_type, content_encoding="utf-8"
                )
        refunds.celery.send_task("refunds.unheard_of", args=["x"], queue="refunds")
        until(lambda: refunds.store.redis.llen("refunds:rejected") == 4, "all four are kept", 20)
        kept: Any = refunds.store.redis.lrange("refunds:rejected", 0, -1)
        assert all(json.loads(entry)["reason"] for entry in kept)
        refunds.submit(requests("good", 2)[1])
        assert refunds.wait("good-1", timeout=30).status == "succeeded"
    assert worker.process.poll() is None
