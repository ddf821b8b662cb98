"""The whole stack, once for all tests in here.

The services of docker-compose.yml as processes, and refunds gone by.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support import monitoring
from tests.support.compose import ROOT, Stack, until, variables_of
from worker import RefundRequest, Refunds
from worker.broker.names import PROCESS_TASK, SUBMIT_TASK
from worker.sandbox.running import Sandbox
from worker.settings import Settings

KEY = "sk_test_canary51f7c0"
EMAIL = "canary.person@example.com"
PASSWORD = "flower-canary-password"
CANARIES = (KEY, EMAIL, PASSWORD)
QUICK = {
    "REFUNDS_SETTLE_SECONDS": "0.2",
    "REFUNDS_REQUEST_TIMEOUT_SECONDS": "1",
    "REFUNDS_LEASE_SECONDS": "6",
}


@pytest.fixture(scope="session")
def tools() -> dict[str, Path]:
    """Prometheus, Alertmanager and their checkers; skips with the reason where they cannot be
    had.
    """
    try:
        return monitoring.programs()
    except monitoring.ToolsMissingError as error:
        if os.environ.get("OPS_TOOLS") == "required":
            raise
        pytest.skip(f"no Prometheus here: {error}")


@dataclass
class Installation:
    """The running stack, what went through it, and the ways to look at it."""

    stack: Stack
    refunds: Refunds
    sandbox: Sandbox
    ids: list[str] = field(default_factory=list)

    @property
    def redis(self) -> redis.Redis:
        return self.refunds.store.redis

    def submit(self, refund_id: str, payment_intent: str, **fields: Any) -> None:
        metadata = {"order": "1", "email": EMAIL}
        self.refunds.submit(
            RefundRequest(
                refund_id=refund_id,
                payment_intent=payment_intent,
                **{"amount": 500, "metadata": metadata, **fields},
            )
        )
        self.ids.append(refund_id)

    def settled(self) -> None:
        """Wait until every refund that was handed in is settled or in review."""

        def over() -> bool:
            return all(
                r is not None and r.stage in {"settled", "review"}
                for r in self.refunds.get_many(self.ids)
            )

        until(over, f"{len(self.ids)} refunds are settled")


def raw_messages(installation: Installation) -> None:
    """What foreign producers send: a good message that shows all its fields, and ones that are no
    refund.
    """
    app = installation.refunds.celery
    good = {
        "refund_id": "raw-1",
        "payment_intent": "pi_raw1",
        "amount": 500,
        "metadata": {"email": EMAIL},
    }
    app.send_task(SUBMIT_TASK, kwargs=good, queue="refunds")
    installation.ids.append("raw-1")
    bad = [
        {
            "refund_id": "raw-2",
            "payment_intent": "pi_raw2",
            "amount": f"{KEY}",
            "metadata": {"email": EMAIL},
        },
        {"refund_id": "raw-3", "payment_intent": f"pi {KEY}", "amount": 1},
        {
            "refund_id": "raw-4",
            "payment_intent": "pi_raw4",
            "metadata": {"email": f"{EMAIL}\x00 {KEY}"},
        },
        {
            "refund_id": "raw-1",
            "payment_intent": "pi_raw1",
            "amount": 9,
            "metadata": {"email": EMAIL, "key": KEY},
        },
    ]
    for fields in bad:
        app.send_task(SUBMIT_TASK, kwargs=fields, queue="refunds")
    app.send_task(PROCESS_TASK, args=[f"{EMAIL}"], queue="refunds")
    app.send_task("refunds.unheard_of", args=[KEY, EMAIL], queue="refunds")
    installation.redis.lpush("refunds", json.dumps({"key": KEY}), f"{{no json {KEY}")
    until(
        lambda: int(str(installation.redis.llen("refunds:rejected"))) >= len(bad) + 4,
        "each rejected message is kept",
    )


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Every service of the profiles without and `demo`, healthy, and refunds of each kind gone
    through them.
    """
    stack = Stack(
        tmp_path_factory.mktemp("stack"),
        variables_of(ROOT / "ops" / "docker" / "demo.env"),
        extra=dict(QUICK),
    )
    (stack.folder / "secrets" / "refunds_api_key").write_text(f"{KEY}\n")
    (stack.folder / "secrets" / "flower_basic_auth").write_text(f"operator:{PASSWORD}\n")
    stack.extra |= {"FLOWER_PORT": str(stack.ports["flower"])}
    # The server of a distribution may have no WAITAOF; `always` is what the file asks for.
    try:
        stack.start("redis")
        with redis.Redis.from_url(stack.redis_url) as client:
            until(lambda: answers(client), "the server answers")
        for name in ("sandbox", "worker", "metrics", "flower"):
            stack.start(name)
        stack.await_healthy("sandbox", "worker", "metrics", "flower")
        sandbox = Sandbox(url=stack.url("sandbox"))
        with Refunds(settings=Settings.load(redis_url=stack.redis_url)) as refunds:
            made = Installation(stack, refunds, sandbox)
            go_through(made)
            yield made
    finally:
        codes = stack.stop()
    assert codes == dict.fromkeys(codes, 0)


def go_through(installation: Installation) -> None:
    """Refunds of each kind: plain, failed, pending, doubtful, of a file, by raw messages, and one
    for a person.
    """
    installation.sandbox.set_modes(settle_ms=100, latency_ms=5, idempotency="ignore")
    installation.sandbox.set_faults(
        "cut_after:n=2,http_503_before:n=4,http_429:n=6:retry_after=seconds"
    )
    for number in range(8):
        installation.submit(f"order-{number}-1", f"pi_{number}")
    installation.settled()
    installation.sandbox.set_faults("")
    for number, payment_intent in enumerate(
        ["pi_declined_1", "pi_pending_succeeded_1", "pi_missing_1"]
    ):
        installation.submit(f"order-9{number}-1", payment_intent)
    refused_key(installation)
    payments = [f"pi_row{n}" if n else "pi_declined_2" for n in range(5)]
    batch = [
        RefundRequest(refund_id=f"row-{n}", payment_intent=pi, amount=100)
        for n, pi in enumerate(payments)
    ]
    installation.refunds.submit_many(batch)
    installation.ids += [request.refund_id for request in batch]
    raw_messages(installation)
    installation.settled()
    made = sum(
        record.attempts
        for record in installation.refunds.get_many(installation.ids)
        if record is not None
    )
    until(
        lambda: attempts_told(installation) == made,
        f"the worker's next heartbeat tells of {made} attempts",
        15,
    )


def refused_key(installation: Installation) -> None:
    """A refund that waits while the provider refuses the key, and goes on once it accepts it
    again.
    """
    refund_id = "order-401-1"
    installation.sandbox.set_faults("http_401:pi=pi_401")
    installation.submit(refund_id, "pi_401")

    def waits() -> bool:
        record = installation.refunds.get(refund_id)
        return record is not None and record.stage == "waiting"

    until(waits, "the key is refused")
    installation.sandbox.set_faults("")
    # The worker lowers it by itself, but asks the provider only every quarter of a minute.
    installation.redis.hdel("refunds:meta", "credentials_refused_at")


def attempts_told(installation: Installation) -> int:
    counters: Any = installation.redis.hgetall("refunds:counters")
    return sum(int(count) for name, count in counters.items() if name.startswith("attempt:"))


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
