"""The clocks of one world, where the code under test and the sandbox read the machine's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, tzinfo
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.simulation.clock import MACHINE
from tests.simulation.files import ROWS_A_CHUNK

if TYPE_CHECKING:
    from tests.simulation.clock import VirtualLoop


@contextmanager
def virtual_time(loop: VirtualLoop) -> Iterator[None]:
    """Let everything read the clocks of one world."""
    clock = SimpleNamespace(time=lambda: loop.wall_ms / 1000, monotonic=loop.time)

    class Now(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            """Return the time as the machine at work believes it to be."""
            machine = MACHINE.get()
            return (machine.wall if machine is not None else loop.wall).astimezone(tz or UTC)

    with ExitStack() as stack:
        for module in ("bank", "ledger", "endpoints"):
            stack.enter_context(mock.patch(f"worker.sandbox.{module}.time", clock))
        stack.enter_context(mock.patch("worker.provider.transport.datetime", Now))
        stack.enter_context(mock.patch("worker.client.CHUNK", ROWS_A_CHUNK))
        yield
