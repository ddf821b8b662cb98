"""A fork at any moment of a door's life.

No child hangs, each refund is accepted, and each has its message.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.client.forking import SCENARIOS
from worker import Refunds
from worker.model.refund import Lane
from worker.settings import Settings


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, redis_url: str) -> str:
    return redis_url if request.param == "redis" else str(request.getfixturevalue("rabbitmq_url"))


Play = Callable[[str, str, str], list[int]]
"""Plays a scenario on these records and this broker; returns how its children ended."""


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """Whatever was logged of a message that could not be sent fails a scenario."""
    said = tmp_path_factory.mktemp("forks") / "stderr"
    with (
        said.open("a", encoding="utf-8") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.client.forking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        asked, told = process.stdin, process.stdout
        assert asked is not None
        assert told is not None

        def play(scenario: str, redis_url: str, broker_url: str) -> list[int]:
            said.write_text("")
            asked.write(f"{scenario} {redis_url} {broker_url}\n")
            asked.flush()
            ends: Any = json.loads(told.readline())
            # Without a list of ends the scenario broke off, and this is its exit code.
            code = json.loads(told.readline()) if isinstance(ends, list) else ends
            assert (code, said.read_text("utf-8")) == (0, "")
            return list(ends)

        yield play


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_child_begins_anew_and_its_parent_goes_on(
    scenario: str, play: Play, redis_url: str, broker_url: str
) -> None:
    ends = play(scenario, redis_url, broker_url)
    assert ends
    assert set(ends) == {0}
    with Refunds(settings=Settings.load(redis_url=redis_url, broker_url=broker_url)) as refunds:
        accepted = refunds.store.counts()["queued"]
        assert accepted >= len(ends) or scenario in {"children_that_leave_it_alone", "a_closed_one"}
        assert accepted % 3 == 0 or scenario == "while_published"
        named = nudged(refunds)
        assert len(set(named)) == accepted
        # RabbitMQ that confirms too late is sent a message again: that is harmless, and its second
        # one names the same.
        assert len(named) == accepted or "amqp" in broker_url


def nudged(refunds: Refunds) -> list[str]:
    """Take every message, and return the ids that they name."""
    named: list[str] = []
    with refunds.celery.connection_for_read() as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(queue=Lane.SINGLE.value, no_ack=True)) is not None:
            named += json.loads(channel.message_to_python(message).body)[0][0]
    return named


IMPORTS = """
import json, sys
from worker import RefundRequest, Refunds
from worker.settings import Settings
door = Refunds(settings=Settings.load(redis_url=sys.argv[1], broker_url=sys.argv[2]))
door.celery
before = set(sys.modules)
door.submit(RefundRequest(refund_id="r-1", payment_intent="pi_1", amount=5))
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_a_door_that_is_built_imports_nothing_more(redis_url: str, broker_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, redis_url, broker_url],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    imported: Any = json.loads(done.stdout)
    assert imported == []
