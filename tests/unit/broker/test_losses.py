"""How long a worker waits before it opens the connection to a lost broker again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.exceptions import WorkerShutdown
from redis.exceptions import OutOfMemoryError

from worker.broker.consumer import CALM, KeepingConsumer, Losses, wait
from worker.broker.queues import make_celery
from worker.process.logs import _Unwanted
from worker.settings import Settings


def test_the_first_loss_waits_for_nothing_and_each_further_one_longer() -> None:
    losses = Losses()
    assert [losses.pause(float(second)) for second in range(7)] == [0, 1, 2, 4, 8, 10, 10]


def test_after_a_calm_time_the_waits_begin_at_none() -> None:
    losses = Losses()
    for _ in range(3):
        losses.pause(10.0)
    assert losses.pause(10.0 + CALM) == 4
    assert losses.pause(10.0 + 2 * CALM + 1) == 0
    assert losses.pause(10.0 + 2 * CALM + 1) == 1


@pytest.mark.parametrize("losses", [1, 2])
def test_a_loss_is_one_plain_line_and_waits(
    losses: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = KeepingConsumer.__new__(KeepingConsumer)
    consumer._losses = Losses()
    consumer.connection = SimpleNamespace(collect=lambda: None)
    consumer.app = make_celery(Settings.load())
    waited: list[float] = []
    monkeypatch.setattr("worker.broker.consumer.wait", waited.append)
    for _ in range(losses):
        consumer.on_connection_error_after_connected(OutOfMemoryError("command not allowed"))
    assert waited == [0.0, 1.0][:losses]
    written = [record for record in caplog.records if _Unwanted().filter(record)]
    assert [(record.message, record.exc_info) for record in written] == [
        ("broker_lost", None)
    ] * losses
    assert vars(written[-1])["error"] == "OutOfMemoryError: command not allowed"


def test_a_stopping_worker_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery.worker.state.should_stop", 0)
    with pytest.raises(WorkerShutdown):
        wait(60.0)
    wait(0.0)
