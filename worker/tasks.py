"""The tasks: doorways from a message to the loop. No rules here."""

from __future__ import annotations

import json
from typing import Any

from worker import inbox
from worker.app import app, runtime
from worker.broker import PROCESS_TASK, SUBMIT_TASK
from worker.errors import InvalidRequest
from worker.model import Lane
from worker.request import is_refund_id


def _lane(task: Any) -> Lane:
    routing_key = (task.request.delivery_info or {}).get("routing_key")
    return Lane.BULK if routing_key == Lane.BULK.value else Lane.SINGLE


@app.task(name=PROCESS_TASK, bind=True)
def process(self: Any, *args: Any, **kwargs: Any) -> None:
    """Look at these refunds: a nudge, args `[[refund_id, …]]`."""
    ids = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(ids, list) or not all(is_refund_id(refund_id) for refund_id in ids):
        inbox.rejected(json.dumps([args, kwargs]), "args are not [[refund_id, …]]")
        return
    runtime.process(list(dict.fromkeys(ids)), _lane(self))


@app.task(name=SUBMIT_TASK, bind=True)
def submit(self: Any, *args: Any, **kwargs: Any) -> None:
    """Accept a refund, kwargs the request's fields, and send it."""
    try:
        request = inbox.requested(args, kwargs)
    except InvalidRequest as error:
        # Logged too: the field and its rule, never what the metadata held.
        reason = "; ".join(f"{each.field}: {each.rule}" for each in error.errors)
        inbox.rejected(json.dumps([args, kwargs]), reason)
        return
    if runtime.submit(request, _lane(self)) == "conflict":
        inbox.rejected(json.dumps([args, kwargs]), f"refund {request.refund_id} exists with other contents")
