"""How much of a file one worker takes: counted on Celery's side of it, message by message."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from worker.broker.bulk_prefetch import HELD_SECONDS, BulkIntake
from worker.broker.names import BULK_IDS
from worker.broker.queues import make_celery
from worker.model.refund import Lane
from worker.process.runtime import TASK_SECONDS, Runtime
from worker.settings import Settings


class Reader:
    """Celery's consumer, as far as the intake asks it: whether it reads the queue of files."""

    def __init__(self) -> None:
        self.reading = {lane.value for lane in Lane}
        self.auto_declare = True
        self.task_consumer: Reader | None = self
        self.on_message = print

    def cancel_by_queue(self, name: str) -> None:
        self.reading.discard(name)

    def consuming_from(self, name: str) -> bool:
        return name in self.reading

    def add_queue(self, queue: Any) -> None:
        self.reading.add(queue.name)

    def consume(self) -> None:
        """Nothing is read here."""

    def call_soon(self, call: Callable[[], None]) -> None:
        call()


class LaterReader(Reader):
    """A reader whose event loop makes its calls when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)


def intake_of(**settings: Any) -> BulkIntake:
    """The intake of a worker with these settings."""
    chosen = Settings.load(**settings)
    runtime = Runtime(chosen, make_celery(chosen))
    runtime._loop.close()
    return runtime.intake


def read(intake: BulkIntake, reader: Reader, begin: int = 0) -> int:
    """Hand in messages of files for as long as the worker reads their queue; return how many."""
    count = 0
    while reader.consuming_from(Lane.BULK.value):
        intake.received(reader, bulk_message(f"m{begin + count}"))
        count += 1
    return count


@pytest.mark.parametrize("rate", [5, 10, 20])
def test_under_a_slow_rate_no_more_of_a_file_is_held_than_a_task_can_begin(rate: float) -> None:
    intake, reader = intake_of(rate_limit=rate), Reader()
    begun = rate * TASK_SECONDS
    held = read(intake, reader) * BULK_IDS
    assert begun / 2 < held <= begun
    # With each message that is done one more is read.
    intake.finished("m0")
    assert read(intake, reader, begin=held) == 1


def test_under_the_slowest_rate_one_message_is_held() -> None:
    assert read(intake_of(rate_limit=0.1), Reader()) == 1


@pytest.mark.parametrize("rate", [0, 300])
def test_where_the_rate_allows_it_enough_is_held_to_keep_the_slots_busy(rate: float) -> None:
    assert read(intake_of(rate_limit=rate, concurrency=64), Reader()) == 7
    assert read(intake_of(rate_limit=rate, concurrency=201), Reader()) == 9


def bulk_message(message_id: str) -> SimpleNamespace:
    return SimpleNamespace(id=message_id, delivery_info={"routing_key": Lane.BULK.value})


def test_reading_ends_after_a_message_is_handed_over_and_not_within() -> None:
    # A worker that stops cancels its queues one by one, and RabbitMQ delivers messages meanwhile.
    intake, reader = intake_of(rate_limit=0.1), LaterReader()
    intake.received(reader, bulk_message("m0"))
    assert reader.consuming_from(Lane.BULK.value)
    reader.soon.pop()()
    assert not reader.consuming_from(Lane.BULK.value)


def test_reading_goes_on_if_the_message_ends_before_reading_was_to_end() -> None:
    intake, reader = intake_of(rate_limit=0.1), LaterReader()
    intake.received(reader, bulk_message("m0"))
    intake.finished("m0")
    for call in reader.soon:
        call()
    assert reader.consuming_from(Lane.BULK.value)


def test_a_worker_that_has_stopped_reads_no_queue_whose_reading_could_end() -> None:
    intake, reader = intake_of(rate_limit=0.1), LaterReader()
    intake.received(reader, bulk_message("m0"))
    reader.task_consumer = None
    (call,) = reader.soon
    call()
    assert reader.consuming_from(Lane.BULK.value)


def test_what_is_held_without_end_is_forgotten_in_time() -> None:
    now = [0.0]
    chosen = Settings.load()
    intake = BulkIntake(
        make_celery(chosen), 64, rate=chosen.rate_limit, seconds=TASK_SECONDS, clock=lambda: now[0]
    )
    reader = Reader()
    held = read(intake, reader)
    now[0] = HELD_SECONDS
    intake.resume()
    assert not reader.consuming_from(Lane.BULK.value)
    now[0] += 0.1
    intake.resume()
    assert read(intake, reader, begin=held) == held


def test_single_refunds_are_read_on_whatever_is_held() -> None:
    intake, reader = intake_of(rate_limit=5), Reader()
    read(intake, reader)
    for number in range(20):
        intake.received(
            reader,
            SimpleNamespace(id=f"s{number}", delivery_info={"routing_key": Lane.SINGLE.value}),
        )
    assert reader.reading == {Lane.SINGLE.value}
