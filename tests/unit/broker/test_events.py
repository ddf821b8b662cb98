"""Task events are gathered for Flower, and none is lost while others are sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.broker import events
from worker.broker.events import (
    EVENT_SECONDS,
    EVENTS_GATHERED,
    MESSAGES_KEPT,
    REST_SECONDS,
    gather,
)
from worker.broker.queues import make_celery
from worker.settings import Settings


class Producer:
    """A producer whose publish does something else first, and fails if told to."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.offered = 0
        self.retries: list[Any] = []
        self.meanwhile: list[Any] = []
        self.fails = False

    def publish(
        self,
        events: list[dict[str, Any]] | dict[str, Any],
        *,
        retry: bool,
        retry_policy: dict[str, Any],
        **_: Any,
    ) -> None:
        self.offered += 1
        self.retries.append(retry and retry_policy["max_retries"])
        together = events if isinstance(events, list) else [events]
        uuids = [event.get("uuid", event["type"]) for event in together]
        while self.meanwhile:
            self.meanwhile.pop()()
        if self.fails:
            raise ConnectionError
        self.sent.append(uuids)


class Clock:
    """The time of this process, in seconds, that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(events, "monotonic", made)
    return made


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


def test_events_that_could_not_be_sent_are_sent_before_the_next_after_a_rest(
    consumer: SimpleNamespace, clock: Clock
) -> None:
    producer = consumer.event_dispatcher.producer
    producer.fails = True
    send(consumer, "a")
    consumer.hub.turn()
    producer.fails = False
    for uuid in ("b", "c"):
        clock.now += 0.4 * REST_SECONDS
        send(consumer, uuid)
        consumer.hub.turn()
    assert producer.offered == 1
    clock.now += 0.2 * REST_SECONDS
    send(consumer, "d")
    consumer.hub.turn()
    assert producer.sent == [["a"], ["b"], ["c"], ["d"]]


def test_a_heartbeat_is_offered_once_on_a_new_connection_and_dropped_if_it_is_not_taken(
    consumer: SimpleNamespace, clock: Clock
) -> None:
    dispatcher = consumer.event_dispatcher
    dispatcher.producer.fails = True
    # Celery would try until it is taken, and read no message meanwhile.
    dispatcher.send("worker-heartbeat", retry=True)
    dispatcher.send("worker-heartbeat", retry=True)
    assert dispatcher.producer.retries == [1]
    dispatcher.producer.fails = False
    clock.now += REST_SECONDS
    dispatcher.flush()
    assert dispatcher.producer.sent == []
    dispatcher.send("worker-heartbeat", retry=True)
    assert dispatcher.producer.sent == [["worker-heartbeat"]]


def test_one_that_can_never_be_sent_holds_no_other(consumer: SimpleNamespace, clock: Clock) -> None:
    dispatcher = consumer.event_dispatcher
    send(consumer, "a")
    dispatcher.flush()
    odd: Any = [{"no": "uuid"}]
    dispatcher._outbound_buffer.append((odd, "task.multi", None))
    for uuid in ("b", "c"):
        send(consumer, uuid)
        dispatcher.flush()
        clock.now += REST_SECONDS
    dispatcher.flush()
    assert dispatcher.producer.sent == [["a"], ["b"], ["c"]]


def test_the_oldest_of_too_many_that_cannot_be_sent_are_dropped(
    consumer: SimpleNamespace, clock: Clock
) -> None:
    dispatcher = consumer.event_dispatcher
    dispatcher.producer.fails = True
    for number in range(MESSAGES_KEPT + 2):
        send(consumer, str(number))
        dispatcher.flush()
        clock.now += REST_SECONDS / 4
    assert len(dispatcher._outbound_buffer) == MESSAGES_KEPT
    dispatcher.producer.fails = False
    clock.now += REST_SECONDS
    dispatcher.flush()
    assert len(dispatcher.producer.sent) == MESSAGES_KEPT


def test_the_next_connection_sends_what_the_last_one_could_not(consumer: SimpleNamespace) -> None:
    consumer.event_dispatcher.producer.fails = True
    send(consumer, "a")
    consumer.event_dispatcher.flush()
    follower = type(consumer.event_dispatcher)(enabled=False, hostname="here")
    follower.enabled, follower.producer = True, Producer()
    follower.extend_buffer(consumer.event_dispatcher)
    follower.flush()
    assert follower.producer.sent == [["a"]]


def test_the_next_connection_sends_what_the_last_one_gathered(consumer: SimpleNamespace) -> None:
    """Tasks in threads go on ending after a connection is lost."""
    lost = consumer.event_dispatcher
    send(consumer, "a")
    lost.close()
    follower = type(lost)(enabled=False, buffer_group=["task"], hostname="here")
    follower.enabled, follower.producer = True, Producer()
    consumer.event_dispatcher = None
    lost.send("task-received", uuid="b")
    follower.extend_buffer(lost)
    follower.flush()
    assert follower.producer.sent == [["a", "b"]]


def reconnected(consumer: SimpleNamespace) -> Any:
    """Give the consumer the dispatcher of a new connection, and return it."""
    dispatcher = type(consumer.event_dispatcher)(
        enabled=False,
        buffer_group=["task"],
        hostname="here",
        on_send_buffered=consumer.on_send_event_buffered,
    )
    dispatcher.enabled, dispatcher.producer = True, Producer()
    consumer.event_dispatcher = dispatcher
    return dispatcher


def test_events_after_a_lost_connection_are_sent_at_their_time(consumer: SimpleNamespace) -> None:
    """Celery then forgets each call that its loop was to make later."""
    send(consumer, "a")
    consumer.hub.calls.clear()
    follower = reconnected(consumer)
    send(consumer, "b")
    send(consumer, "c")
    assert len(consumer.hub.calls) == 1
    consumer.hub.turn()
    assert follower.producer.sent == [["b", "c"]]


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
    dispatcher = reconnected(consumer)
    send(consumer, "a")
    consumer.hub.turn()
    assert dispatcher.producer.sent == [["a"]]


def test_without_a_connection_nothing_is_sent_at_the_time(consumer: SimpleNamespace) -> None:
    send(consumer, "a")
    consumer.event_dispatcher = None
    consumer.hub.turn()
