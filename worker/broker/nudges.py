"""Messages of `refunds.process`: handled on the worker's event loop, none of them in a thread.

Celery gives each message to a thread of its pool. That thread would only wait for the loop, and
this waiting took a quarter of a single refund's processor time. What Celery shows of a message
stays: its events, its place among the active tasks, its result; and it is acknowledged late.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, Protocol

from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request

from worker.broker.names import MOST_IDS, PROCESS_TASK
from worker.model.refund import Lane
from worker.model.request import is_refund_id

log = get_logger(__name__)

Done = Callable[[str | BaseException], None]
"""Receives what became of a message's refunds, or the error that ended their handling."""


class Handler(Protocol):
    """What handles the refunds of a message."""

    def begin(self, refund_ids: Sequence[str], lane: Lane, done: Done) -> None:
        """Begin, from Celery's thread, without waiting; `done` may be called by any thread."""

    def received(self, consumer: Any, request: Any) -> None:
        """Note a message that was read."""

    def finished(self, message_id: str) -> None:
        """Note a message that is over."""


_handlers: list[Handler] = []


def handle_with(handler: Handler) -> None:
    """Set what handles the refunds; without it Celery's pool does. The latest one set is used."""
    _handlers[:] = [handler]


def ids_of(args: Sequence[Any], kwargs: object) -> list[str] | None:
    """Return the refund ids of a message's args and kwargs.

    None if they are not `[[id, …]]`, or more than `MOST_IDS`.
    """
    ids = args[0] if len(args) == 1 and not kwargs else None
    if not isinstance(ids, list) or len(ids) > MOST_IDS:
        return None
    if not all(is_refund_id(each) for each in ids):
        return None
    return list(dict.fromkeys(ids))


class Nudges:
    """The messages of one consumer. All but `_end` runs on Celery's thread."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._over: Final[deque[tuple[Any, float, str | BaseException]]] = deque()
        self._is_called = False
        """Whether Celery's thread will soon settle the messages in `_over`."""

    def take(self, message: Any, args: list[Any], kwargs: dict[str, Any]) -> bool:
        """Begin with a message; return False if it is for Celery's own way.

        That is a message whose ids cannot be read, or that was revoked.
        """
        if not _handlers or message.headers["id"] in state.revoked:
            return False
        ids = ids_of(args, kwargs)
        if ids is None:
            return False
        request = self._request(message, args, kwargs)
        handler, started = _handlers[0], monotonic()
        state.task_reserved(request)
        handler.received(self._consumer, request)
        _send_received(request)
        request.on_accepted(os.getpid(), started)
        lane = Lane.BULK if _routing_key(message) == Lane.BULK.value else Lane.SINGLE
        handler.begin(ids, lane, lambda result: self._end(request, started, result))
        return True

    def _request(self, message: Any, args: list[Any], kwargs: dict[str, Any]) -> Request:
        consumer = self._consumer
        return Request(
            message,
            on_ack=lambda _, errors: _acknowledge(message, errors),
            on_reject=message.reject_log_error,
            app=consumer.app,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            task=consumer.app.tasks[PROCESS_TASK],
            connection_errors=consumer.connection_errors,
            body=(args, kwargs, {}),
            headers=message.headers,
            decoded=True,
        )

    def _end(self, request: Request, started: float, result: str | BaseException) -> None:
        """Note what became of a message; Celery's thread acknowledges it soon, with others."""
        self._over.append((request, started, result))
        if not self._is_called:
            self._is_called = True
            self._consumer.call_soon(self._settle)

    def resume(self) -> None:
        """Settle what ended before the broker's connection was lost.

        Celery calls this for each new connection. Where a connection is lost, its event loop
        forgets the calls that it was to make.
        """
        self._settle()

    def _settle(self) -> None:
        # First, so that a message which is added meanwhile is not forgotten.
        self._is_called = False
        while self._over:
            request, started, result = self._over.popleft()
            _handlers[0].finished(request.id)
            # As Celery's request does, but for a set of what succeeded that nothing here reads.
            state.task_ready(request)
            # The connection may be another than the one that brought the message.
            request.eventer = self._consumer.event_dispatcher
            if isinstance(result, BaseException):
                # The sweep finds its refunds, and a message that comes back would not help them.
                log.error("nudge_failed", exc_info=result)
                # The log has the rest: an event goes to everybody who listens at the broker.
                request.send_event("task-failed", exception=type(result).__name__, traceback="")
            else:
                spent = monotonic() - started
                request.send_event("task-succeeded", result=repr(result), runtime=spent)
            # Last: it raises BrokenPipeError if RabbitMQ is away, and the others wait for `resume`.
            request.acknowledge()


def _acknowledge(message: Any, errors: tuple[type[Exception], ...]) -> None:
    """Acknowledge a message.

    If its connection is lost (`errors`), it comes back, which a claim makes harmless. kombu would
    log a traceback for each message in flight.
    """
    try:
        message.ack()
    except BrokenPipeError:
        # Celery connects again.
        raise
    except errors as error:
        log.debug("acknowledgement_lost", extra={"error": f"{type(error).__name__}: {error}"})


def _routing_key(message: Any) -> object:
    return (message.delivery_info or {}).get("routing_key")


def _send_received(request: Any) -> None:
    request.send_event(
        "task-received",
        name=request.name,
        args=request.argsrepr,
        kwargs=request.kwargsrepr,
        root_id=request.root_id,
        parent_id=None,
        retries=0,
        eta=None,
        expires=None,
    )
