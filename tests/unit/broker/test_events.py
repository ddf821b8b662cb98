"""Task events are gathered for Flower, and none is lost while others are sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.broker.events import EVENT_SECONDS, EVENTS_GATHERED, gather
from worker.broker.queues import make_celery
from worker.settings import Settings


class Producer:
    """A producer whose publish does something else first, and fails if told to."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.meanwhile: list[Any] = []
        self.fails = False

    def publish(self, events: list[dict[str, Any]], **_: Any) -> None:
        uuids = [event["uuid"] for event in events]
        while self.meanwhile:
            self.meanwhile.pop()()
        if self.fails:
            raise ConnectionError
        self.sent.append(uuids)


class Hub:
    """A loop that calls what it was given when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.after: list[float] = []

    def call_later(self, seconds: float, call: Any) -> None:
        self.after.append(seconds)
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


@pytest.fixture
def consumer() -> SimpleNamespace:
    """What `gather` needs of Celery's consumer."""
    dispatcher = make_celery(Settings.load()).events.Dispatcher(
        enabled=False, buffer_group=["task"], hostname="here"
    )
    dispatcher.enabled, dispatcher.producer = True, Producer()
    made = SimpleNamespace(event_dispatcher=dispatcher, hub=Hub(), on_send_event_buffered=None)
    gather(made)
    return made


def send(consumer: SimpleNamespace, uuid: str) -> None:
    consumer.event_dispatcher.send("task-received", uuid=uuid)


def test_events_of_a_quarter_of_a_second_are_one_message(consumer: SimpleNamespace) -> None:
    send(consumer, "a")
    send(consumer, "b")
    assert consumer.event_dispatcher.producer.sent == []
    consumer.hub.turn()
    assert consumer.event_dispatcher.producer.sent == [["a", "b"]]
    assert consumer.hub.after == [EVENT_SECONDS]


def test_an_event_of_another_thread_while_events_are_sent_is_sent_next(
    consumer: SimpleNamespace,
) -> None:
    producer = consumer.event_dispatcher.producer
    send(consumer, "a")
    # Tasks that run in a thread send theirs from there.
    producer.meanwhile.append(lambda: send(consumer, "b"))
    consumer.hub.turn()
    assert producer.sent == [["a"]]
    consumer.hub.turn()
    assert producer.sent == [["a"], ["b"]]


def test_events_that_could_not_be_sent_are_sent_with_the_next(consumer: SimpleNamespace) -> None:
    producer = consumer.event_dispatcher.producer
    send(consumer, "a")
    producer.fails = True
    consumer.hub.turn()
    producer.fails = False
    send(consumer, "b")
    consumer.hub.turn()
    assert producer.sent == [["a"], ["b"]]


def test_many_events_are_sent_before_the_time(consumer: SimpleNamespace) -> None:
    for number in range(EVENTS_GATHERED + 1):
        send(consumer, str(number))
    (first,) = consumer.event_dispatcher.producer.sent
    assert len(first) == EVENTS_GATHERED
    consumer.hub.turn()
    assert consumer.event_dispatcher.producer.sent[1] == [str(EVENTS_GATHERED)]


def test_nothing_to_send_is_not_sent(consumer: SimpleNamespace) -> None:
    send(consumer, "a")
    consumer.event_dispatcher.flush()
    consumer.hub.turn()
    assert consumer.event_dispatcher.producer.sent == [["a"]]


def test_a_new_connection_gathers_too(consumer: SimpleNamespace) -> None:
    dispatcher = type(consumer.event_dispatcher)(
        enabled=False,
        buffer_group=["task"],
        hostname="here",
        on_send_buffered=consumer.on_send_event_buffered,
    )
    dispatcher.enabled, dispatcher.producer = True, Producer()
    consumer.event_dispatcher = dispatcher
    send(consumer, "a")
    consumer.hub.turn()
    assert dispatcher.producer.sent == [["a"]]


def test_without_a_connection_nothing_is_sent_at_the_time(consumer: SimpleNamespace) -> None:
    send(consumer, "a")
    consumer.event_dispatcher = None
    consumer.hub.turn()
