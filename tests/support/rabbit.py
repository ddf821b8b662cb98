"""A real RabbitMQ for a test, which is skipped if none is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.lab.prove import rabbit
from ops.lab.prove.rabbit import RabbitMQ


@contextmanager
def running_rabbitmq(folder: Path) -> Iterator[RabbitMQ]:
    """A broker with nothing in it."""
    if rabbit.script() is None:
        pytest.skip(rabbit.MISSING)
    with rabbit.running_rabbitmq(folder) as made:
        yield made
