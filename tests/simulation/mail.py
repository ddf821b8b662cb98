"""The queue between the records and the workers: at least once, at most once, late, or never."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from celery import Celery

from tests.simulation.clock import OUTSIDE
from tests.simulation.plan import MESSAGE_FAULTS
from worker.broker import queues
from worker.model.refund import Lane

if TYPE_CHECKING:
    from tests.simulation.clock import Machine
    from tests.simulation.world import World

VISIBILITY: Final = 3600.0
"""Seconds after which the broker delivers again what was never acknowledged."""
REDELIVERED: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: a nudge that carries ids."""

    refund_ids: tuple[str, ...]
    lane: Lane


@cache
def _queue() -> Celery:
    """Return the product's own Celery app on a queue in memory, from which its messages are
    read.
    """
    settings: Any = SimpleNamespace(broker="memory://", prefix="refunds:", callbacks_file=None)
    with mock.patch.object(queues, "_broker", return_value=("memory://", {}, None)):
        return queues.make_celery(settings)


class Mail:
    """The queue of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: Counter[Lane] = Counter()
        self._celery = _queue() if world.plan.heard else None
        self._seen: set[tuple[str, ...]] = set()

    def nudge(self, refund_ids: Sequence[str], lane: Lane) -> None:
        """Put a message into the queue, which may lose, double or delay it."""
        world, dice = self._world, self._world.dice
        self._read(refund_ids, lane)
        delays = [dice.random() * 0.01]
        if world.faulty and dice.random() < world.plan.message_rate:
            match world.happens(dice.choice(MESSAGE_FAULTS)):
                case "message_lost":
                    return
                case "message_doubled":
                    delays += [
                        dice.random() * dice.choice((0.01, 2, 90))
                        for _ in range(dice.randint(1, 3))
                    ]
                case _:
                    delays = [dice.choice((dice.random() * 10, dice.random() * 600, VISIBILITY))]
        for delay in delays:
            self._send(Message(refund_ids=tuple(refund_ids), lane=lane), delay)

    def _read(self, refund_ids: Sequence[str], lane: Lane) -> None:
        """Let the judge read the message that the product makes of this, once for each."""
        if self._celery is None or (*refund_ids, lane) in self._seen:
            return
        self._seen.add((*refund_ids, lane))
        queues.nudge(self._celery, refund_ids, lane)
        with self._celery.connection_for_read() as connection:
            message = connection.default_channel._get(lane.value)
        self._world.judge.tells_no_secret("a message", refund_ids[0], json.dumps(message))
        held = json.loads(base64.b64decode(message["body"]))[0]
        if held != [list(refund_ids)]:
            self._world.judge.broken("message", refund_ids[0], f"it holds {held}")

    def depth(self, lane: Lane) -> int:
        """Return how many messages wait in a lane.

        None while somebody takes them, delayed ones are out of sight.
        """
        return self._waiting[lane]

    def _send(self, message: Message, delay: float) -> None:
        loop = self._world.loop
        loop.call_at(loop.time() + delay, self._deliver, message, context=OUTSIDE)

    def _deliver(self, message: Message) -> None:
        able = [
            machine
            for machine in self._world.processes.machines
            if machine.alive and not machine.stopped and machine.ending_at is None
        ]
        if not able:
            self._waiting[message.lane] = 1
            self._send(message, 1.0)
            return
        self._waiting[message.lane] = 0
        machine = self._world.dice.choice(able)
        machine.spawn(machine.work_on(lambda: self._received(machine, message)))

    async def _received(self, machine: Machine, message: Message) -> None:
        try:
            await machine.point("received")
            await self._world.processes.workers[machine.name].handle(
                message.refund_ids, message.lane
            )
            await machine.point("before ack")
        except asyncio.CancelledError:
            # Never acked: it comes again, at once where the broker notices, else after its
            # visibility timeout.
            if self._world.dice.random() < REDELIVERED:
                self._world.happens("message_redelivered")
                delay = self._world.dice.choice((1.0, 60.0, VISIBILITY))
                self._send(message, delay)
            raise
