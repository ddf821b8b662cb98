"""Worker processes and their messages: what a stopped, killed or full one leaves in the queues."""

from __future__ import annotations

import base64
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.test_processes import assert_each_moved_once, requests
from tests.support.installation import Installation, calls, until
from worker.model.refund import Lane
from worker.sandbox.redis_server import ThrowawayServer, find_server, running_server

SINGLES = 120


def nudged(server: redis.Redis) -> set[str]:
    """Every refund id that a message in a queue or among the unacknowledged names."""
    queued: Any = [json.loads(item) for lane in Lane for item in server.lrange(lane.value, 0, -1)]
    held: Any = [json.loads(item)[0] for item in server.hvals("unacked")]
    return {
        id_ for each in [*queued, *held] for id_ in json.loads(base64.b64decode(each["body"]))[0][0]
    }


def test_a_stopped_worker_leaves_nothing_unacknowledged_and_hands_back_what_it_has_not_begun(
    installation: Installation, server: redis.Redis
) -> None:
    installation.settings["REFUNDS_CONCURRENCY"] = "8"
    installation.sandbox.set_modes(latency_ms=300)
    worker = installation.start("worker", "worker")
    with installation.refunds() as refunds:
        refunds.submit_many(requests(SINGLES), lane=Lane.SINGLE)
        until(lambda: len(installation.sandbox.effects()) >= 10, "ten refunds are done")
        assert worker.stop() == 0
        assert not server.exists("unacked", "unacked_index")
        assert server.llen("refunds") > 0
        counts = refunds.store.counts()
        assert (counts["sending"], counts["in_doubt"]) == (0, 0)
        installation.sandbox.set_modes(latency_ms=5)
        last = installation.start("worker", "worker")
        records = installation.settled(
            refunds, [request.refund_id for request in requests(SINGLES)]
        )
        assert last.stop() == 0
    assert_each_moved_once(installation, records)
    assert not server.exists("unacked", "unacked_index", "refunds")


def test_a_worker_takes_no_more_messages_than_it_can_start(
    installation: Installation, server: redis.Redis
) -> None:
    installation.settings["REFUNDS_CONCURRENCY"] = "4"
    installation.sandbox.set_modes(latency_ms=30)
    with installation.refunds() as refunds:
        refunds.submit_many(requests(SINGLES), lane=Lane.SINGLE)
        installation.start()
        held = []

        def over() -> bool:
            held.append(int(server.hlen("unacked")))
            return refunds.store.counts()["succeeded"] == SINGLES

        until(over, "all are settled")
    # Four calls in flight, and eight threads beside them.
    assert 4 < max(held) <= 12


def test_every_refund_that_a_killed_worker_had_fetched_is_still_named_by_a_message(
    installation: Installation, server: redis.Redis
) -> None:
    installation.sandbox.set_modes(latency_ms=60)
    worker = installation.start()
    ids = [request.refund_id for request in requests(SINGLES)]
    with installation.refunds() as refunds:
        refunds.submit_many(requests(SINGLES), lane=Lane.SINGLE)
        until(lambda: len(installation.sandbox.effects()) >= 40, "forty refunds are done")
        worker.kill()
        unsettled = {
            refund.refund_id
            for refund in refunds.get_many(ids)
            if refund and refund.stage != "settled"
        }
        assert unsettled
        assert unsettled <= nudged(server)
        # Long enough dead for its messages to come back, as the visibility timeout has it.
        held: Any = server.zrange("unacked_index", 0, -1)
        server.zadd("unacked_index", dict.fromkeys(held, 1))
        installation.start()
        records = installation.settled(refunds, ids)
    assert_each_moved_once(installation, records)


def test_a_refund_that_a_person_waits_for_passes_a_file_and_many_of_them_do_not_stop_it(
    installation: Installation,
) -> None:
    installation.settings["REFUNDS_CONCURRENCY"] = "8"
    installation.sandbox.set_modes(latency_ms=40)
    with installation.refunds() as refunds:
        refunds.submit_many(requests(1500))
        installation.start()
        until(lambda: len(installation.sandbox.effects()) >= 20, "the file is under way")
        many = [
            request for request in requests(1700) if int(request.refund_id.split("-")[1]) >= 1500
        ]
        refunds.submit_many(many, lane=Lane.SINGLE)
        assert refunds.wait(many[0].refund_id, timeout=20).status == "succeeded"
        counts = refunds.store.counts()
        assert counts["queued.bulk"] > 0
        of_the_file = len(installation.sandbox.effects())
        until(
            lambda: len(installation.sandbox.effects()) > of_the_file + 30,
            "the file goes on beside the others",
        )
        done = Counter(effect["refund_id"] for effect in installation.sandbox.effects())
        assert sum(int(refund_id.split("-")[1]) < 1500 for refund_id in done) > 20


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[ThrowawayServer, str]]:
    """A server that a Sentinel of its own watches, and the address through the Sentinel."""
    with running_server() as watched, running_server() as spare:
        port = spare.port
        spare.kill()
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor refunds 127.0.0.1"
            f" {watched.port} 1\n"
        )
        process = subprocess.Popen(
            [find_server(), config, "--sentinel"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: _knows_master(port), "the Sentinel knows the server")
            yield watched, f"sentinel://127.0.0.1:{port}/0?master=refunds"
        finally:
            process.terminate()
            process.wait(10)


def _knows_master(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return (
                client.execute_command("SENTINEL", "get-master-addr-by-name", "refunds") is not None
            )
    except redis.ConnectionError:
        return False


def test_refunds_go_through_a_server_that_is_found_by_sentinel(
    installation: Installation, sentinel: tuple[ThrowawayServer, str]
) -> None:
    watched, address = sentinel
    installation.redis_url = watched.url
    installation.settings["REFUNDS_REDIS_URL"] = address
    with installation.refunds() as refunds:
        refunds.submit_many(requests(SINGLES), lane=Lane.SINGLE)
        worker = installation.start("worker", "worker")
        records = installation.settled(
            refunds, [request.refund_id for request in requests(SINGLES)]
        )
        assert worker.stop() == 0
    assert_each_moved_once(installation, records)
    with redis.Redis.from_url(watched.url) as client:
        assert not client.exists("unacked", "unacked_index")
        assert calls(client, "brpop") < SINGLES
