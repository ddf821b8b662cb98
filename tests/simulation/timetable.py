"""What happens when in one world: refunds are asked for, outages and pauses begin and end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.clock import OUTSIDE
from tests.simulation.records_seam import PREFIX
from tests.simulation.snapshot import SNAPSHOT
from worker.model.refund import Lane
from worker.sandbox.bank import Order
from worker.store import creations, record_time

if TYPE_CHECKING:
    from tests.simulation.plan import Asked
    from tests.simulation.world import World


class Timetable:
    """Carries out what one world's plan has fixed, each at its time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def begin(self) -> None:
        """Plan everything."""
        plan = self._world.plan
        for asked in plan.asked:
            self._at(asked.at, self.submit, asked)
            for again in asked.again_at:
                self._at(again, self.submit, asked)
        for what, start, end in plan.outages:
            self._at(start, self._set_outage, what)
            self._at(end, self._set_outage, None)
        for start, end in plan.pauses:
            self._at(start, self._set_paused, True)
            self._at(end, self._set_paused, False)
        for when in plan.script_flushes:
            self._at(when, self._flush_scripts)
        for when, behind in plan.odd.back:
            # A worker's beats, five seconds apart: none are played here, and yet each notes the
            # time.
            self._at(when - 4.0, self._note_time)
            self._at(when, self._promote, behind)
            self._at(when + 1.0, self._note_time)
        for payment, amount, when in plan.foreign:
            self._at(when, self._refund_elsewhere, payment, amount)
        self._at(plan.faults_end, self._mend)

    def _mend(self) -> None:
        """End what still lasts of the faults: from here on the world is as it should be."""
        self._world.outage = None
        self._world.processes.let_all_go_on()

    def _at(self, when: float, what: Callable[..., object], *facts: Any) -> None:
        self._world.loop.call_at(when, what, *facts, context=OUTSIDE)

    def submit(self, asked: Asked) -> None:
        """Accept a refund as the producer's door does: the record first, then the nudge."""
        world, request = self._world, asked.request
        if world.power.is_away:
            self._at(world.loop.time() + 5.0, self.submit, asked)
            return
        if request.refund_id not in world.judge.refunds:
            world.judge.accepted(request)
            if world.mode == "ours":
                world.people.expect(asked)
        elif not world.judge.refunds[request.refund_id].record:
            world.judge.accepted(request, said=False)
        if world.mode == "effects":
            world.mail.nudge([request.refund_id], Lane.SINGLE)
            return
        created = world.run_call(creations.create(request, Lane.SINGLE))
        world.tell("caller", "submits", request.refund_id, created.result)
        world.judge.told(request.refund_id, 1)
        world.power.tempt()
        if created.result == "created":
            world.mail.nudge([request.refund_id], Lane.SINGLE)

    def _set_outage(self, what: str | None) -> None:
        self._world.outage = what
        self._world.tell("provider", f"outage: {what}")
        if what is not None:
            self._world.happens(f"outage_{what}")

    def _set_paused(self, paused: bool) -> None:  # noqa: FBT001 - a timer passes its arguments by position
        world, key = self._world, f"{PREFIX}meta"
        command = ["HSET", key, "paused", world.loop.wall_ms] if paused else ["HDEL", key, "paused"]
        world.power.wrote([command], [world.wire.one(*command)])
        world.power.sync()
        world.happens("paused" if paused else "resumed")

    def _note_time(self) -> None:
        if not self._world.power.is_away:
            self._world.run_call(record_time.clock())

    def _promote(self, behind: float) -> None:
        self._world.happens("clock_went_back", "redis")
        self._world.tell("redis", "another server is promoted, its clock is behind by", behind)
        for event in self._world.changed:
            event.set()

    def _flush_scripts(self) -> None:
        self._world.wire.flush_scripts()
        self._world.wire.load([SNAPSHOT])
        self._world.happens("scripts_flushed")

    def _refund_elsewhere(self, payment: str, amount: int) -> None:
        order = Order(
            payment_intent=payment, amount=amount, reason=None, metadata={}, idempotency_key=None
        )
        self._world.seam.bank.refund(order, settle_ms=1000)
        self._world.happens("refunded_elsewhere")
