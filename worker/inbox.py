"""Messages that cannot be understood: kept in `refunds:rejected` with their reason, and never the end of a worker.

A Redis list takes anything, and kombu ends the whole worker on an item that is no message (and the item is gone). So
each item is checked here before kombu's own code unpacks it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any, Final

import kombu.transport
import kombu.transport.redis as kombu_redis

from worker.model import Lane, scrubbed

KEPT: Final = 10_000
_LONGEST: Final = 4_000
_PARTS: Final = 3
_TASK_QUEUES: Final = frozenset(lane.value for lane in Lane)

Keep = Callable[[str, str], None]
_keepers: list[Keep] = []


def keep_with(keep: Keep) -> None:
    """Name the function that keeps (raw message, reason); the latest one named is used."""
    _keepers[:] = [keep]


def rejected(raw: object, reason: str) -> None:
    """Keep a message that cannot be understood."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw if isinstance(raw, str) else repr(raw)
    for keep in _keepers:
        keep(scrubbed(text[:_LONGEST], _LONGEST), scrubbed(reason))


def problem(message: Any) -> str | None:
    """Return why a queue's item is no Celery message of protocol 2, None where it is one."""
    if not isinstance(message, dict):
        return "the message is no JSON object"
    properties, headers = message.get("properties"), message.get("headers")
    if not isinstance(properties, dict) or not isinstance(properties.get("delivery_tag"), str):
        return "properties.delivery_tag is missing"
    if not isinstance(properties.get("delivery_info"), dict):
        return "properties.delivery_info is missing"
    if not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        return "headers.task is missing"
    if not isinstance(headers.get("id"), str):
        return "headers.id is missing"
    if message.get("content-type") != "application/json":
        return "content-type is not application/json"
    return _body_problem(message.get("body"), properties.get("body_encoding"))


def _body_problem(body: Any, encoding: Any) -> str | None:
    if not isinstance(body, str) or encoding not in {None, "base64"}:
        return "the body is no text, or its body_encoding is neither absent nor base64"
    try:
        parts = json.loads(base64.b64decode(body, validate=True) if encoding else body)
    except (ValueError, RecursionError, binascii.Error):
        return "the body is not base64 of JSON" if encoding else "the body is no JSON"
    if not isinstance(parts, list) or len(parts) != _PARTS:
        return "the body is not [args, kwargs, embed]"
    if not isinstance(parts[0], list) or not isinstance(parts[1], dict) or not isinstance(parts[2], dict):
        return "the body is not [[args], {kwargs}, {embed}]"
    return None


class _Checked:
    """Put before kombu's Redis channel: an item that is no JSON is kept, and the worker reads on."""

    _kept_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's own signature
        """Keep the client that notes and acknowledges messages: kombu makes a new one for each."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # kombu's channel stands behind
        if self._kept_client is None or self._kept_client.connection_pool is not self.pool:  # type: ignore[attr-defined]  # as above
            self._kept_client = super()._create_client()  # type: ignore[misc]  # as above
        return self._kept_client

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # kombu's channel stands behind this class
        except json.JSONDecodeError as error:
            rejected(error.doc, "the message is no JSON")
        except UnicodeDecodeError as error:
            rejected(error.object, "the message is no UTF-8 text")
        except RecursionError:
            rejected("", "the message is nested too deeply")
        return True


class _CheckedDelivery:
    """Put before kombu's Redis transport: an item that is no message is kept, and the worker reads on."""

    def _deliver(self, message: Any, queue: Any) -> None:
        # Celery's own broadcasts (control, events) come this way too and are no tasks.
        if queue in _TASK_QUEUES and (reason := problem(message)):
            rejected(json.dumps(message), reason)
            return
        super()._deliver(message, queue)  # type: ignore[misc]  # kombu's transport stands behind this class


class Channel(_Checked, kombu_redis.Channel):
    """kombu's channel with the check."""


class Transport(_CheckedDelivery, kombu_redis.Transport):
    """kombu's transport with the check."""

    Channel = Channel


class SentinelChannel(_Checked, kombu_redis.SentinelChannel):
    """kombu's Sentinel channel with the check."""


class SentinelTransport(_CheckedDelivery, kombu_redis.SentinelTransport):
    """kombu's Sentinel transport with the check."""

    Channel = SentinelChannel


def install() -> None:
    """Let this process's Redis connections use the checked transports; for the worker process alone."""
    aliases = kombu.transport.TRANSPORT_ALIASES
    aliases["redis"] = aliases["rediss"] = "worker.inbox:Transport"
    aliases["sentinel"] = "worker.inbox:SentinelTransport"
