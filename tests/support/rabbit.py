"""A real RabbitMQ for a test, which is skipped if none is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ops.lab.prove import rabbit
from ops.lab.prove.rabbit import RabbitMQ
from tests.support.memory import folder_in_memory


@contextmanager
def running_rabbitmq() -> Iterator[RabbitMQ]:
    """A broker with nothing in it.

    Its files are in memory too: a disk that stands still would look like a broker that does.
    """
    if rabbit.script() is None:
        pytest.skip(rabbit.MISSING)
    with folder_in_memory() as folder, rabbit.running_rabbitmq(folder / "rabbitmq") as made:
        yield made
