"""The messages that are handled on the loop: what Celery shows of them, and when they are
acknowledged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state

from worker.broker import nudges
from worker.broker.consumer import KeepingConsumer
from worker.broker.names import MOST_IDS, PROCESS_TASK, SUBMIT_TASK
from worker.broker.nudges import Done, Nudges, ids_of
from worker.broker.queues import make_celery
from worker.model.refund import Lane
from worker.settings import Settings


class Message:
    """A message as the consumer hands it on; it notes what it is told."""

    def __init__(self, message_id: str = "m1", lane: Lane = Lane.SINGLE) -> None:
        self.headers = {"id": message_id, "task": PROCESS_TASK, "argsrepr": "(r1)"}
        self.properties = {"correlation_id": message_id}
        self.delivery_info = {"routing_key": lane.value}
        self.body = self.payload = b""
        self.content_type, self.content_encoding = "application/json", "utf-8"
        self.ended: list[str] = []
        self.acknowledged = False
        self.error: Exception | None = None

    def ack(self) -> None:
        if self.error is not None:
            raise self.error
        self.ended.append("acknowledged")

    def ack_log_error(self, *_: Any) -> None:
        self.ack()

    def reject_log_error(self, *_: Any, requeue: bool = False) -> None:
        self.ended.append(f"rejected, {requeue=}")


class Events:
    """Celery's dispatcher of events."""

    enabled = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((kind, fields))


