"""`refunds doctor`: what it finds, how it is mended, and its exit codes."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Cli, Records
from worker.sandbox.config import SandboxConfig
from worker.sandbox.redis_server import running_server
from worker.sandbox.running import Sandbox, running_sandbox
from worker.store import meta

KEY = "sk_test_planted"


@pytest.fixture(scope="module")
def sandbox() -> Any:
    with running_sandbox(SandboxConfig(api_key=KEY)) as running:
        yield running


@pytest.fixture
def examined(cli: Cli, sandbox: Sandbox) -> Cli:
    return Cli(
        environment=cli.environment | {"REFUNDS_API_KEY": KEY, "REFUNDS_API_URL": sandbox.url}
    )


def check(cli: Cli, name: str, code: int, **settings: str) -> dict[str, Any]:
    """The one check of that name, of a run that must end with that code."""
    ran = cli("doctor", "--json", **settings)
    assert (ran.code, ran.object["exit_code"], ran.object["ok"]) == (code, code, code == 0)
    assert "planted" not in ran.out
    for each in ran.object["checks"]:
        assert (each["fix"] is None) == (each["state"] == "ok")
    (found,) = (each for each in ran.object["checks"] if each["name"] == name)
    return dict(found)


def test_a_sound_installation_has_nothing_to_mend(
    examined: Cli, sync_redis: redis.Redis, sandbox: Sandbox
) -> None:
    sync_redis.zadd("refunds:workers", {"host:1": time.time() * 1000})
    ran = examined("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert {line.split()[0] for line in ran.out.splitlines()} == {"ok"}
    for part in (
        "answers and accepts the key",
        "noeviction",
        "appendfsync always",
        "1 running: host:1",
        "queue refunds",
    ):
        assert part in ran.out
    assert sandbox.ledger() == []


def test_wrong_settings_are_one_check_with_2(examined: Cli) -> None:
    found = check(examined, "settings", 2, REFUNDS_TOTALS="maybe")
    assert (found["state"], found["text"].startswith("REFUNDS_TOTALS: ")) == ("fail", True)


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"REFUNDS_API_KEY": ""}, 2, "REFUNDS_API_KEY is not set"),
        ({"REFUNDS_API_KEY": "sk_live_planted"}, 6, "moves real money"),
        (
            {"REFUNDS_API_URL": "https://api.wooshpay.com", "REFUNDS_LIVE": "true"},
            2,
            "a test key for the live address",
        ),
    ],
)
def test_key_and_address_must_belong_together(
    examined: Cli, settings: dict[str, str], code: int, words: str
) -> None:
    found = check(examined, "key and address", code, **settings)
    assert (found["state"], words in found["text"]) == ("fail", True)


def test_a_live_key_elsewhere_is_a_warning(examined: Cli, sandbox: Sandbox) -> None:
    ran = examined("doctor", "--json", REFUNDS_API_KEY="sk_live_planted", REFUNDS_LIVE="true")
    states = {each["name"]: each["state"] for each in ran.object["checks"]}
    assert (states["key and address"], states["provider"]) == ("warn", "fail")
    assert sandbox.ledger() == []


def test_a_refused_key_is_a_matter_of_settings(examined: Cli) -> None:
    found = check(examined, "provider", 2, REFUNDS_API_KEY="sk_test_another_planted")
    assert (found["state"], "refuses the key" in found["text"]) == ("fail", True)


def test_a_provider_that_is_away_is_5(examined: Cli) -> None:
    assert check(examined, "provider", 5, REFUNDS_API_URL="http://127.0.0.1:9")["state"] == "fail"


def test_a_redis_that_is_away_is_5_and_the_provider_is_looked_at_all_the_same(
    examined: Cli,
) -> None:
    ran = examined("doctor", "--json", REFUNDS_REDIS_URL="redis://127.0.0.1:1/0")
    states = {each["name"]: each["state"] for each in ran.object["checks"]}
    assert (ran.code, states["redis"], states["queues"], states["provider"]) == (
        5,
        "fail",
        "fail",
        "ok",
    )


def test_a_server_that_may_forget_is_a_guard_unless_memory_was_asked_for(examined: Cli) -> None:
    with running_server(appendonly="no") as server:
        found = check(examined, "disk", 6, REFUNDS_REDIS_URL=server.url)
        assert (found["state"], "appendonly yes" in found["fix"]) == ("fail", True)
        memory = check(
            examined, "disk", 0, REFUNDS_REDIS_URL=server.url, REFUNDS_DURABILITY="memory"
        )
        assert memory["state"] == "warn"


def test_a_server_that_may_throw_refunds_away_is_a_guard(examined: Cli) -> None:
    with running_server(maxmemory="64mb", maxmemory_policy="allkeys-lru") as server:
        found = check(examined, "eviction", 6, REFUNDS_REDIS_URL=server.url)
        assert "maxmemory-policy noeviction" in found["fix"]
    with running_server(maxmemory_policy="allkeys-lru") as server:
        assert check(examined, "eviction", 0, REFUNDS_REDIS_URL=server.url)["state"] == "warn"


def test_a_nearly_full_server_is_a_warning(examined: Cli, sync_redis: redis.Redis) -> None:
    examined("doctor")  # its first run loads scripts, which take memory
    used: Any = sync_redis.info("memory")
    sync_redis.config_set("maxmemory", int(used["used_memory"] * 1.18))
    try:
        assert check(examined, "memory", 0)["state"] == "warn"
    finally:
        sync_redis.config_set("maxmemory", 0)


def test_records_of_another_provider_are_a_guard(examined: Cli, records: Records) -> None:
    records.store.run(meta.pin("elsewhere.example", "live"))
    found = check(examined, "records", 6)
    assert "belong to elsewhere.example in live mode" in found["text"]


def test_a_pause_is_a_warning_with_its_author(examined: Cli) -> None:
    examined("pause")
    found = check(examined, "pause", 0)
    assert (found["state"], found["fix"], " by " in found["text"]) == (
        "warn",
        "refunds resume",
        True,
    )


def test_an_open_credentials_breaker_is_a_failure(examined: Cli, sync_redis: redis.Redis) -> None:
    sync_redis.hset("refunds:meta", "credentials_refused_at", "1700000000000")
    found = check(examined, "breaker", 2)
    assert "since 2023-11-14T22:13:20.000Z" in found["text"]


def test_workers_that_fell_silent_are_not_counted(
    examined: Cli, sync_redis: redis.Redis, records: Records
) -> None:
    sync_redis.zadd("refunds:workers", {"host:1": (time.time() - 31) * 1000})
    records.queued("order-1")
    found = check(examined, "workers", 0)
    assert (found["state"], found["fix"]) == ("warn", "refunds worker")
    assert "none seen in the last 30 s, and refunds wait: 1" in found["text"]


def test_what_waits_for_someone_is_counted(
    examined: Cli, sync_redis: redis.Redis, records: Records
) -> None:
    records.in_review("stuck-1")
    examined("submit", "order-1", "--payment-intent", "pi_1")
    sync_redis.lpush("refunds:rejected", "{}")
    sync_redis.zadd("refunds:due", {"order-1": (time.time() - 600) * 1000})
    ran = examined("doctor", "--json")
    states = {each["name"]: (each["state"], each["text"]) for each in ran.object["checks"]}
    assert ran.code == 0
    assert states["review"] == ("warn", "refunds that need a person: 1")
    assert states["messages"] == ("warn", "invalid messages that were rejected: 1")
    assert states["queue refunds"] == ("ok", "messages waiting: 1")
    assert states["refunds"] == ("ok", "1 in progress, none in doubt")
    assert states["sweep"][0] == "warn"


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"])
def test_a_broker_of_its_own_that_is_away_is_5(examined: Cli, broker: str) -> None:
    found = check(examined, "queues", 5, REFUNDS_BROKER_URL=broker)
    assert (found["state"], "127.0.0.1:1 cannot be reached" in found["text"]) == ("fail", True)


@pytest.mark.parametrize("option", ["foo=1", "ssl_ca_certs=/nowhere"])
def test_an_address_that_cannot_be_used_is_a_check_that_fails(cli: Cli, option: str) -> None:
    ran = cli("doctor", "--json", REFUNDS_REDIS_URL=f"rediss://127.0.0.1:1/0?{option}")
    (found,) = ran.object["checks"]
    assert (ran.code, ran.object["exit_code"], found["state"]) == (2, 2, "fail")
    assert "REFUNDS_REDIS_URL" in found["text"]
