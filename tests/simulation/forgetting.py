"""A replica is promoted that lacks what was acknowledged, and a person repairs the records.

Acceptances, claims and results of some seconds are gone, and workers remember some of them. Each
claim that a worker is granted, and each position that it asks about, is followed here: from the
moment at which one asks who remembers a lost claim, no claim may be granted until the repair.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.clock import OUTSIDE
from tests.simulation.shell import Shell
from worker.store import flags, recovery, scripts

if TYPE_CHECKING:
    from tests.simulation.records_seam import RawCommand
    from tests.simulation.world import World

SPARE: Final = timedelta(minutes=2)
"""How much earlier a person says that the loss began."""
RESUBMITTED_FOR: Final = timedelta(days=7)
NOTICED_AFTER: Final = (150.0, 300.0)
"""When a person comes: longer than a request that was under way may take."""


class Forgetting:
    """The promotion of one world, and its repair; `over` once both are done."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._promotion = world.plan.odd.promotion
        self._dice = random.Random(f"repair:{world.plan.seed}")  # noqa: S311 - repeatable, not secret
        self._granted: list[tuple[float, str]] = []
        self._lost: frozenset[str] = frozenset()
        self._is_known = False
        """Whether the server was asked by a worker that remembers a lost claim."""
        self._is_under_way = False
        self.over = self._promotion is None

    @property
    def may_stop(self) -> bool:
        """Whether claims may be stopped because some are lost."""
        return bool(self._lost)

    def begin(self) -> None:
        """Plan the promotion, if there is one."""
        if self._promotion is not None:
            self._world.loop.call_at(
                self._promotion.at, self._promote, self._promotion.lacks, context=OUTSIDE
            )

    def hears(self, commands: Sequence[RawCommand]) -> None:
        """Note whether a worker that remembers a lost claim asks the server."""
        if self._lost and not self._is_known:
            given = {str(each) for command in commands for each in command[2:]}
            self._is_known = not given.isdisjoint(self._lost)

    def answers(self, command: RawCommand, result: Any) -> None:
        """Judge a claim that is granted, and count claims that are stopped."""
        behind = isinstance(result, list) and result[:1] == ["behind"]
        if behind or (command[1] == scripts.POSITION.sha and result):
            self._world.happens("records_behind", "redis")
        if command[1] != scripts.CLAIM.sha or not isinstance(result, list):
            return
        if result[0] != "claimed" or not result[-1]:
            return
        refund_id = str(command[6])
        self._granted.append((self._world.loop.time(), str(result[-1])))
        if not self._is_under_way:
            return
        if self._is_known:
            fact = "claimed on a server that a worker knows to have forgotten claims"
            self._world.judge.broken("forgot", refund_id, fact)
        else:
            # Outside the promise: claimed before a worker that remembers more has come.
            self._world.judge.refunds[refund_id].exposed = True

    def _promote(self, lacks: float) -> None:
        world = self._world
        since = world.loop.time() - lacks
        self._lost = frozenset(position for at, position in self._granted if at > since)
        self._is_under_way = True
        if self._lost:
            world.happens("forgot_claims", "redis")
        had = {refund_id for refund_id, known in world.judge.refunds.items() if known.record}
        world.power.promote(lacks)
        if any(not world.judge.refunds[refund_id].record for refund_id in had):
            world.happens("forgot_acceptances", "redis")
        for event in world.changed:
            event.set()
        world.loop.create_task(self._repair(since), context=OUTSIDE)

    async def _repair(self, since: float) -> None:
        """Do what the runbook says: recover, submit again, compare, resume."""
        world, shell = self._world, Shell(self._world)
        await asyncio.sleep(self._dice.choice(NOTICED_AFTER))
        if self._dice.random() < 0.5:
            world.processes.kill_all()
        began = world.loop.wall - timedelta(seconds=world.loop.time() - since) - SPARE
        await shell.until_through(
            lambda store: recovery.recover(store, began, resubmitted_for=RESUBMITTED_FOR)
        )
        world.happens("recovered", "person")
        for asked in world.plan.asked:
            if asked.at <= world.loop.time():
                world.submit(asked)
        self._lost, self._is_under_way = frozenset(), False
        await shell.until_through(flags.resume)
        self.over = True
