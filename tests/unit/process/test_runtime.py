"""What a worker makes of a broker that is away: one sentence for its log, and no traceback each time it looks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from worker.broker.queues import make_celery
from worker.errors import StoreUnavailable
from worker.model.refund import Lane
from worker.process.runtime import Runtime
from worker.settings import Settings


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    settings = Settings.load(broker_url="redis://:hunter2@127.0.0.1:1/0")
    made = Runtime(settings, make_celery(settings))
    yield made
    made._loop.close()


def test_a_queue_that_cannot_be_measured_or_nudged_names_the_broker_and_no_secret(runtime: Runtime) -> None:
    for ask in (lambda: runtime._depth(Lane.SINGLE), lambda: runtime._nudge(["order-1"], Lane.SINGLE)):
        with pytest.raises(StoreUnavailable, match=r"^the broker at 127\.0\.0\.1:1 cannot be reached") as caught:
            ask()
        assert "hunter2" not in str(caught.value)
