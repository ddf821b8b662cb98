"""What befalls each trip to Redis and each call to the provider, drawn when it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.plan import REDIS_FAULTS
from tests.simulation.provider_seam import READS, Draw

if TYPE_CHECKING:
    from tests.simulation.world import World


class Chance:
    """The dice of one world's network."""

    def __init__(self, world: World) -> None:
        self._world = world

    def draw_redis(self) -> tuple[str, float, float]:
        """Return what befalls one trip to Redis.

        A fault, the way there and the way back in seconds.
        """
        dice, plan = self._world.dice, self._world.plan
        there, back = dice.random() * 0.004, dice.random() * 0.004
        if plan.watch.lockstep:
            there = back = 0.002
        if not self._world.faulty:
            return "", there, back
        if plan.slow_redis and dice.random() < 0.2:
            self._world.happens("redis_slow")
            there, back = there + dice.random() * 2, back + dice.random() * 9
        if plan.redis_rate and dice.random() < plan.redis_rate:
            return self._world.happens(dice.choice(REDIS_FAULTS)), there, back
        return "", there, back

    def draw_call(self, method: str, body: bytes) -> Draw:
        """Return what befalls one call to the provider."""
        del body
        dice, plan = self._world.dice, self._world.plan
        connect = dice.choice((0.0, 0.01, 0.3))
        there, back, choice = dice.random() * 0.2, dice.random() * 0.2, dice.random()
        fault, late = "", 0.0
        if plan.watch.lockstep:
            connect, there, back = 0.0, 0.05, 0.05
        if self._world.faulty:
            if self._world.outage is not None:
                fault = {"refuses": "connect_refused", "hangs": "request_lost_hang"}.get(
                    self._world.outage,
                    "http_503_before" if self._world.outage == "http_503" else "http_401",
                )
            elif method == "POST" and plan.post_faults and dice.random() < plan.post_rate:
                fault = dice.choice(plan.post_faults)
            elif method == "GET" and dice.random() < plan.read_rate:
                fault = dice.choice(READS)
            if fault == "late_effect":
                # The worker holds the connection for the whole of its time limit; two settle times
                # count from its end.
                settle, held = (
                    plan.rules.settle.total_seconds(),
                    plan.rules.request_timeout.total_seconds(),
                )
                late = dice.choice(
                    (
                        dice.uniform(0, 1.9) * settle,
                        settle,
                        held + dice.uniform(1.95, 1.98) * settle,
                    )
                )
        if fault:
            self._world.happens(fault if method == "POST" else f"read_{fault}")
        if plan.list_lag and method == "GET":
            self._world.fired["list_lag"] += 1
        return Draw(
            fault=fault,
            connect=connect,
            there=there,
            back=back,
            late=late,
            lag=plan.list_lag,
            choice=choice,
        )
