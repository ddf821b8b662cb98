"""The product in this world: the real service, gateway, store, gate and sweep, as `runtime` puts
them together.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from tests.simulation.provider_seam import Transport
from tests.simulation.records_seam import PREFIX, RawCommand, RedisSeam
from tests.simulation.secrets import API_KEY
from tests.simulation.trips import each_command
from worker.engine.endings import Ending
from worker.engine.eraser import erase_metadata
from worker.engine.rate_gate import RateGate
from worker.engine.service import Service
from worker.engine.slots import Slots
from worker.engine.sweeper import sweep
from worker.errors import StoreUnavailable
from worker.model.refund import Lane
from worker.provider.gateway import Gateway
from worker.store import rechecks
from worker.store.async_store import AsyncStore
from worker.store.counters import Counters
from worker.store.scripts import Command

if TYPE_CHECKING:
    from tests.simulation.clock import Machine
    from tests.simulation.world import World

T = TypeVar("T")

TASK_SECONDS: Final = 30.0
SWEEP_SECONDS: Final = 5.0
PROBE_SECONDS: Final = 15.0
LOST_NUDGE_SECONDS: Final = 15.0
ERASED_AFTER: Final = timedelta(minutes=2)
_QUEUED_EARLY: Final = 585.0
"""A queued refund may be taken so much earlier than it is due, where its queue is dry."""


_OUTCOME: Final[contextvars.ContextVar[dict[str, bool]]] = contextvars.ContextVar("outcome")
"""What became of each refund of the message in hand: whether it was begun."""


_ERASING: Final[contextvars.ContextVar[bool]] = contextvars.ContextVar("erasing", default=False)
"""Whether a call is the erasure's, which reads settled refunds and begins none."""


class _InOrder(dict[Any, None]):
    """A set of the service's that is gone through in order: a seed has to replay to the letter."""

    def add(self, one: Any) -> None:
        self[one] = None

    def discard(self, one: Any) -> None:
        self.pop(one, None)


class _NotedStore(AsyncStore):
    """The store; each call is noted when it is asked for."""

    noted: Callable[[Command[Any]], None]
    sent: Callable[[RawCommand], None]
    heard: Callable[[Command[Any], Any], None]

    async def run(self, call: Command[T]) -> T:
        self.noted(call)
        result = await super().run(call)
        self.heard(call, result)
        return result

    def raw_command(self, *commands: Command[Any]) -> RawCommand:
        raw = super().raw_command(*commands)
        for command in each_command(raw):
            self.sent(command)
        return raw


