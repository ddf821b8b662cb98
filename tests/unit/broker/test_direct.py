"""The messages that Redis queues itself are those that Celery would send."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from worker import Refunds
from worker.broker import direct, queues
from worker.model.refund import Lane
from worker.settings import Settings

OWN = ("id", "root_id", "correlation_id", "delivery_tag", "reply_to")
"""What differs from message to message; nothing replies to a nudge."""
SAID_TWICE = ("argsrepr", "kwargsrepr")
"""What Celery puts into the properties too, where no worker reads it."""


def contents(message: str) -> Any:
    read = json.loads(message)
    body = json.loads(base64.b64decode(read.pop("body")))
    headers = {name: text for name, text in read.pop("headers").items() if name not in OWN}
    properties = {
        name: text
        for name, text in read.pop("properties").items()
        if name not in (*OWN, *SAID_TWICE)
    }
    return body, headers, properties, read


@pytest.mark.parametrize("lane", Lane)
def test_a_message_says_what_that_of_celery_says(redis_url: str, lane: Lane) -> None:
    settings = Settings.load(redis_url=redis_url)
    with Refunds(settings=settings) as refunds:
        queues.nudge(refunds.celery, ["order-1001-1"], lane)
        (sent,) = refunds.store.redis.lrange(direct.queue_of(settings, lane), 0, -1)
    assert contents(direct.nudge("order-1001-1", lane)) == contents(str(sent))


def test_each_message_has_an_id_of_its_own_by_which_it_is_acknowledged() -> None:
    sent = [json.loads(direct.nudge("order-1001-1", Lane.SINGLE)) for _ in range(2)]
    assert len({each["headers"]["id"] for each in sent}) == 2
    assert len({each["properties"]["delivery_tag"] for each in sent}) == 2


@pytest.mark.parametrize(
    ("given", "queue"),
    [
        ({}, "refunds"),
        ({"broker_url": "redis://127.0.0.1:6379/0"}, "refunds"),
        ({"prefix": "shop:"}, "shop:refunds"),
        ({"broker_url": "redis://127.0.0.1:6379/1"}, ""),
        ({"broker_url": "amqp://127.0.0.1:5672"}, ""),
    ],
)
def test_redis_queues_messages_only_if_the_broker_is_the_server_of_the_records(
    given: dict[str, Any], queue: str
) -> None:
    settings = Settings.load(redis_url="redis://127.0.0.1:6379/0", **given)
    assert direct.queue_of(settings, Lane.SINGLE) == queue
