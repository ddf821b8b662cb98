"""The worker processes of one world.

Started, killed, stopped and let go on, told to end, and started again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from tests.simulation.clock import FROZEN, OUTSIDE, Machine
from tests.simulation.plan import BEFALLS
from worker.model.refund import Lane

if TYPE_CHECKING:
    from tests.simulation.world import World

GRACE_SECONDS: Final = 180.0
"""After so long one who was told to end is killed, as its supervisor would."""
FROZEN_SECONDS: Final = 2000.0
"""How long a worker is stopped over a reply that people decide without in the meantime."""


class Worker(Protocol):
    """What runs on a machine."""

    async def handle(self, refund_ids: Sequence[str], lane: Lane) -> None:
        """Take one message."""

    def start(self) -> None:
        """Begin what runs beside messages."""

    async def end(self) -> None:
        """End in good order: finish what was begun, give back what was not."""


class Processes:
    """The machines of one world with what runs on each."""

    def __init__(self, world: World, make_worker: Callable[[World, Machine], Worker]) -> None:
        self.machines: list[Machine] = []
        self.workers: dict[str, Worker] = {}
        self._world = world
        self._make_worker = make_worker
        self._lives = 0

    def let_all_go_on(self) -> None:
        """Let every stopped one go on."""
        for machine in self.machines:
            if machine.stopped:
                self._go_on(machine)

    def kill_one(self) -> bool:
        """Kill one worker process; return whether there was one."""
        alive = [machine for machine in self.machines if machine.alive]
        if alive:
            self._retire(alive[0])
        return bool(alive)

    def kill_all_but(self, spared: Machine | None) -> None:
        """Kill every worker process but one, and start as many again."""
        for machine in [machine for machine in self.machines if machine.alive]:
            if machine is not spared:
                self._retire(machine)

    def freeze(self, machine: Machine, seconds: float) -> None:
        """Stop one worker process for so long."""
        machine.stop()
        self._world.loop.call_at(
            self._world.loop.time() + seconds, self._go_on, machine, context=OUTSIDE
        )

    def boot(self) -> None:
        """Start one more worker process."""
        self._lives += 1
        world, plan, dice = self._world, self._world.plan, self._world.dice
        skew = dice.uniform(-300, 300) if plan.skewed else 0.0
        if skew:
            self._world.fired["clock_skewed"] += 1
        machine = Machine(self._world.loop, f"w{self._lives}", skew=skew, befalls=self._befall)
        if self._world.faulty and dice.random() < plan.befalls_rate:
            machine.planned = {
                dice.randint(1, dice.choice((10, 40, 150))): dice.choice(BEFALLS)
                for _ in range(dice.randint(1, 2))
            }
        self.machines = [one for one in self.machines if one.alive]
        self.machines.append(machine)
        worker = self._make_worker(world, machine)
        self.workers[machine.name] = worker
        machine.context.run(worker.start)
        self._world.tell(machine.name, "starts", f"skew={skew:.0f}")

    def _befall(self, machine: Machine, where: str) -> None:
        if not self._world.faulty:
            return
        what = machine.planned[machine.points]
        self._world.happens(what, machine.name)
        self._world.fired[f"{what} {where}"] += 1
        self._world.tell(machine.name, what, where)
        if what == "killed":
            self._retire(machine)
            return
        if what == "terminated":
            if machine.ending_at is None:
                machine.ending_at = self._world.loop.time()
                machine.spawn(self._end(machine))
                self._world.loop.call_at(
                    machine.ending_at + GRACE_SECONDS, self._end_by_force, machine, context=OUTSIDE
                )
            return
        lease = self._world.plan.rules.lease.total_seconds()
        pause = self._world.dice.choice((1.0, lease / 2, lease + 5, lease + 5, lease + 120, 900.0))
        if what == FROZEN:
            pause = FROZEN_SECONDS
        if pause > lease:
            self._world.happens("stopped_past_lease", machine.name)
        self.freeze(machine, pause)

    async def _end(self, machine: Machine) -> None:
        await self.workers[machine.name].end()
        self._world.tell(machine.name, "has ended")
        self._retire(machine)

    def _end_by_force(self, machine: Machine) -> None:
        if machine.alive:
            self._world.happens("killed_after_grace", machine.name)
            self._retire(machine)

    def _retire(self, machine: Machine) -> None:
        machine.kill()
        self._world.loop.call_at(
            self._world.loop.time() + self._world.dice.choice((0.5, 5.0, 120.0)),
            self.boot,
            context=OUTSIDE,
        )

    def _go_on(self, machine: Machine) -> None:
        self._world.tell(machine.name, "goes on")
        machine.go_on()
