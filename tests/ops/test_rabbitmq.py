"""RabbitMQ as broker, Redis for the records: a real server where one is installed, ended by the ids it was begun with.

`RABBITMQ_SERVER` names the server's own start script where it is not in its usual place.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ops.stack.compose import free_port, until
from tests.integration.stack import Installation
from worker import RefundRequest, Refunds, broker, metrics
from worker.model import Lane
from worker.sandbox.config import SandboxConfig
from worker.sandbox.running import running_sandbox
from worker.settings import Settings

# Debian's command of the same name on PATH is a wrapper for its service's own user.
SCRIPTS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
    "/opt/rabbitmq/sbin/rabbitmq-server",
)


def script() -> Path:
    named = os.environ.get("RABBITMQ_SERVER")
    for place in [named] if named else SCRIPTS:
        if place and Path(place).is_file() and shutil.which("epmd"):
            return Path(place)
    pytest.skip(
        "no rabbitmq-server is installed here: 'apt-get install rabbitmq-server', or name it in RABBITMQ_SERVER"
    )


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@dataclass
class RabbitMQ:
    """One broker on free loopback ports; `stop` and `start` keep its data."""

    server: Path
    folder: Path
    port: int
    environment: dict[str, str]
    running: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.running = subprocess.Popen(
                [self.server], env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        running = self.running
        until(lambda: running.poll() is not None or listens(self.port), "RabbitMQ listens")
        assert running.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        if self.running is not None:
            self.running.terminate()
            self.running.wait(60)


@pytest.fixture
def rabbitmq(tmp_path: Path) -> Iterator[RabbitMQ]:
    """A broker with nothing in it, and the port mapper that Erlang would otherwise leave running behind it."""
    server, folder = script(), tmp_path / "rabbitmq"
    folder.mkdir()
    port, mapper = free_port(), free_port()
    ours = {
        "HOME": folder,
        "ERL_EPMD_PORT": mapper,
        "RABBITMQ_NODENAME": "refunds-test@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": port,
        "RABBITMQ_DIST_PORT": free_port(),
        "RABBITMQ_LOGS": "-",
        **{
            f"RABBITMQ_{name}": folder / name.lower()
            for name in ("MNESIA_BASE", "LOG_BASE", "PID_FILE", "ENABLED_PLUGINS_FILE", "CONFIG_FILE", "CONF_ENV_FILE")
        },
        "RABBITMQ_ADVANCED_CONFIG_FILE": folder / "advanced.config",
        "RABBITMQ_GENERATED_CONFIG_DIR": folder / "generated",
        "RABBITMQ_SCHEMA_DIR": folder / "schema",
    }
    environment = dict(os.environ) | {name: str(value) for name, value in ours.items()}
    names = subprocess.Popen(["epmd", "-port", str(mapper), "-address", "127.0.0.1"], env=environment)  # noqa: S607 - Erlang's own
    made = RabbitMQ(server, folder, port, environment)
    try:
        until(lambda: listens(mapper), "Erlang's port mapper listens")
        made.start()
        yield made
    finally:
        made.stop()
        names.terminate()
        names.wait(10)


@pytest.fixture
def installation(rabbitmq: RabbitMQ, redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    with running_sandbox(SandboxConfig(idempotency="ignore", latency_ms=20)) as sandbox:
        made = Installation(redis_url, sandbox, tmp_path, settings={"REFUNDS_BROKER_URL": rabbitmq.url})
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.stop()


def requests(name: str, count: int) -> list[RefundRequest]:
    return [
        RefundRequest(refund_id=f"{name}-{number}", payment_intent=f"pi_{name}{number}", amount=100)
        for number in range(count)
    ]


def test_refunds_go_through_rabbitmq_and_each_moves_once_even_when_it_is_started_anew(
    installation: Installation, rabbitmq: RabbitMQ
) -> None:
    settings = Settings.load(redis_url=installation.redis_url, broker_url=rabbitmq.url)
    with Refunds(settings=settings) as refunds:
        refunds.submit_many(requests("file", 150))
        for request in requests("single", 5):
            refunds.submit(request)
        depths = {lane: broker.queue_depth(refunds.celery, lane) for lane in Lane}
        assert depths == {Lane.SINGLE: 5, Lane.BULK: 2}
        assert 'refunds_queue_messages{lane="refunds.bulk"} 2.0' in metrics.render(refunds.store, refunds.celery)
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
        assert Counter(e["refund_id"] for e in installation.sandbox.effects()) == dict.fromkeys(ids, 1)
    assert worker.stop() == 0


def test_messages_that_cannot_be_understood_come_through_rabbitmq_without_harm(
    installation: Installation, rabbitmq: RabbitMQ
) -> None:
    worker = installation.start("worker", "worker")
    settings = Settings.load(redis_url=installation.redis_url, broker_url=rabbitmq.url)
    with Refunds(settings=settings) as refunds:
        # The first one comes through: so the queue is there, without which RabbitMQ drops what is sent to it.
        refunds.submit(requests("good", 1)[0])
        assert refunds.wait("good-0", timeout=30).status == "succeeded"
        with refunds.celery.connection_for_write() as connection, connection.Producer() as producer:
            for body, content_type in [(b"{no json", "application/json"), (b"[1, 2]", "text/plain"), (b"\xff", "x/y")]:
                producer.publish(body, routing_key="refunds", content_type=content_type, content_encoding="utf-8")
        refunds.celery.send_task("refunds.unheard_of", args=["x"], queue="refunds")
        until(lambda: refunds.store.redis.llen("refunds:rejected") == 4, "all four are kept", 20)
        kept: Any = refunds.store.redis.lrange("refunds:rejected", 0, -1)
        assert all(json.loads(entry)["reason"] for entry in kept)
        refunds.submit(requests("good", 2)[1])
        assert refunds.wait("good-1", timeout=30).status == "succeeded"
    assert worker.process.poll() is None
