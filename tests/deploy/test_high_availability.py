"""The profile `ha` of docker-compose.yml as processes: a primary, its replica, three Sentinels.

With a worker and producers that find the primary through the Sentinels, each as its own user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.deploy.conftest import KEY, QUICK
from tests.support.compose import ROOT, Stack, until, variables_of
from worker import RefundRequest, Refunds
from worker.errors import StoreUnavailable
from worker.sandbox.running import Sandbox
from worker.settings import Settings

SERVERS = ("redis", "redis-2")
SENTINELS = ("sentinel-1", "sentinel-2", "sentinel-3")


class Replicated:
    """The services of the profile, and the sides from which they are looked at."""

    def __init__(self, folder: Path) -> None:
        demo = variables_of(ROOT / "ops" / "docker" / "demo.env")
        variables = demo | {"REFUNDS_REPLICAS": "1"}
        self.stack = Stack(folder, variables, extra=dict(QUICK), sentinels=SENTINELS)
        (folder / "secrets" / "refunds_api_key").write_text(f"{KEY}\n")

    def asked(self, name: str, *words: str) -> Any:
        """Ask a server or Sentinel as the operator."""
        file = "sentinel_operator_url" if name in SENTINELS else "operator_redis_url"
        password = (self.stack.folder / "secrets" / file).read_text().split(":")[2].split("@")[0]
        with redis.Redis(
            port=self.stack.ports[name],
            username="operator",
            password=password,
            decode_responses=True,
        ) as client:
            return client.execute_command(*words)

    def follows(self, name: str, primary: str) -> bool:
        """Tell whether a server is a replica of another one, and has all that it has."""
        with suppress(redis.RedisError):
            facts = self.asked(name, "INFO", "replication")
            return (facts["role"], facts.get("master_port"), facts.get("master_link_status")) == (
                "slave",
                self.stack.ports[primary],
                "up",
            )
        return False

    def name(self, primary: str) -> bool:
        """Tell whether all Sentinels name this server, and know each other and a replica."""
        with suppress(redis.RedisError):
            return all(
                self.asked(each, "SENTINEL", "get-master-addr-by-name", "refunds")
                == ["127.0.0.1", str(self.stack.ports[primary])]
                and self.asked(each, "SENTINEL", "ckquorum", "refunds")
                and len(self.asked(each, "SENTINEL", "sentinels", "refunds")) == 2
                and len(self.asked(each, "SENTINEL", "replicas", "refunds")) == 1
                for each in SENTINELS
            )
        return False

    def hasten(self) -> None:
        """Let the Sentinels take a silent primary for down after three seconds rather than five.

        They ask it once a second: after one, the primary just promoted was taken for down before
        its first answer, and the old one was promoted again.
        """
        for each in SENTINELS:
            self.asked(each, "SENTINEL", "SET", "refunds", "down-after-milliseconds", "3000")

    def start(self, *names: str) -> None:
        for name in names:
            self.stack.start(name)

    def end(self, *names: str) -> None:
        for name in names:
            assert self.stack.running.pop(name).stop() == 0


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Replicated]:
    made = Replicated(tmp_path)
    try:
        # In this order, since a Sentinel asks a primary for its replicas once in ten seconds.
        made.start(*SERVERS)
        until(lambda: made.follows("redis-2", "redis"), "the replica has what the primary has")
        made.start(*SENTINELS)
        until(lambda: made.name("redis"), "the Sentinels know each other and the servers")
        made.hasten()
        made.start("sandbox", "worker")
        made.stack.await_healthy("sandbox", "worker")
        yield made
    finally:
        codes = made.stack.stop()
    assert codes == dict.fromkeys(codes, 0)


def accepted(refunds: Refunds, refund_id: str) -> None:
    """Hand a refund in until it is accepted, and wait until it is settled."""
    request = RefundRequest(refund_id=refund_id, payment_intent=f"pi_{refund_id}", amount=500)

    def is_accepted() -> bool:
        with suppress(StoreUnavailable):
            refunds.submit(request)
            return True
        return False

    def is_settled() -> bool:
        with suppress(StoreUnavailable):
            record = refunds.get(refund_id)
            return record is not None and record.stage == "settled"
        return False

    until(is_accepted, f"{refund_id} is accepted")
    until(is_settled, f"{refund_id} is settled")


def test_refunds_go_on_with_the_replica_and_the_old_primary_comes_back_as_one(
    replicated: Replicated,
) -> None:
    stack = replicated.stack
    settings = Settings.load(redis_url=stack.redis_url_of("producer"), replicas=1)
    with Refunds(settings=settings) as refunds:
        accepted(refunds, "before-1")
        primary = stack.running.pop("redis")
        primary.process.kill()
        primary.process.wait()
        until(lambda: replicated.name("redis-2"), "the replica is promoted")
        replicated.start("redis")
        until(lambda: replicated.follows("redis", "redis-2"), "the old primary follows it")
        accepted(refunds, "after-1")
        # All of it ends and starts again: the order in which it does must not matter.
        replicated.end("worker", *SENTINELS, "redis-2", "redis")
        replicated.start("redis", "redis-2", *SENTINELS)
        until(lambda: replicated.follows("redis", "redis-2"), "each has the role that it had")
        until(lambda: replicated.name("redis-2"), "the Sentinels know what they knew")
        replicated.start("worker")
        accepted(refunds, "again-1")
    moved = sorted(effect["refund_id"] for effect in Sandbox(url=stack.url("sandbox")).effects())
    assert moved == ["after-1", "again-1", "before-1"]
    for name in (*SERVERS, *SENTINELS):
        log = replicated.asked(name, "ACL", "LOG")
        assert [(entry["username"], entry["object"]) for entry in log] == []
