"""Messages as senders in any language write them, with any part changed, and what becomes of
each.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import amqp
import redis

from worker.model.refund import Lane

EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class _Absent:
    """Stands for a part that is left out."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


@dataclass(kw_only=True)
class Sent:
    """One message of a refund: the good one, but for the parts that a test changes.

    ABSENT leaves one out.
    """

    refund_id: str
    body: Any = None
    """The parts `[args, kwargs, embed]`; None for those of a good `refunds.submit`."""
    raw_body: bytes | None = None
    """The body's bytes, if they are not JSON of `body`."""
    headers: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)
    content_type: Any = "application/json"
    content_encoding: Any = "utf-8"

    @property
    def parts(self) -> Any:
        fields = {
            "refund_id": self.refund_id,
            "payment_intent": f"pi_{self.refund_id}",
            "amount": 100,
        }
        return [[], fields, EMBED] if self.body is None else self.body

    @property
    def body_bytes(self) -> bytes:
        return json.dumps(self.parts).encode() if self.raw_body is None else self.raw_body

    @property
    def all_headers(self) -> dict[str, Any]:
        known = {
            "task": "refunds.submit",
            "id": str(uuid.uuid4()),
            "lang": "php",
            "kwargsrepr": self.refund_id,
        }
        return present({**known, **self.headers})

    def for_redis(self) -> bytes:
        """The item of a Redis list."""
        properties = {
            "delivery_tag": uuid.uuid4().hex,
            "delivery_info": {"exchange": "", "routing_key": "refunds"},
            "body_encoding": "base64",
            **self.properties,
        }
        item = {
            "body": base64.b64encode(self.body_bytes).decode(),
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": self.all_headers,
            "properties": present(properties),
        }
        return json.dumps(present(item)).encode()

    def for_amqp(self) -> amqp.Message:
        """The message for an AMQP channel, whose properties can be text and small numbers alone."""
        texts = {"content_type": self.content_type, "content_encoding": self.content_encoding}
        properties = {
            name: value if isinstance(value, (str, bytes)) else str(value)
            for name, value in texts.items()
            if value is not ABSENT and value is not None
        }
        properties |= {
            name: value for name, value in self.properties.items() if isinstance(value, str)
        }
        properties.pop("priority", None)
        return amqp.Message(self.body_bytes, application_headers=self.all_headers, **properties)


def present(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is ABSENT."""
    return {name: value for name, value in parts.items() if value is not ABSENT}


class RedisPost:
    """Puts messages into the queues of a Redis server."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)

    def send(self, queue: str, message: Sent) -> None:
        """Send one message."""
        self.client.lpush(queue, message.for_redis())

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


class AmqpPost:
    """Puts messages into the queues of RabbitMQ, each confirmed; declares them as the worker
    does.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection: Any = None
        self.reopen()

    def reopen(self) -> None:
        """Begin a connection, in the place of one that the broker may have ended."""
        if self.connection is not None:
            self.connection.collect()
        parts = urlsplit(self.url)
        self.connection = amqp.Connection(f"{parts.hostname}:{parts.port}", confirm_publish=True)
        self.connection.connect()
        self.channel = self.connection.channel()
        for lane in Lane:
            self.channel.exchange_declare(lane.value, "direct", durable=True, auto_delete=False)
            self.channel.queue_declare(lane.value, durable=True, auto_delete=False)

    def send(self, queue: str, message: Sent) -> None:
        """Send one message."""
        self.channel.basic_publish(message.for_amqp(), exchange="", routing_key=queue)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


Post = RedisPost | AmqpPost