class Consumer:
    """Celery's consumer; what is to run soon runs when the test says so."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.hostname = "worker@here"
        self.event_dispatcher = Events()
        self.connection_errors = (OSError,)
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)


class Handler:
    """In the place of the runtime: it notes what is begun, and a test ends it."""

    def __init__(self) -> None:
        self.begun: list[tuple[Sequence[str], Lane, Done]] = []
        self.received_ids: list[str] = []
        self.finished_ids: list[str] = []

    def begin(self, refund_ids: Sequence[str], lane: Lane, done: Done) -> None:
        self.begun.append((refund_ids, lane, done))

    def received(self, _consumer: Any, request: Any) -> None:
        self.received_ids.append(request.id)

    def finished(self, message_id: str) -> None:
        self.finished_ids.append(message_id)


@pytest.fixture
def handler() -> Iterator[Handler]:
    made, before = Handler(), list(nudges._handlers)
    nudges.handle_with(made)
    yield made
    nudges._handlers[:] = before
    state.reset_state()


@pytest.fixture
def consumer() -> Consumer:
    app = make_celery(Settings.load())

    @app.task(name=PROCESS_TASK)  # type: ignore[untyped-decorator]  # celery carries no types
    def process() -> None:
        """Never run: the handler takes its messages."""

    app.finalize()
    return Consumer(app)


def test_a_message_is_begun_with_its_ids_once_each_and_its_lane(
    consumer: Consumer, handler: Handler
) -> None:
    taking = Nudges(consumer)
    assert taking.take(Message(), [["r1"]], {})
    assert taking.take(Message("m2", Lane.BULK), [["r1", "r2", "r1"]], {})
    assert [(ids, lane) for ids, lane, _ in handler.begun] == [
        (["r1"], Lane.SINGLE),
        (["r1", "r2"], Lane.BULK),
    ]
    assert handler.received_ids == ["m1", "m2"]


def test_celery_shows_a_message_as_active_until_it_is_over(
    consumer: Consumer, handler: Handler
) -> None:
    Nudges(consumer).take(Message(), [["r1"]], {})
    (request,) = state.active_requests
    assert (request.id, request.info(safe=True)["args"]) == ("m1", "(r1)")
    assert state.total_count[PROCESS_TASK] == 1
    handler.begun[0][2]("r1: succeeded")
    consumer.soon.pop()()
    assert not state.active_requests
    assert not state.reserved_requests
    assert not state.requests


def test_a_message_is_acknowledged_on_celerys_thread_once_it_is_over(
    consumer: Consumer, handler: Handler
) -> None:
    message = Message()
    Nudges(consumer).take(message, [["r1"]], {})
    handler.begun[0][2]("r1: succeeded")
    assert (message.ended, handler.finished_ids) == ([], [])
    consumer.soon.pop()()
    assert (message.ended, handler.finished_ids) == (["acknowledged"], ["m1"])


def test_messages_that_end_together_are_settled_in_one_call(
    consumer: Consumer, handler: Handler
) -> None:
    taking, messages = Nudges(consumer), [Message(f"m{number}") for number in range(3)]
    for message in messages:
        taking.take(message, [["r1"]], {})
    for _, _, done in handler.begun:
        done("r1: succeeded")
    (settle,) = consumer.soon
    settle()
    assert [message.ended for message in messages] == [["acknowledged"]] * 3
    # The next one leads to another call.
    taking.take(Message("m4"), [["r1"]], {})
    handler.begun[-1][2]("r1: succeeded")
    assert len(consumer.soon) == 2


def test_a_message_whose_end_was_forgotten_with_a_lost_connection_is_settled_on_the_next_one(
    consumer: Consumer, handler: Handler
) -> None:
    # The hub drops the calls that it was to make if one of them finds the connection lost.
    taking, message = Nudges(consumer), Message()
    taking.take(message, [["r1"]], {})
    handler.begun[0][2]("r1: succeeded")
    consumer.soon.clear()
    taking.resume()
    assert (message.ended, handler.finished_ids) == (["acknowledged"], ["m1"])
    taking.take(Message("m2"), [["r1"]], {})
    handler.begun[-1][2]("r1: succeeded")
    assert len(consumer.soon) == 1


def test_each_new_connection_settles_what_ended_before_it(
    consumer: Consumer, handler: Handler
) -> None:
    connected, message = KeepingConsumer.__new__(KeepingConsumer), Message()
    connected.connection_errors, connected.channel_errors = (OSError,), ()
    connected.strategies, connected.on_task_message = {}, set()
    connected._nudges = Nudges(consumer)
    connected.event_dispatcher = consumer.event_dispatcher
    connected._nudges.take(message, [["r1"]], {})
    handler.begun[0][2]("r1: succeeded")
    consumer.soon.clear()
    connected.create_task_handler()
    assert message.ended == ["acknowledged"]


@pytest.mark.usefixtures("handler")
def test_a_task_in_a_thread_tells_its_end_on_the_next_connection(consumer: Consumer) -> None:
    connected = KeepingConsumer.__new__(KeepingConsumer)
    connected.connection_errors, connected.channel_errors = (OSError,), ()
    connected.strategies, connected.on_task_message = {}, set()
    connected._nudges = Nudges(consumer)
    request = connected._nudges._request(Message(), [["r1"]], {})
    state.task_reserved(request)
    connected.event_dispatcher = Events()
    connected.create_task_handler()
    request.send_event("task-succeeded")
    assert consumer.event_dispatcher.sent == []
    assert [kind for kind, _ in connected.event_dispatcher.sent] == ["task-succeeded"]


def test_a_message_for_which_no_thread_can_be_started_goes_back_and_is_not_refused(
    consumer: Consumer,
) -> None:
    connected, message, later = KeepingConsumer.__new__(KeepingConsumer), Message(), []
    connected.connection_errors, connected.channel_errors = (OSError,), ()
    connected.event_dispatcher, connected.on_task_message = consumer.event_dispatcher, set()
    connected.timer = SimpleNamespace(call_after=lambda _, call, args: later.append((call, args)))
    connected._nudges, connected._maximum_prefetch_restored = Nudges(consumer), True

    def strategy(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    connected.strategies = {SUBMIT_TASK: strategy}
    message.headers["task"], message.body = SUBMIT_TASK, b"[[], {}, {}]"
    connected.create_task_handler()(message)
    assert message.ended == []
    for call, args in later:
        call(*args)
    assert message.ended == ["rejected, requeue=True"]


def test_messages_that_end_together_are_all_settled_although_the_broker_is_away_for_one(
    consumer: Consumer, handler: Handler
) -> None:
    taking, messages = Nudges(consumer), [Message(f"m{number}") for number in range(3)]
    messages[0].error = BrokenPipeError()
    for message in messages:
        taking.take(message, [["r1"]], {})
    for _, _, done in handler.begun:
        done("r1: succeeded")
    with pytest.raises(BrokenPipeError):
        consumer.soon.pop()()
    taking.resume()
    assert [message.ended for message in messages] == [[], ["acknowledged"], ["acknowledged"]]
    assert handler.finished_ids == ["m0", "m1", "m2"]
    assert not state.requests
    kinds = [kind for kind, _ in consumer.event_dispatcher.sent]
    assert kinds.count("task-succeeded") == len(messages)


def test_an_acknowledgement_on_a_lost_connection_is_no_more_than_a_line_for_those_who_look(
    consumer: Consumer, handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    message = Message()
    message.error = ConnectionResetError("reset")
    Nudges(consumer).take(message, [["r1"]], {})
    handler.begun[0][2]("succeeded")
    with caplog.at_level(logging.DEBUG):
        consumer.soon.pop()()
    lines = [(line.levelname, line.exc_info) for line in caplog.records]
    assert lines == [("DEBUG", None)]
    assert handler.finished_ids == ["m1"]


def test_the_end_of_a_message_is_told_on_the_connection_of_that_moment(
    consumer: Consumer, handler: Handler
) -> None:
    Nudges(consumer).take(Message(), [["r1"]], {})
    consumer.event_dispatcher = Events()
    handler.begun[0][2]("r1: succeeded")
    consumer.soon.pop()()
    assert [kind for kind, _ in consumer.event_dispatcher.sent] == ["task-succeeded"]


def test_the_events_that_flower_needs_are_sent(consumer: Consumer, handler: Handler) -> None:
    Nudges(consumer).take(Message(), [["r1"]], {})
    handler.begun[0][2]("r1: succeeded")
    consumer.soon.pop()()
    kinds = [kind for kind, _ in consumer.event_dispatcher.sent]
    assert kinds == ["task-received", "task-started", "task-succeeded"]
    received, _, succeeded = (fields for _, fields in consumer.event_dispatcher.sent)
    assert (received["uuid"], received["name"], received["args"]) == ("m1", PROCESS_TASK, "(r1)")
    assert succeeded["result"] == "'r1: succeeded'"
    assert succeeded["runtime"] >= 0


def test_an_unforeseen_error_is_logged_and_the_message_acknowledged(
    consumer: Consumer, handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    # The sweep finds its refunds, which a message that comes again and again would not help.
    message = Message()
    Nudges(consumer).take(message, [["r1"]], {})
    handler.begun[0][2](RuntimeError("torn"))
    with caplog.at_level(logging.ERROR):
        consumer.soon.pop()()
    assert message.ended == ["acknowledged"]
    assert handler.finished_ids == ["m1"]
    assert [record.message for record in caplog.records] == ["nudge_failed"]
    failed = {"uuid": "m1", "exception": "RuntimeError", "traceback": ""}
    assert consumer.event_dispatcher.sent[-1] == ("task-failed", failed)
    assert not state.requests


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [([], {}), ([["r1"], 1], {}), (["r1"], {}), ([[1]], {}), ([["r1"]], {"x": 1}), ([[" "]], {})],
)
def test_a_message_whose_ids_cannot_be_read_goes_celerys_way(
    consumer: Consumer, handler: Handler, args: list[Any], kwargs: dict[str, Any]
) -> None:
    assert not Nudges(consumer).take(Message(), args, kwargs)
    assert handler.begun == []
    assert ids_of(args, kwargs) is None


def test_a_message_with_more_ids_than_may_be_begun_at_once_goes_celerys_way(
    consumer: Consumer, handler: Handler
) -> None:
    ids = [f"r{number}" for number in range(MOST_IDS + 1)]
    assert not Nudges(consumer).take(Message(), [ids], {})
    assert Nudges(consumer).take(Message("m2"), [ids[1:]], {})
    assert [len(begun) for begun, _, _ in handler.begun] == [MOST_IDS]


def test_a_message_that_was_revoked_goes_celerys_way(consumer: Consumer, handler: Handler) -> None:
    state.revoked.add("m1")
    assert not Nudges(consumer).take(Message(), [["r1"]], {})
    assert handler.begun == []


def test_without_a_runtime_a_message_goes_celerys_way(consumer: Consumer) -> None:
    assert not Nudges(consumer).take(Message(), [["r1"]], {})
