"""What the doctor says of servers that differ in one thing, each with the command that mends it.

The command is run.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import fakeredis
import pytest
import redis

from tests.support.cli_runner import Cli
from tests.unit.monitoring.examining import examined
from worker.model.refund import Lane
from worker.model.request import RefundRequest
from worker.monitoring import check_server
from worker.monitoring.checks import State, redis_cli
from worker.rules import decisions
from worker.sandbox.redis_server import running_server
from worker.settings import Settings
from worker.store import creations, saves
from worker.store.store import Store


def mend(url: str, fix: str) -> None:
    """Carry out the CONFIG SET commands of a fix, as a person would with redis-cli."""
    port = re.search(r":(\d+)/", url)
    assert port is not None
    commands = re.findall(r"redis-cli (\S+ \S+) CONFIG SET (\S+) (\w[\w-]*)", fix)
    assert commands, fix
    with redis.Redis.from_url(url) as client:
        for place, name, value in commands:
            assert place == f"-p {port[1]}"
            client.config_set(name, value)


@pytest.mark.parametrize(
    ("options", "name", "state", "code", "words"),
    [
        ({"appendonly": "no"}, "disk", "fail", 6, "no append-only file"),
        ({"appendfsync": "everysec"}, "disk", "warn", 0, "waits up to a second"),
        (
            {"no_appendfsync_on_rewrite": "yes"},
            "disk",
            "warn",
            0,
            "but not 'no-appendfsync-on-rewrite no': safe, but",
        ),
        ({"appendfsync": "no"}, "disk", "fail", 6, "cannot confirm when it has"),
        (
            {"maxmemory": "64mb", "maxmemory_policy": "allkeys-lru"},
            "eviction",
            "fail",
            6,
            "may evict refunds",
        ),
        (
            {"maxmemory_policy": "allkeys-lru"},
            "eviction",
            "warn",
            0,
            "harmless only while there is no maxmemory",
        ),
        ({"maxmemory": "600kb"}, "memory", "fail", 5, "no new refund is accepted"),
    ],
)
def test_a_server_of_another_make_is_found_and_its_fix_mends_it(
    doctor: Cli,
    options: dict[str, str],
    name: str,
    state: str,
    code: int,
    words: str,
    request: pytest.FixtureRequest,
) -> None:
    if state == "warn" and name == "disk":
        request.getfixturevalue("waitaof")
    with running_server(**options) as server:
        before = examined(doctor, REFUNDS_REDIS_URL=server.url)
        found, text, fix = before.of(name)
        assert (found, before.code, words in text) == (state, code, True), text
        mend(server.url, fix)
        after = examined(doctor, REFUNDS_REDIS_URL=server.url)
        assert (after.of(name)[0], after.code) == ("ok", 0)


def test_switching_the_file_on_is_not_advised_where_it_would_replace_one(doctor: Cli) -> None:
    with running_server() as server, redis.Redis.from_url(server.url) as client:
        client.set("refund", "1")
        # Restarted without its configuration: the file is there, and the server has not read it.
        server.kill()
        server.directives["appendonly"] = "no"
        server.restart()
        assert client.get("refund") is None
        _, _, fix = examined(doctor, REFUNDS_REDIS_URL=server.url).of("disk")
        assert fix.startswith("if it was restarted without its file: see RefundsAofFailing")
        server.kill()
        server.directives["appendonly"] = "yes"
        server.restart()
        assert client.get("refund") == b"1"


def test_a_sound_server_is_described(doctor: Cli) -> None:
    said = examined(doctor)
    assert said.code == 0
    assert said.of("disk")[1] == "append-only file on, appendfsync always"
    assert said.of("clock")[1] == "the server's clock and this machine's agree"
    assert "used, no limit set" in said.of("memory")[1]
    assert {
        "redis",
        "version",
        "eviction",
        "records",
        "workers",
        "refunds",
        "probe",
    } <= said.checks.keys()


def test_a_replica_takes_no_writes(doctor: Cli) -> None:
    with running_server() as server, redis.Redis.from_url(server.url) as client:
        client.replicaof("127.0.0.1", "1")
        said = examined(doctor, REFUNDS_REDIS_URL=server.url)
        assert (said.of("role")[0], said.code) == ("fail", 5)
        client.replicaof("NO", "ONE")
        assert "role" not in examined(doctor, REFUNDS_REDIS_URL=server.url).checks


@pytest.mark.usefixtures("waitaof")
def test_a_user_who_may_ask_little_is_told_so(doctor: Cli) -> None:
    with (
        running_server(appendfsync="everysec") as server,
        redis.Redis.from_url(server.url) as client,
    ):
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">planted", "~*", "&*", "+@all", "-config"
        )
        url = server.url.replace("redis://", "redis://app:planted@")
        said = examined(doctor, REFUNDS_REDIS_URL=url)
        assert (
            said.of("disk")[0],
            "may not read appendfsync" in said.of("disk")[1],
            said.code,
        ) == ("warn", True, 0)
        assert said.of("eviction")[:2] == ("ok", "noeviction")
        client.execute_command("ACL", "SETUSER", "app", "-info")
        said = examined(doctor, REFUNDS_REDIS_URL=url)
        assert (said.of("server")[0], "may not run a command" in said.of("server")[1]) == (
            "warn",
            True,
        )
        assert (
            said.of("eviction")[0],
            "may not read maxmemory-policy" in said.of("eviction")[1],
        ) == ("warn", True)
        assert {"records", "workers", "refunds"} <= said.checks.keys()


@pytest.mark.parametrize(
    ("info", "state"),
    [
        ({"redis_version": "6.0.16"}, "fail"),
        ({"redis_version": "6.2.0"}, "warn"),
        ({"redis_version": "7.0.15"}, "warn"),
        ({"redis_version": "7.2.0"}, "ok"),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, "ok"),
        ({"redis_version": "10.0.0"}, "ok"),
        ({}, "fail"),
    ],
)
def test_versions_are_compared_as_numbers(info: dict[str, str], state: str) -> None:
    assert check_server.version(info).state.value == state


@pytest.mark.parametrize(
    ("info", "state", "words"),
    [
        ({"maxmemory": 100 << 20, "used_memory": 79 << 20}, "ok", "79 %"),
        (
            {"maxmemory": 100 << 20, "used_memory": 80 << 20},
            "warn",
            "from 90 % on, no new refund is accepted",
        ),
        ({"maxmemory": 100 << 20, "used_memory": 89 << 20}, "warn", "89 %"),
        (
            {"maxmemory": 100 << 20, "used_memory": 90 << 20},
            "fail",
            "no new refund is accepted, and those already accepted",
        ),
        (
            {"maxmemory": 100 << 20, "used_memory": 99 << 20},
            "fail",
            "those already accepted are finished",
        ),
        (
            {"maxmemory": 100 << 20, "used_memory": 100 << 20},
            "fail",
            "accepted refunds may wait until there is room",
        ),
        (
            {"used_memory": 3 << 30, "total_system_memory": 8 << 30},
            "ok",
            "3.0 GB used, no limit set, 8.0 GB",
        ),
        (
            {"used_memory": 5 << 30, "total_system_memory": 8 << 30},
            "warn",
            "5.0 GB used, no limit set, of 8.0 GB",
        ),
        ({"used_memory": 1 << 14}, "ok", "16 KB used, no limit set"),
    ],
)
def test_memory_is_held_against_its_limit_or_its_machine(
    info: dict[str, Any], state: str, words: str
) -> None:
    check = check_server.memory(info, "redis-cli")
    assert (check.state.value, words in check.text) == (state, True), check.text
    if state != "ok" and "maxmemory" in info:
        assert (check.fix or "").startswith("redis-cli CONFIG SET maxmemory 200mb")


@pytest.mark.parametrize("most", [{}, {"maxmemory": 6 << 30}])
def test_more_memory_than_the_machine_has_is_not_advised(most: dict[str, int]) -> None:
    info = {"used_memory": (6 << 30) - 1, "total_system_memory": 8 << 30, **most}
    check = check_server.memory(info, "redis-cli")
    assert check.state is not State.OK
    assert check.fix == "move the server to a machine with more memory"


def test_a_shorter_retention_frees_no_record_that_has_settled(
    sync_redis: redis.Redis,
) -> None:
    day = timedelta(days=1)
    for refund_id, retention in (("order-1", 400 * day), ("order-2", 61 * day)):
        store = Store(sync_redis, durable=False, retention=retention)
        request = RefundRequest(refund_id=refund_id, payment_intent="pi_1", amount=5)
        store.run(creations.create(request, Lane.SINGLE))
        refund = store.get(refund_id)
        assert refund is not None
        step = decisions.cancel(refund)
        assert store.run(saves.save(refund, step, {})).result == "saved"
    left = sync_redis.pttl("refunds:refund:order-1")
    assert left > 399 * day / timedelta(milliseconds=1)
    # So no fix for a full server names it.
    full = {"maxmemory": 100 << 20, "used_memory": 90 << 20}
    assert "RETENTION" not in (check_server.memory(full, "redis-cli").fix or "")


@pytest.mark.parametrize(
    ("info", "state", "command"),
    [
        ({"aof_last_write_status": "err"}, State.FAIL, "df -h"),
        ({"aof_last_bgrewrite_status": "err"}, State.WARN, "redis-cli BGREWRITEAOF"),
    ],
)
def test_an_append_only_file_that_cannot_be_written_is_told(
    info: dict[str, str], state: State, command: str
) -> None:
    (check,) = check_server.disk_write(info, "redis-cli")
    assert (check.state, command in (check.fix or "")) == (state, True)
    assert not [*check_server.disk_write({"aof_last_write_status": "ok"}, "redis-cli")]


def test_keys_that_were_thrown_away_are_told() -> None:
    (check,) = check_server.evictions({"evicted_keys": 3})
    assert (check.state, "RefundsEvictions" in (check.fix or "")) == (State.WARN, True)
    assert not [*check_server.evictions({"evicted_keys": 0})]


class Shifted(fakeredis.FakeRedis):
    """A server whose clock is elsewhere."""

    shift = timedelta(0)

    def time(self, **_: Any) -> Any:
        moment = (datetime.now(UTC) + self.shift).timestamp()
        return int(moment), int(moment % 1 * 1_000_000)


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, None), (-1, None), (3, "ahead of"), (-3600, "behind")]
)
def test_a_clock_that_differs_by_more_than_two_seconds_is_a_warning(
    seconds: int, words: str | None
) -> None:
    with Shifted(server=fakeredis.FakeServer(), decode_responses=True) as client:
        client.shift = timedelta(seconds=seconds)
        checks = {
            check.name: check
            for check in check_server.Server(Settings.load(), Store(client)).checks()
        }
    clock = checks["clock"]
    assert (clock.state.value, words is None or words in clock.text) == (
        "ok" if words is None else "warn",
        True,
    )
    if words is not None:
        assert (clock.fix or "").startswith("timedatectl set-ntp true")


@pytest.mark.parametrize(
    ("ahead", "told"), [(0, False), (59_000, False), (3 * 3_600_000 + 30_000, True)]
)
def test_records_whose_time_runs_ahead_of_the_servers_clock_are_a_warning(
    ahead: int,
    told: bool,  # noqa: FBT001 - a table of cases
) -> None:
    with fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True) as client:
        at = int(datetime.now(UTC).timestamp() * 1000) + ahead
        client.hset("refunds:clock", mapping={"at": at, "ahead": ahead})
        checks = {
            check.name: check
            for check in check_server.Server(Settings.load(), Store(client)).checks()
        }
    assert checks["clock"].state is State.OK
    assert ("time" in checks) is told
    if told:
        assert (checks["time"].state, "3 h" in checks["time"].text) == (State.WARN, True)
        assert "ops/docs/operations.md" in (checks["time"].fix or "")


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("redis://127.0.0.1:6379/0", "redis-cli"),
        ("redis://:secret@redis:6379/2", "redis-cli -h redis -n 2"),
        ("rediss://user:secret@cache.example:6380", "redis-cli -h cache.example -p 6380 --tls"),
        ("unix:///run/redis.sock", "redis-cli -s /run/redis.sock"),
        ("sentinel://:secret@a:1,b:2/0?master=m", "redis-cli -h PRIMARY"),
        ("sentinel://:secret@a/0?master=m", "redis-cli -h PRIMARY"),
        ("redis://:sec/ret@redis:6379/2", "redis-cli"),
        ("redis://:sec#ret@redis:6379/2", "redis-cli"),
        ("redis://redis:port/2", "redis-cli"),
    ],
)
def test_the_commands_reach_the_server_that_was_asked_and_show_no_password(
    url: str, command: str
) -> None:
    assert redis_cli(url) == command
