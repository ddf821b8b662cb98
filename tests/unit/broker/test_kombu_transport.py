"""The worker's Redis transport in Celery's event loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from worker.broker.kombu_transport import _BatchedTransport


class KombuTransport:
    """What the transport inherits, as far as the event loop asks it."""

    def __init__(self) -> None:
        self.turns = 0
        self.cycle = SimpleNamespace(on_poll_start=self._turned, fds={}, _channels={Channel()})

    def _turned(self) -> None:
        self.turns += 1

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Nothing is read here."""


class Channel:
    """An open channel."""

    def settle(self) -> None:
        """It has nothing to acknowledge."""


class Transport(_BatchedTransport, KombuTransport):
    """The worker's part over the stand-in."""


def turned(loop: Any) -> None:
    for call in set(loop.on_tick):
        call()


def test_a_connection_that_was_closed_leaves_nothing_in_the_event_loop() -> None:
    loop = SimpleNamespace(on_tick=set(), readers={})
    lost, open_now = Transport(), Transport()
    lost.register_with_event_loop(None, loop)
    turned(loop)
    lost.cycle._channels.clear()
    open_now.register_with_event_loop(None, loop)
    turned(loop)
    turned(loop)
    assert len(loop.on_tick) == 1
    assert (lost.turns, open_now.turns) == (1, 2)
