"""Celery's task events, which Flower shows: gathered, and sent in few messages."""

from __future__ import annotations

from typing import Any, Final

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

EVENT_SECONDS: Final = 0.25
"""How long a task event waits for others, in seconds."""
EVENTS_GATHERED: Final = 300
"""So many events are sent at once, however short their wait."""


class GatheringDispatcher(EventDispatcher):  # type: ignore[misc]  # celery carries no types
    """Celery's dispatcher; an event that comes while others are sent waits for the next message.

    Celery's own empties its buffer after a message is sent. Tasks that run in threads send their
    events from there, so one that came meanwhile would be lost, and Flower would show its task as
    running for good.
    """

    # The signature is Celery's.
    def flush(self, errors: bool = True, groups: bool = True) -> None:  # noqa: FBT001, FBT002
        """Send what waits: first what could not be sent before (`errors`), then the groups."""
        super().flush(errors=errors, groups=False)
        if not groups:
            return
        with self.mutex:
            for group, waiting in self._group_buffer.items():
                if taken := waiting.copy():
                    del waiting[: len(taken)]
                    self._publish(taken, self.producer, f"{group}.multi")


class GatheringEvents(Events):  # type: ignore[misc]  # as above
    """`app.events` with our dispatcher."""

    dispatcher_cls = GatheringDispatcher


def gather(consumer: Any) -> None:
    """Buffer task events for a quarter of a second.

    Flower needs them, and each flush is a round trip to the broker.
    """
    waiting = False

    def flush() -> None:
        nonlocal waiting
        waiting = False
        if consumer.event_dispatcher is not None:
            consumer.event_dispatcher.flush()

    def buffered() -> None:
        nonlocal waiting
        consumer.event_dispatcher.buffer_limit = EVENTS_GATHERED
        if not waiting and consumer.hub is not None:
            waiting = True
            consumer.hub.call_later(EVENT_SECONDS, flush)

    # The dispatcher that is created after a reconnect takes the callback from the consumer, and has
    # a limit of its own.
    consumer.on_send_event_buffered = buffered
    if consumer.event_dispatcher is not None:
        consumer.event_dispatcher.on_send_buffered = buffered
