"""The Celery consumer: stores messages that Celery or a task cannot handle, none ends the worker.

It serves Redis and RabbitMQ. Celery receives messages rebuilt by `envelope`; the rest go to
`refunds:rejected`.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Final

import kombu.compression
import kombu.serialization
import kombu.utils.json
from celery.exceptions import CPendingDeprecationWarning
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.consumer import Consumer

from worker.broker import envelope, inbox
from worker.broker.envelope import Unreadable
from worker.broker.names import CALLBACK_TASK, PROCESS_TASK, SUBMIT_TASK
from worker.broker.nudges import Nudges

TASKS: Final = frozenset({PROCESS_TASK, SUBMIT_TASK, CALLBACK_TASK})
"""The tasks served. Celery's own tasks (chords, maps, chunks) are not.

They send messages of their own.
"""
KEEP_AGAIN_SECONDS: Final = 5.0
LONGEST_PAUSE: Final = 10.0
"""Seconds; the longest wait before the connection to a broker that was lost again is opened again.
"""
CALM: Final = 60.0
"""Seconds without a loss after which the waits begin at none."""
_STEP: Final = 0.1
_NO_THREAD: Final = "can't start new thread"
"""What Python says if the limit of this user's or container's threads is reached."""

log = get_logger(__name__)


def read_within_bounds() -> None:
    """Limit this process's kombu to plain JSON, and to compression within bounds.

    Unlimited, kombu could fill the memory before any check, and turn JSON objects that name a type
    into dates and more.
    """
    kombu.serialization.register(
        "json", kombu.utils.json.dumps, json.loads, "application/json", "utf-8"
    )
    for name in kombu.compression.encoders():
        encoder, _ = kombu.compression.get_encoder(name)
        decoder = envelope.decompressed if name in envelope.COMPRESSIONS else _refuses(name)
        kombu.compression.register(encoder, decoder, name)


def _refuses(name: str) -> Callable[[object], bytes]:
    def refuse(_: object) -> bytes:
        raise envelope.refused_compression(name)

    return refuse


def wait(seconds: float) -> None:
    """Block the consumer, which a worker that is to stop ends at once by an exception of Celery."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state.maybe_shutdown()
        time.sleep(_STEP)


class Losses:
    """Counts losses of the broker in a row.

    A server that is full accepts each connection, and refuses its commands.
    """

    def __init__(self) -> None:
        self._count = 0
        self._latest = -math.inf

    def pause(self, now: float) -> float:
        """Return the seconds to wait after a loss at `now`.

        None after the first, then 1, 2, 4 and so on.
        """
        self._count = 0 if now - self._latest > CALM else self._count + 1
        self._latest = now
        return min(2.0 ** (self._count - 1), LONGEST_PAUSE) if self._count else 0.0


class KeepingConsumer(Consumer):  # type: ignore[misc]  # celery carries no types
    """Celery's consumer; it rebuilds each message for Celery, or keeps one it cannot understand."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # With mingle, a starting worker asks the others which messages to drop, and trusts any
        # reply.
        alone = {"without_mingle": True, "without_gossip": True}
        super().__init__(
            *arguments,
            **named | {"worker_options": {**(named.get("worker_options") or {}), **alone}},
        )
        self._losses = Losses()
        self._nudges = Nudges(self)

    def create_task_handler(self, *arguments: Any, **named: Any) -> Callable[[Any], None]:
        """Return the callback for messages of a task queue, for each new connection.

        It raises only if the broker is unavailable.
        """
        # A task in a thread tells its end to the dispatcher that its request names, and that of a
        # lost connection is closed: Flower would show the task as started for good.
        for request in list(state.requests.values()):
            request.eventer = self.event_dispatcher
        self._nudges.resume()
        handle = super().create_task_handler(*arguments, **named)
        errors = (*self.connection_errors, *self.channel_errors, OSError, MemoryError)
        # kombu lists KeyError among its connection errors.
        machine = tuple(kind for kind in errors if kind is not KeyError)
        nudges = self._nudges

        def on_message(message: Any) -> None:
            try:
                args, kwargs = _rebuild(message)
            except Unreadable as reason:
                self._refuse(message, str(reason))
                return
            try:
                if message.headers["task"] == PROCESS_TASK and nudges.take(message, args, kwargs):
                    return
                message.body = envelope.body_with(args, kwargs)
                handle(message)
            except machine:
                raise
            except Exception as error:  # noqa: BLE001 - one message must not end the worker, whatever it raises
                if _NO_THREAD in str(error):
                    # The machine's fault, not the message's. The pool may still run it: it comes
                    # twice then, which a claim makes harmless.
                    log.warning("no_thread", extra={"seconds": KEEP_AGAIN_SECONDS})
                    self.timer.call_after(KEEP_AGAIN_SECONDS, self._give_back, (message,))
                    return
                self._refuse(message, f"the message cannot be handled ({type(error).__name__})")

        return on_message

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Report the loss in one line, not as Celery's traceback (see `logs`); wait ever longer."""
        with warnings.catch_warnings():
            # At each loss Celery repeats that a later version cancels tasks by default; `queues`
            # sets it explicitly.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        pause = self._losses.pause(time.monotonic())
        log.warning(
            "broker_lost", extra={"error": f"{type(exc).__name__}: {exc}", "seconds": pause}
        )
        wait(pause)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Take from the queue and store a message whose body cannot be decompressed or decoded."""
        headers = message.headers if isinstance(message.headers, dict) else {}
        if isinstance(exc, Unreadable):
            reason = str(exc)
        elif headers.get("compression") and isinstance(exc, (LookupError, TypeError)):
            reason = str(envelope.refused_compression(headers["compression"]))
        else:
            reason = f"the message cannot be decoded ({type(exc).__name__})"
        self._refuse(message, reason)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Store the message: Celery would log its contents."""
        del body
        self._refuse(message, "not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Store the message, as `on_unknown_message` does."""
        del body, exc
        self._refuse(message, "no such task")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Store the message, as `on_unknown_message` does."""
        del body
        self._refuse(message, f"not a task message ({type(exc).__name__})")

    def _refuse(self, message: Any, reason: str) -> None:
        if inbox.rejected(_shown(message), reason):
            message.ack_log_error(log, self.connection_errors)
        else:
            # The broker is available but the records are not: the message is redelivered until it
            # can be stored.
            self.timer.call_after(KEEP_AGAIN_SECONDS, self._give_back, (message,))

    def _give_back(self, message: Any) -> None:
        if message.acknowledged:
            return
        message.reject_log_error(log, self.connection_errors, requeue=True)


def _rebuild(message: Any) -> tuple[list[Any], dict[str, Any]]:
    """Leave of a message what Celery may see, and return the args and kwargs in its body."""
    headers = envelope.headers_of(message.headers, TASKS)
    parts = envelope.parts_of(message.body, message.content_type, message.content_encoding)
    message.content_type, message.content_encoding = "application/json", "utf-8"
    message.headers, message.properties = headers, {"correlation_id": headers["id"]}
    return parts


def _shown(message: Any) -> dict[str, Any]:
    """Return the parts of a message that are stored with its rejection."""
    return {
        "body": message.body,
        "headers": message.headers,
        "content-type": message.content_type,
        "content-encoding": message.content_encoding,
    }
