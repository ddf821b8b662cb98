"""Nudges that Redis itself queues, in the script that accepts their refunds.

They are the messages that a producer in any language sends: see `ops/docs/integration.md`. Celery
needs a round trip of its own for each, and most of the processor time of a submit.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from functools import lru_cache
from typing import Any, Final
from uuid import uuid4

from worker.broker.names import PROCESS_TASK, prefix_of_queues
from worker.model.refund import Lane
from worker.settings import Settings

_BODY: Final = json.dumps(
    [[["%s"]], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
)
_PERSISTENT: Final = 2
_UNUSED: Final[dict[str, Any]] = {
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "timelimit": [None, None],
    "parent_id": None,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
"""Headers of Celery that say nothing here."""


def queue_of(settings: Settings, lane: Lane) -> str:
    """Return the key of a lane's queue, or '' if the broker is not the server of the records."""
    if settings.broker != settings.redis_url.get_secret_value():
        return ""
    return f"{prefix_of_queues(settings.prefix)}{lane.value}"


def nudge(refund_id: str, lane: Lane) -> str:
    """Return the message that requests handling of a refund, in Celery's protocol 2."""
    # The letters of an id need no escaping in JSON.
    body = base64.b64encode((_BODY % refund_id).encode("ascii")).decode("ascii")
    parts = {"body": body, "task": str(uuid4()), "refund": refund_id}
    return _pattern(lane, os.getpid()) % parts


@lru_cache(maxsize=8)
def _pattern(lane: Lane, process: int) -> str:
    """Return a message of this process without what differs between its messages."""
    headers = {
        "lang": "py",
        "task": PROCESS_TASK,
        "id": "%(task)s",
        "root_id": "%(task)s",
        "retries": 0,
        "argsrepr": "(%(refund)s)",
        "kwargsrepr": "{}",
        "origin": f"gen{process}@{socket.gethostname()}".replace("%", "%%"),
        "ignore_result": True,
        **_UNUSED,
    }
    properties = {
        "correlation_id": "%(task)s",
        "delivery_mode": _PERSISTENT,
        "delivery_info": {"exchange": "", "routing_key": lane.value},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": "%(task)s",
    }
    return json.dumps(
        {
            "body": "%(body)s",
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )
