"""A fork at any moment of a door's life.

No child hangs, each refund is accepted, and each has its message.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.unit.client.forking import SCENARIOS
from worker import Refunds
from worker.model.refund import Lane
from worker.settings import Settings


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, redis_url: str) -> str:
    return redis_url if request.param == "redis" else str(request.getfixturevalue("rabbitmq_url"))


def run(scenario: str, redis_url: str, broker_url: str) -> list[int]:
    """How the children of a scenario ended.

    Whatever was logged of a message that could not be sent fails it.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.client.forking", scenario, redis_url, broker_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ends: list[int] = json.loads(done.stdout)
    return ends


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_child_begins_anew_and_its_parent_goes_on(
    scenario: str, redis_url: str, broker_url: str
) -> None:
    ends = run(scenario, redis_url, broker_url)
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
