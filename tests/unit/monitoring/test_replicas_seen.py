"""What doctor and metrics show of replicas, and of a server that forgot what it confirmed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import redis

from tests.support.cli_runner import Cli
from tests.unit.monitoring.examining import examined
from worker.monitoring import check_permissions, metrics
from worker.monitoring.checks import Check, State
from worker.monitoring.replicas import online, replicas
from worker.sandbox.redis_server import HOST, running_server
from worker.store.store import Store

ONLINE = {"ip": HOST, "port": 1, "state": "online", "offset": 1, "lag": 0}
LOADING = ONLINE | {"state": "wait_bgsave"}


def told(info: dict[str, Any], wanted: int) -> list[Check]:
    return list(replicas(info, wanted))


def test_replica_counts_once_it_has_all_data() -> None:
    assert online({"connected_slaves": 2, "slave0": ONLINE, "slave1": LOADING}) == 1
    assert online({"connected_slaves": 0, "slave_read_only": 1}) == 0


@pytest.mark.parametrize(
    ("info", "wanted", "state", "words"),
    [
        ({"slave0": LOADING}, 1, State.FAIL, "0 replicas follow.*demands 1: no refund"),
        ({"slave0": ONLINE}, 1, State.OK, "1 replicas follow, as many"),
        ({"slave0": ONLINE}, 0, State.WARN, "must reach 0"),
        ({"slave0": ONLINE, "slave1": ONLINE}, 1, State.WARN, "must reach 1"),
    ],
)
def test_what_follows_is_compared_with_what_is_demanded(
    info: dict[str, Any], wanted: int, state: State, words: str
) -> None:
    (check,) = told(info, wanted)
    assert check.state is state
    assert re.search(words, check.text)


def test_lone_server_of_which_no_replica_is_demanded_is_not_mentioned() -> None:
    assert told({"connected_slaves": 0}, 0) == []


def test_doctor_fails_until_the_replica_follows(doctor: Cli) -> None:
    with running_server() as server, running_server() as other:
        wanted = {"REFUNDS_REDIS_URL": server.url, "REFUNDS_REPLICAS": "1"}
        missing = examined(doctor, **wanted)
        assert (missing.of("replicas")[0], missing.code) == ("fail", 5)
        with (
            redis.Redis.from_url(server.url) as primary,
            redis.Redis.from_url(other.url) as replica,
        ):
            primary.config_set("repl-diskless-sync-delay", 0)
            replica.replicaof(HOST, server.port)
            while not primary.execute_command("WAIT", 1, 100):
                primary.set("follows", "1")
        assert examined(doctor, **wanted).of("replicas")[0] == "ok"
        assert examined(doctor, REFUNDS_REDIS_URL=server.url).of("replicas")[0] == "warn"


def test_user_that_may_not_wait_is_named_only_if_replicas_are_demanded(
    sync_redis: redis.Redis,
) -> None:
    sync_redis.execute_command("ACL", "SETUSER", "default", "-wait")
    try:
        wanting = list(check_permissions.permissions(Store(sync_redis, replicas=1), "cli", "me"))
        assert [(check.state, check.fix) for check in wanting] == [
            (State.FAIL, "cli ACL SETUSER me +wait")
        ]
        plain = list(check_permissions.permissions(Store(sync_redis), "cli", "me"))
        assert [check.state for check in plain] == [State.OK]
    finally:
        sync_redis.execute_command("ACL", "SETUSER", "default", "+@all")


def test_metrics_show_what_is_demanded_and_what_follows(sync_redis: redis.Redis) -> None:
    shown = metrics.render(Store(sync_redis, replicas=2))
    assert "refunds_redis_replicas 0.0" in shown
    assert "refunds_redis_replicas_wanted 2.0" in shown


def test_server_that_forgot_claims_is_shown_with_the_command_that_ends_it(
    doctor: Cli, sync_redis: redis.Redis
) -> None:
    assert "refunds_records_behind 0.0" in metrics.render(Store(sync_redis))
    sync_redis.hset("refunds:meta", "behind_since", "1000")
    assert "refunds_records_behind 1.0" in metrics.render(Store(sync_redis))
    said = examined(doctor)
    state, _, fix = said.of("positions")
    assert (state, said.code) == ("fail", 6)
    assert "refunds recover --since" in fix
    # The stop may be hours later: nothing is noticed while nothing is claimed, nor by new workers.
    assert "before the failover or the snapshot" in fix
