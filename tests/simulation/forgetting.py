"""A server that lacks confirmed writes takes over, and a person repairs the records.

A replica was promoted that was behind, or an older copy was restored. Acceptances, claims and
results are gone, and workers remember the positions of some of these claims. What each worker must
remember is followed here by what was confirmed to it: from the moment at which one asks that
remembers a lost claim, no claim may be granted until the repair. What is claimed before that is
outside the promise.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.clock import OUTSIDE
from tests.simulation.records_seam import PREFIX
from tests.simulation.shell import Shell
from worker.store import flags, recovery, scripts

if TYPE_CHECKING:
    from tests.simulation.clock import Machine
    from tests.simulation.odd import Takeover
    from tests.simulation.records_seam import RawCommand
    from tests.simulation.world import World
    from worker.store.claims import Claim

SPARE: Final = timedelta(minutes=2)
"""How much earlier a person says that the loss began."""
RESUBMITTED_FOR: Final = timedelta(days=7)
NOTICED_AFTER: Final = (150.0, 300.0)
"""Seconds after which a person comes: more than a request under way may take."""
AWAY: Final = (1.5, 5.0, 40.0)
_FIRST: Final = 6
"""Where a script's command carries the first argument of its own."""
_NOT_NOW: Final = frozenset(
    {"early", "missing", "no_body", "stage", "stale", "unchecked", "verdict", "window"}
)
"""How a claim is refused for its refund's own sake, and no position is compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Granted:
    """A claim that a server has granted."""

    refund_id: str
    position: str
    at: float
    before: int
    """The number of commands that were written before it."""


class Forgetting:
    """The takeover of one world, and its repair."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = random.Random(f"repair:{world.plan.seed}")  # noqa: S311 - repeatable, not secret
        self._granted: list[_Granted] = []
        self._remembered: dict[str, str] = {}
        """Worker → the latest position that was confirmed to it."""
        self._asking: dict[tuple[str, ...], str] = {}
        """A worker and its question → what it remembered when it asked."""
        self._lost: frozenset[str] = frozenset()
        self._is_known = False
        """Whether a worker that remembers a lost claim has asked."""
        self._is_under_way = False
        self.over = world.plan.odd.takeover is None

    def begin(self) -> None:
        """Plan the takeover, if there is one."""
        takeover = self._world.plan.odd.takeover
        if takeover is not None:
            self._world.loop.call_at(takeover.at, self._take_over, takeover, context=OUTSIDE)

    # What workers know

    def confirmed(self, machine: Machine, claim: Claim) -> None:
        """Note what a worker learned about its claim once the write was confirmed."""
        if claim.claimed and claim.position:
            known = self._remembered.get(machine.name, "")
            self._remembered[machine.name] = max(known, claim.position, key=_rank)

    def asks(self, machine: Machine, command: RawCommand) -> None:
        """Note what a worker remembers as it sends a claim, or has its position compared."""
        if command[1] in {scripts.CLAIM.sha, scripts.POSITION.sha}:
            question = machine.name, *map(str, command[_FIRST:])
            self._asking[question] = self._remembered.get(machine.name, "")

    def answered(self, machine: Machine, command: RawCommand, result: Any) -> None:
        """Judge what a worker was answered to a claim or a comparison."""
        asks = command[1] in {scripts.CLAIM.sha, scripts.POSITION.sha}
        if not asks or isinstance(result, BaseException):
            return
        remembered = self._asking.get((machine.name, *map(str, command[_FIRST:])), "")
        if command[1] == scripts.POSITION.sha:
            self._hear(remembered)
            if result:
                self._stopped(machine.name)
            return
        refund_id, answer, position = str(command[_FIRST]), str(result[0]), str(result[-1])
        # A claim is repeated without a position, after its reply was lost.
        if answer in _NOT_NOW or (answer == "claimed" and not position):
            return
        self._hear(remembered)
        if answer == "behind":
            self._stopped(refund_id)
        elif answer == "claimed":
            self._grant(refund_id, position)

    def _hear(self, remembered: str) -> None:
        if remembered not in self._lost or self._is_known:
            return
        self._is_known = True
        counter = self._world.wire.one("HGET", f"{PREFIX}meta", "position")
        if int(counter or 0) >= _rank(remembered)[1]:
            self._world.happens("counter_caught_up", "redis")

    def _grant(self, refund_id: str, position: str) -> None:
        world = self._world
        granted = _Granted(
            refund_id=refund_id,
            position=position,
            at=world.loop.time(),
            before=world.power.written,
        )
        self._granted.append(granted)
        if self._is_known:
            fact = "claimed on a server that a worker knows to have forgotten claims"
            world.judge.broken("forgot", refund_id, fact)
        known = world.judge.refunds[refund_id]
        if self._is_under_way and known.forgotten_at is not None and not known.exposed:
            world.happens("claimed_unnoticed", "redis")
            known.exposed = True

    def _stopped(self, about: str) -> None:
        if not self._world.fired["records_behind"]:
            self._world.happens("records_behind", "redis")
        if not self._is_known:
            fact = "claims were stopped, and no worker has asked that remembers a lost one"
            self._world.judge.broken("behind", about, fact)

    # The takeover

    def _take_over(self, takeover: Takeover) -> None:
        world = self._world
        since, kept = self._cut(takeover)
        lost = [one for one in self._granted if one.before >= kept]
        self._lost = frozenset(one.position for one in lost)
        self._is_under_way = True
        if lost:
            world.happens("forgot_claims", "redis")
        for one in lost:
            world.judge.refunds[one.refund_id].forgotten_at = world.judge.now_ms()
        had = [known for known in world.judge.refunds.values() if known.record]
        world.tell("redis", "another server takes over:", world.power.written - kept, "are lost")
        world.power.start_with(kept, self._dice.choice(AWAY))
        world.judge.server_forgot()
        world.look()
        if not all(known.record for known in had):
            world.happens("forgot_acceptances", "redis")
        if takeover.frozen:
            self._freeze(takeover.frozen)
        for event in world.changed:
            event.set()
        world.loop.create_task(self._repair(since, takeover.frozen), context=OUTSIDE)

    def _cut(self, takeover: Takeover) -> tuple[float, int]:
        """Return since when, and after how many commands, everything is lost."""
        power, claims = self._world.power, self._granted[-takeover.claims :]
        if takeover.claims and claims:
            return claims[0].at, claims[0].before
        since = max(0.0, self._world.loop.time() - takeover.lacks)
        return since, power.written_until(since)

    def _freeze(self, seconds: float) -> None:
        """Freeze a worker that remembers a lost claim, and kill all others."""
        processes = self._world.processes
        knowing = [
            machine
            for machine in processes.machines
            if machine.alive
            and not machine.stopped
            and self._remembered.get(machine.name) in self._lost
        ]
        if knowing:
            self._world.tell(knowing[0].name, "is frozen for", seconds)
            processes.freeze(knowing[0], seconds)
            processes.kill_all_but(knowing[0])
            if len(processes.machines) == 1:
                processes.boot()

    # The repair

    async def _repair(self, since: float, frozen: float) -> None:
        """Do what the runbook says: recover, submit again, resume."""
        world, shell = self._world, Shell(self._world)
        await asyncio.sleep(frozen + self._dice.choice(NOTICED_AFTER))
        if self._dice.random() < 0.5:
            world.processes.kill_all_but(None)
        lost_since = world.loop.wall - timedelta(seconds=world.loop.time() - since) - SPARE
        await shell.until_through(
            lambda store: recovery.recover(store, lost_since, resubmitted_for=RESUBMITTED_FOR)
        )
        world.happens("recovered", "person")
        self._lost, self._is_known, self._is_under_way = frozenset(), False, False
        for asked in world.plan.asked:
            if asked.at <= world.loop.time():
                world.timetable.submit(asked)
        await shell.until_through(flags.resume)
        self.over = True


def _rank(position: str) -> tuple[int, int]:
    """Return the order of a position: the time of its run, and its counter."""
    if not position:
        return -1, -1
    run, counter, _ = position.split(":")
    return int(run.partition("-")[0]), int(counter)
