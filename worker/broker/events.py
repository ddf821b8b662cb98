"""Celery's task events, which Flower shows: gathered, sent in few messages, and never waited for.

Nothing depends on an event. While the broker takes none, the latest wait for it, and the worker
goes on.
"""

from __future__ import annotations

import math
from collections import deque
from time import monotonic
from typing import Any, Final

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

EVENT_SECONDS: Final = 0.25
"""How long a task event waits for others, in seconds."""
EVENTS_GATHERED: Final = 300
"""So many events are sent at once, however short their wait."""
MESSAGES_KEPT: Final = 1000
"""So many messages of events wait for a broker that takes none; the oldest are dropped."""
REST_SECONDS: Final = 10.0
"""How long none is sent after one that could not be: each may have to wait for a time limit."""
_ONE_NEW_CONNECTION: Final = {
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
}


class GatheringDispatcher(EventDispatcher):  # type: ignore[misc]  # celery carries no types
    """Celery's dispatcher; an event that comes while others are sent waits for the next message.

    Celery's own empties its buffer after a message is sent. Tasks that run in threads send their
    events from there, so one that came meanwhile would be lost, and Flower would show its task as
    running for good. It also would offer a heartbeat until the broker takes it, and read no message
    meanwhile, and would forget what could not be sent twice.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._outbound_buffer: deque[tuple[Any, str, Any]] = deque(maxlen=MESSAGES_KEPT)
        self._rests_until = -math.inf

    def flush(self, *_: Any, **__: Any) -> None:
        """Send what waits: first what could not be sent before, then the groups."""
        kept = self._outbound_buffer
        with self.mutex:
            for group, waiting in self._group_buffer.items():
                if taken := waiting.copy():
                    del waiting[: len(taken)]
                    kept.append((taken, f"{group}.multi", None))
            while kept and not self._rests():
                event, routing_key, _ = kept.popleft()
                self._publish(event, self.producer, routing_key)

    def extend_buffer(self, other: GatheringDispatcher) -> None:
        """Take over what the dispatcher of a lost connection kept or gathered."""
        super().extend_buffer(other)
        for group, waiting in other._group_buffer.items():
            self._group_buffer[group] += waiting

    def _rests(self) -> bool:
        return monotonic() < self._rests_until

    def _publish(self, event: Any, producer: Any, routing_key: str, **_: Any) -> None:
        """Send a list of task events, or keep it for later; or an event of the worker, or drop it.

        A worker sends heartbeats again anyway.
        """
        kept = self._outbound_buffer
        if not self._rests():
            super()._publish(
                event, producer, routing_key, retry=True, retry_policy=_ONE_NEW_CONNECTION
            )
            if not kept or kept[-1][0] is not event:
                return
            # It is the last of what is kept, where it holds no other if it is to blame.
            self._rests_until = monotonic() + REST_SECONDS
            if not isinstance(event, list):
                kept.pop()


class GatheringEvents(Events):  # type: ignore[misc]  # as above
    """`app.events` with our dispatcher."""

    dispatcher_cls = GatheringDispatcher


def gather(consumer: Any) -> None:
    """Buffer task events for a quarter of a second.

    Flower needs them, and each flush is a round trip to the broker.
    """
    awaited: Any = None

    def flush() -> None:
        nonlocal awaited
        awaited = None
        if consumer.event_dispatcher is not None:
            consumer.event_dispatcher.flush()

    def buffered() -> None:
        nonlocal awaited
        dispatcher = consumer.event_dispatcher
        if dispatcher is None:
            # Between two connections, when a task in a thread may end too: the next one takes over.
            return
        dispatcher.buffer_limit = EVENTS_GATHERED
        # Celery forgets the calls that are due when a connection is lost.
        if awaited is not dispatcher and consumer.hub is not None:
            awaited = dispatcher
            consumer.hub.call_later(EVENT_SECONDS, flush)

    # The dispatcher that is created after a reconnect takes the callback from the consumer, and has
    # a limit of its own.
    consumer.on_send_event_buffered = buffered
    if consumer.event_dispatcher is not None:
        consumer.event_dispatcher.on_send_buffered = buffered