class _NotedService(Service):
    """The service; what it has in hand is written down for the judge."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        waits: Any = _InOrder()
        self._waits = waits
        self.in_hand: Counter[str] = Counter()
        self.begun: set[str] = set()
        """Of what is in hand, for what anything was asked already."""
        self.given_back: dict[str, float] = {}
        """Refund → when it was last given back."""

    async def handle(self, refund_id: str, lane: Lane, *, until: float | None = None) -> Ending:
        self.in_hand[refund_id] += 1
        begun = True
        try:
            ending = await super().handle(refund_id, lane, until=until)
            begun = ending.begun
        finally:
            self.in_hand[refund_id] -= 1
            if not self.in_hand[refund_id]:
                del self.in_hand[refund_id]
                self.begun.discard(refund_id)
            if until is not None:
                # Not what runs beside the messages, in the context of the one that woke it.
                _OUTCOME.get()[refund_id] = begun
        return ending


class OurWorker:
    """One worker process of the product."""

    def __init__(self, world: World, machine: Machine) -> None:
        plan = world.plan
        dice = random.Random(f"{plan.seed}:{machine.name}")  # noqa: S311 - repeatable, not secret
        self._world = world
        self._machine = machine
        self._changed = asyncio.Event()
        world.changed.append(self._changed)
        client: Any = RedisSeam(machine, world.serve, world.chance.draw_redis)
        store = _NotedStore(
            client,
            prefix=PREFIX,
            retention=timedelta(days=400),
            durable=False,
            address="simulated",
            monotonic=machine.clock,
        )
        store.wait_for_disk = world.power.keeps_file
        # So that positions are remembered.
        store.wants_disk = True
        http = httpx.AsyncClient(
            base_url="https://provider.test",
            transport=Transport(machine, world.seam),
            headers={
                "Accept": "application/json",
                "Authorization": f"Basic {base64.b64encode(f'{API_KEY}:'.encode()).decode()}",
            },
            follow_redirects=False,
            trust_env=False,
        )
        tally = Counters()
        tally._counts = world.tally
        self.service = _NotedService(
            store,
            Gateway(http, plan.rules, clock=machine.clock, jitter=dice.random),
            rules=plan.rules,
            slots=Slots(plan.slots, 0.7),
            gate=RateGate(store, rate=plan.rate, bulk_share=0.7, clock=machine.clock),
            clock=machine.clock,
            lease_clock=machine.clock,
            wall=lambda: machine.wall,
            jitter=dice.random,
            on_attempt=tally.attempt,
            token=lambda: f"{dice.getrandbits(64):x}",
        )
        store.noted, store.heard = self._noted, self._heard
        store.sent = partial(world.forgetting.asks, machine)
        self._sweeper: asyncio.Task[None] | None = None
        self._probe_at = 0.0
        self._early = _QUEUED_EARLY
        self._added = 0
        self._watched_at = 0.0
        self._phase = dice.random() * SWEEP_SECONDS

    def start(self) -> None:
        """Begin to sweep and to probe refused credentials."""
        self._sweeper = self._machine.spawn(self._sweeps())

    async def handle(self, refund_ids: Sequence[str], lane: Lane) -> None:
        """Take one message."""
        outcome: dict[str, bool] = {}
        _OUTCOME.set(outcome)
        began = self._machine.loop.time()
        await self.service.process(refund_ids, lane, seconds=TASK_SECONDS)
        if self._machine.ending_at is not None:
            self._judge_left(refund_ids, outcome, began)

    def _judge_left(
        self, refund_ids: Sequence[str], outcome: dict[str, bool], began: float
    ) -> None:
        for refund_id in refund_ids:
            if not outcome[refund_id] and self.service.given_back.get(refund_id, -1.0) < began:
                self._world.judge.broken(
                    "kept", refund_id, "neither begun nor given back by a worker told to end"
                )

    def _noted(self, call: Command[Any]) -> None:
        """Judge that one who was told to end begins nothing more."""
        service, machine = self.service, self._machine
        if call.script.name == "give_back":
            service.given_back.update(
                (str(refund_id), machine.loop.time()) for refund_id in call.arguments
            )
        elif call.script.name in {"load", "claim"} and not _ERASING.get():
            refund_id = str(call.arguments[0])
            # What runs on at the very moment of the signal was begun before it.
            if (
                machine.ending_at not in {None, machine.loop.time()}
                and refund_id not in service.begun
            ):
                self._world.judge.broken(
                    "began", refund_id, "begun by a worker that had been told to end"
                )
            service.begun.add(refund_id)

    def _heard(self, call: Command[Any], result: Any) -> None:
        if call.script.name == "claim":
            self._world.forgetting.confirmed(self._machine, result)

    async def end(self) -> None:
        """End in good order, as `app` and `runtime` do.

        What waits is given back, what was begun is finished.
        """
        service = self.service
        if any(refund_id not in service.begun for refund_id in service.in_hand):
            self._world.happens("terminated_while_some_waited", self._machine.name)
        service.stop()
        await self._machine.idle()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        await service.drain()
        await service.store.close()

    async def _sweeps(self) -> None:
        await asyncio.sleep(self._phase)
        forgets = self._world.plan.odd.takeover is not None
        while True:
            try:
                if self._world.plan.odd.back:
                    # For the time that it notes; elsewhere it would change nothing.
                    await self.service.store.beat(self._machine.name)
                if forgets:
                    await self.service.positions.check()
                if not self.service.stopping and not self.service.breaker.resting:
                    await self._watch()
                    taken = await sweep(
                        self.service.store,
                        nudge=self._world.mail.nudge,
                        depth=self._world.mail.depth,
                    )
                    self._early = _QUEUED_EARLY if taken else 0.0
                    await self._erase()
                if self._world.breaker_is_open and self._machine.loop.time() >= self._probe_at:
                    self._probe_at = self._machine.loop.time() + PROBE_SECONDS
                    await self.service.trouble.probe_credentials()
            except StoreUnavailable:
                # Tried again at the next turn, as the runtime's loop does.
                if forgets:
                    await asyncio.sleep(SWEEP_SECONDS)
                    continue
            await self._rest()

    async def _watch(self) -> None:
        """Let settled refunds be read again, as the runtime does before each sweep."""
        watch = self._world.plan.watch
        if watch.rungs:
            most = max(1, round(watch.rate * SWEEP_SECONDS))
            call = rechecks.watch(watch.rungs, rate=watch.rate, most=most)
            began = self._machine.loop.time()
            self._added = await self.service.store.run(call)
            self._watched_at = began

    async def _erase(self) -> None:
        """Erase metadata as `runtime` does, in the worlds that do."""
        if self.service.stopping or not self._world.plan.erases:
            return
        erasing = _ERASING.set(True)
        try:
            if await erase_metadata(self.service.store, ERASED_AFTER):
                self._world.happens("metadata_erased", self._machine.name)
        finally:
            _ERASING.reset(erasing)

    async def _rest(self) -> None:
        """Wait for the next turn; turns at which nothing could be due are passed over, as they
        would change nothing.
        """
        await asyncio.sleep(SWEEP_SECONDS)
        while not self._world.breaker_is_open:
            self._changed.clear()
            now = self._machine.loop.time()
            idle = self._next_due() - now
            if idle <= 0:
                return
            turns = math.ceil(idle / SWEEP_SECONDS)
            try:
                async with asyncio.timeout(turns * SWEEP_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                return
            # Back onto this worker's own beat.
            passed = (self._machine.loop.time() - now) % SWEEP_SECONDS
            await asyncio.sleep(SWEEP_SECONDS - passed)

    def _next_due(self) -> float:
        judge, loop = self._world.judge, self._machine.loop
        offset = judge.now_ms() - loop.time() * 1000
        # Even an empty index is looked at now and then: a refund may come that the judge has not
        # heard of.
        soonest = loop.time() + (24 * 3600.0 if self._world.reversals.days_later else 3600.0)
        if self._world.plan.watch.rungs:
            # What came due since this worker's last walk has not been found yet.
            point = self._world.reversals.next_read(self._watched_at)
            soonest = loop.time() if self._added else min(soonest, point or soonest)
        for refund_id, score in judge.due.items():
            known = judge.refunds.get(refund_id)
            at = (score - offset) / 1000
            if known is None or known.record.get("stage") == "queued":
                # Early ones that were not to be had are asked for again after the time in which a
                # nudge counts as lost.
                at = min(
                    at, at - _QUEUED_EARLY if self._early else loop.time() + LOST_NUDGE_SECONDS
                )
            soonest = min(soonest, at)
        return min((soonest, *((score - offset) / 1000 for score in judge.rechecks.values())))
