"""Prefetch limit for bulk messages.

Enough to keep a worker's slots busy, but never so many that a single one waits.

Each message in progress takes the place of a single refund's. Files arrive in floods. At the limit
the worker stops reading the bulk queue, and it resumes when a message is done. The limit is lower
under a slow rate, because refunds that a task cannot begin in its lifetime are returned to the
queue and delivered again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

from celery import Celery

from worker.broker.names import BULK_IDS
from worker.broker.queues import VISIBILITY_SECONDS
from worker.model.refund import Lane

MESSAGES_BEYOND_SLOTS: Final = 6
"""Extra messages that keep the slots busy until a stopped queue is read again."""


HELD_SECONDS: Final = float(VISIBILITY_SECONDS)
"""A message held for longer is not counted.

Its end went unreported, or the broker delivers it to another worker.
"""


def most_held(concurrency: int, *, rate: float, seconds: float) -> int:
    """Return the bulk prefetch limit.

    The messages that a worker can begin in a task's `seconds`, at least one.

    `rate` is shared by all workers, 0 for no limit: each holds at most what it could begin if it
    were alone.
    """
    most = math.ceil(concurrency / BULK_IDS) + MESSAGES_BEYOND_SLOTS
    return most if rate <= 0 else max(1, min(most, math.floor(rate * seconds / BULK_IDS)))


class BulkIntake:
    """Stops and resumes reading the bulk queue.

    `received` runs on Celery's own thread, `finished` on any.
    """

    def __init__(
        self,
        celery: Celery,
        concurrency: int,
        *,
        rate: float,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = most_held(concurrency, rate=rate, seconds=seconds)
        self._celery = celery
        self._clock = clock
        self._held: dict[str, float] = {}
        self._consumer: Any = None

    def received(self, consumer: Any, request: Any) -> None:
        """Count a message that was just read."""
        if (request.delivery_info or {}).get("routing_key") != Lane.BULK.value:
            return
        self._consumer = consumer
        self._held[request.id] = self._clock()
        if self._is_full():
            # Not here: while Celery itself stops reading, RabbitMQ still delivers messages, and
            # the list of queues must not change under Celery's hands.
            consumer.call_soon(self._read_no_more)

    def finished(self, task_id: str) -> None:
        """Stop counting a message whose task is over, and resume reading."""
        if task_id in self._held:
            self._held.pop(task_id, None)
            self.resume()

    def resume(self) -> None:
        """Resume reading if the limit allows.

        Each heartbeat calls this too, in case an event was missed.
        """
        if self._consumer is not None and not self._is_full():
            self._consumer.call_soon(self._read_on)

    def _is_full(self) -> bool:
        if len(self._held) < self.most:
            return False
        since = self._clock() - HELD_SECONDS
        for task_id, received in list(self._held.items()):
            if received < since:
                self._held.pop(task_id, None)
        return len(self._held) >= self.most

    def _read_no_more(self) -> None:
        reader = self._consumer.task_consumer
        if reader is not None and self._is_full():
            reader.cancel_by_queue(Lane.BULK.value)

    def _read_on(self) -> None:
        reader = self._consumer.task_consumer
        if reader is None or reader.on_message is None:
            return
        if self._is_full() or reader.consuming_from(Lane.BULK.value):
            return
        # The queue was declared on connecting; repeating that costs round trips, a tenth of the
        # cost of a file's row.
        declares, reader.auto_declare = reader.auto_declare, False
        reader.add_queue(self._celery.amqp.queues[Lane.BULK.value])
        reader.auto_declare = declares
        reader.consume()
