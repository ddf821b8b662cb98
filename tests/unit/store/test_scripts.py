"""How a script is made of its files, which commands are durable, and whose time a script takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from tests.factories import NOW, SECOND, a_refund, a_request
from tests.unit.store.handing import AT
from worker.model.refund import Lane, Stage, Status
from worker.model.steps import Step
from worker.store import (
    account_facts,
    callbacks,
    claims,
    creations,
    gate,
    meta,
    reads,
    rechecks,
    record_time,
    saves,
    scripts,
    sweeps,
)
from worker.store.scripts import Command, Script
from worker.store.store import Store


def test_script_is_its_file_with_the_shared_beginning_in_front_known_by_its_digest() -> None:
    one, other = Script("load"), Script("claim")
    assert one.name == "load"
    beginning = one.text[: one.text.index("-- Read a refund")]
    assert beginning.startswith(f"{scripts.beginning()}\n-- Comes before every script")
    assert beginning == f"{scripts.shared_text.__wrapped__()}\n"
    assert beginning.endswith("\n")
    assert other.text.startswith(beginning)
    assert len(one.sha) == 40
    assert one.sha != other.sha
    assert one.sha == scripts.LOAD.sha


@pytest.mark.parametrize("script", scripts.EVERY, ids=lambda script: script.name)
def test_script_names_the_files_that_it_is_made_of(script: Script) -> None:
    assert Script(script.name, *script.shared).sha == script.sha


def test_times_that_calls_go_by_are_those_of_the_design() -> None:
    assert timedelta(minutes=10) == sweeps.NUDGE_GRACE
    assert timedelta(seconds=15) == sweeps.LOST_NUDGE
    assert timedelta(seconds=30) == sweeps.SWEEP_HOLD
    assert scripts.CREATED_AT_ONCE == 50


def test_what_a_server_is_given_before_the_first_refund_is_every_script_that_a_worker_runs() -> (
    None
):
    names = {script.name for script in scripts.EVERY}
    assert names >= {
        "create",
        "load",
        "claim",
        "stands",
        "save",
        "sweep",
        "give_back",
        "siblings",
        "gate",
        "block_gate",
        "pin",
    }


_FAILED = Step(to=Stage.SETTLED, status=Status.FAILED, label="x")
_RETRIED = Step(to=Stage.QUEUED, status=Status.PENDING, label="retried", changes={"generation": 2})
_MOVED = Step(to=Stage.QUEUED, status=Status.PENDING, label="x", quiet=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: creations.create(a_request(), Lane.SINGLE),
        lambda: creations.create_several([a_request()], Lane.SINGLE),
        lambda: claims.claim("a", "send", token="t", lease=SECOND),
        lambda: saves.save(a_refund(), _FAILED),
        lambda: saves.save(a_refund(Stage.SETTLED), _RETRIED),
        lambda: saves.save(a_refund(Stage.QUEUED), _MOVED),
        lambda: meta.pin("host", "mode"),
        lambda: account_facts.account("salt"),
        lambda: callbacks.take("shop", "a", token="t", lease=SECOND),
        lambda: callbacks.replay("shop", ["a"]),
        record_time.confirm,
    ],
)
def test_what_must_not_be_forgotten_is_durable(make: Callable[[], Command[Any]]) -> None:
    assert make().durable


@pytest.mark.parametrize(
    "make",
    [
        lambda: reads.load("a"),
        lambda: reads.siblings("pi", "a"),
        lambda: claims.stands("a", "t"),
        lambda: claims.position(""),
        lambda: saves.save(a_refund(), _FAILED, durable=False),
        lambda: sweeps.sweep(1, dry=frozenset()),
        lambda: sweeps.give_back(["a"]),
        lambda: gate.permits({}, rate=1, ahead=SECOND, bulk_share=0.5),
        lambda: gate.block_gate(SECOND),
        lambda: account_facts.payment("pi_1", "certain"),
        lambda: account_facts.witnesses(3),
        lambda: rechecks.rechecked("a", answered=True),
        lambda: rechecks.watch([SECOND], rate=1, most=1),
        lambda: callbacks.outbox([]),
        lambda: callbacks.ended("shop", "a", token="t", result="failed", version="1"),
        record_time.clock,
    ],
)
def test_what_only_reads_or_is_found_again_waits_for_no_disk(
    make: Callable[[], Command[Any]],
) -> None:
    assert not make().durable


def test_a_call_is_durable_unless_it_says_that_it_need_not_be() -> None:
    assert Command(script=Script("load"), arguments=[], read=list).durable


class _Clock(Script):
    """The shared beginning, and what it takes the time to be beside what the server says in the
    same moment.
    """

    def __init__(self) -> None:
        super().__init__("load")
        self.name = "clock"
        beginning = self.text[: self.text.index("-- Read a refund")]
        self.text = f"{beginning}\nlocal t = redis.call('TIME') return {{int(NOW), t[1], t[2]}}"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def test_script_takes_the_servers_time_in_whole_milliseconds_or_the_one_that_it_is_given(
    sync_redis: redis.Redis,
) -> None:
    records = Store(sync_redis, durable=False)
    clock: Command[Any] = Command(
        script=_Clock(), arguments=[], read=lambda reply: [int(one) for one in reply]
    )
    # Time stands still in a script since Redis 7.2; before, the second question comes later.
    late = [
        seconds * 1000 + micros // 1000 - now
        for now, seconds, micros in records.run_many([clock] * 300)
    ]
    assert min(late) == 0
    server: Any = sync_redis.info("server")
    if tuple(map(int, server["redis_version"].split(".")[:2])) >= (7, 2):
        assert set(late) == {0}
    sync_redis.delete("refunds:clock")
    records.now = NOW
    assert records.run(clock)[0] == AT
