"""The tasks: doorways from a message to the loop. No rules here.

What a task returns is what became of its refunds, in words for a person; Flower shows it, and
nothing keeps it.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery.exceptions import Reject

from worker.app import app, runtime
from worker.broker import inbox, nudges
from worker.broker.names import CALLBACK_TASK, MOST_IDS, PROCESS_TASK, SUBMIT_TASK
from worker.engine import endings
from worker.engine.records_guard import REFUSALS
from worker.errors import (
    GuardRefused,
    InvalidRequest,
    NotStorable,
    SettingsError,
    StoreUnavailable,
)
from worker.model.refund import Lane
from worker.model.request import is_refund_id

log = structlog.get_logger(__name__)


def _lane(task: Any) -> Lane:
    routing_key = (task.request.delivery_info or {}).get("routing_key")
    return Lane.BULK if routing_key == Lane.BULK.value else Lane.SINGLE


def _reject(args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> None:
    """Keep a message that cannot be understood.

    One that cannot be kept goes back to its queue, after a pause.
    """
    if not inbox.rejected((args, kwargs), reason):
        runtime.pause()
        raise Reject(reason, requeue=True)


@app.task(name=PROCESS_TASK, bind=True)
def process(self: Any, *args: Any, **kwargs: Any) -> str:
    """Look at these refunds: a nudge, args `[[refund_id, …]]`.

    The worker's consumer handles these messages without a thread (`broker.nudges`). Celery runs
    this for those that it does not take.
    """
    ids = nudges.ids_of(args, kwargs)
    if ids is None:
        _reject(args, kwargs, f"args are not [[refund_id, …]] with at most {MOST_IDS:,} ids")
        return str(endings.NO_IDS)
    return endings.summary(runtime.process(ids, _lane(self)))


@app.task(name=CALLBACK_TASK, bind=True)
def callback(_self: Any, *args: Any, **kwargs: Any) -> str:
    """Send callbacks to an endpoint: args `[name, [refund_id or batch/batch_id, …]]`."""
    name, members = args if len(args) == 2 and not kwargs else (None, None)  # noqa: PLR2004 - a pair
    if (
        not isinstance(name, str)
        or not isinstance(members, list)
        or not all(isinstance(member, str) for member in members)
    ):
        _reject(args, kwargs, "args are not [endpoint, [refund_id, …]]")
        return str(endings.NO_IDS)
    # They are begun, and not waited for: no thread of the refunds' waits for a shop.
    return f"begun: {runtime.call_back(name, members)} of {len(members)}"


@app.task(name=SUBMIT_TASK, bind=True)
def submit(self: Any, *args: Any, **kwargs: Any) -> str:
    """Accept a refund, kwargs the request's fields, and send it."""
    try:
        request = inbox.requested(args, kwargs)
    except InvalidRequest as error:
        # Logged too: the field and its rule, never what the metadata held.
        reason = "; ".join(f"{each.field}: {each.rule}" for each in error.errors)
        _reject(args, kwargs, reason)
        ending = endings.rejected(each.code for each in error.errors)
        return (
            endings.summary({kwargs["refund_id"]: ending})
            if is_refund_id(kwargs.get("refund_id"))
            else str(ending)
        )
    try:
        ending = runtime.submit(request, _lane(self))
    except NotStorable as error:
        # Waiting does not help, and each repeat of its sender would come round with it. A pause,
        # since a damaged key may concern every message.
        runtime.pause()
        _reject(args, kwargs, str(error))
        return endings.summary({request.refund_id: endings.rejected(["not_storable"])})
    except (GuardRefused, SettingsError, StoreUnavailable) as error:
        # Nothing is accepted, and the message is all there is of it.
        if not isinstance(error, REFUSALS):
            # Those were reported once by an alarm, and concern every message.
            log.warning("submit_put_back", refund_id=request.refund_id, error=str(error))
        if not runtime.send_again(request, kwargs, _lane(self)):
            raise Reject(str(error), requeue=True) from error
        return endings.summary({request.refund_id: endings.PUT_BACK})
    except Exception as error:
        # Celery acknowledges a message whose task failed, and nothing else may know of this refund.
        log.exception("submit_failed", refund_id=request.refund_id)
        _reject(args, kwargs, f"the message cannot be handled ({type(error).__name__})")
        return endings.summary({request.refund_id: endings.rejected(["internal_error"])})
    if ending is endings.CONFLICT:
        _reject(args, kwargs, f"refund {request.refund_id} exists with other contents")
    return endings.summary({request.refund_id: ending})
