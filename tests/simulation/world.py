"""One world: a plan played out on virtual time with the real service, the real scripts and the
sandbox's rules.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from redis import exceptions

from tests.simulation.brakes_judge import FLAGS
from tests.simulation.chance import Chance
from tests.simulation.clock import OUTSIDE, Machine, VirtualLoop
from tests.simulation.files import Files
from tests.simulation.forgetting import Forgetting
from tests.simulation.judge import Judge
from tests.simulation.mail import VISIBILITY, Mail
from tests.simulation.odd_replies import OddReplies
from tests.simulation.others import Others
from tests.simulation.people import People
from tests.simulation.plan import Plan
from tests.simulation.power import Power, with_waits, without_waits
from tests.simulation.processes import Processes, Worker
from tests.simulation.provider_seam import ProviderSeam
from tests.simulation.records_seam import PREFIX, RawCommand, Wire, with_clock
from tests.simulation.reversals import Reversals
from tests.simulation.secrets import HEARD, LINES, listen
from tests.simulation.snapshot import SNAPSHOT
from tests.simulation.timetable import Timetable
from tests.simulation.trips import Trips, each_of, every_script, may_send
from tests.simulation.virtual_time import virtual_time
from tests.simulation.webhooks import Webhooks
from worker.store import scripts
from worker.store.scripts import Command

DRAIN_SECONDS: Final = 36 * 3600.0
"""Within this after the faults have stopped, every refund is settled or in review."""
TAKEN_UP_SECONDS: Final = 60.0
LOOK_EVERY: Final = 60.0
LOOK_LATER: Final = 3 * 3600.0
CALM_AFTER: Final = 120.0
_READERS: Final = frozenset(
    {scripts.LOAD.sha, scripts.STANDS.sha, scripts.SIBLINGS.sha, scripts.GATE.sha}
)
_SNAPSHOT_SHA: Final = hashlib.sha1(SNAPSHOT.encode(), usedforsecurity=False).hexdigest()
_NOT_A_WRITE: Final = frozenset(
    {"PING", "HEXISTS", "HGET", "HGETALL", "HMGET", "LRANGE", "SCRIPT", "TIME", "ZRANGE"}
)
RETENTION_MS: Final = 400 * 86_400_000


@dataclass(kw_only=True, slots=True)
class Result:
    """What became of one seed."""

    seed: int
    violations: list[str] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)
    posts: int = 0
    hours: float = 0.0


class World:
    """Everything in one world; `run` plays it to its end or to the first violation."""

    def __init__(
        self,
        plan: Plan,
        wire: Wire,
        make_worker: Callable[[World, Machine], Worker],
        *,
        mode: Literal["ours", "effects"] = "ours",
        tracing: bool = False,
    ) -> None:
        self.plan = plan
        self.wire = wire
        self.loop = VirtualLoop()
        self.dice = random.Random(f"world:{plan.seed}")  # noqa: S311 - repeatable, not secret
        self.odd_dice = random.Random(f"odd-world:{plan.seed}")  # noqa: S311 - repeatable, not secret
        self.fired: Counter[str] = Counter()
        self.trace: list[str] = []
        self.tally: Counter[str] = Counter()
        """What workers would add to the counters themselves."""
        self.mode: Literal["ours", "effects"] = mode
        self.outage: str | None = None
        self.breaker_is_open = False
        self.changed: list[asyncio.Event] = []
        """Of each sweeper: told that due times may have changed."""
        self.chance, self.mail = Chance(self), Mail(self)
        self.seam = ProviderSeam(self.loop, plan.sandbox, self.chance.draw_call)
        self.judge = Judge(
            rules=plan.rules,
            bank=self.seam.bank,
            mode=mode,
            server_ms=lambda: self.clock_for(None),
            rate=plan.rate,
            pending_in_totals=plan.sandbox.pending_in_totals,
            lag=plan.odd.lag,
            oddly_shown=bool(plan.odd.shown),
            reads_well=plan.reads_well,
        )
        self.seam.judge, self.seam.tell, self.seam.durable_body = (
            self.judge,
            self.tell,
            self._durable_body,
        )
        self.seam.limit = plan.rules.request_timeout.total_seconds()
        self.seam.odd, self.seam.others = OddReplies(self), Others(self)
        self.power = Power(self)
        self.forgetting = Forgetting(self)
        self.people = People(self)
        self.webhooks, self.reversals = Webhooks(self), Reversals(self)
        self.files = Files(self)
        self.processes = Processes(self, make_worker)
        self.timetable = Timetable(self)
        self._trips = Trips(self)
        self._tracing = tracing

    # Telling

    def tell(self, who: str, what: str, *facts: Any) -> None:
        """Add a line to the trace."""
        if self._tracing:
            words = " ".join(str(fact) for fact in facts)
            self.trace.append(f"{self.loop.time():12.3f} {who:8} {what} {words}".rstrip())

    def happens(self, fault: str, who: str = "world") -> str:
        """Count a fault that has fired."""
        self.fired[fault] += 1
        self.tell(who, f"! {fault}")
        return fault

    @property
    def faulty(self) -> bool:
        """Whether faults may still happen."""
        return self.loop.time() < self.plan.faults_end

    # Redis

    def serve(self, commands: list[RawCommand], machine: Machine | None) -> list[Any]:
        """Carry commands out at this moment, and let the judge look where they may have written."""
        if self.power.is_away:
            raise exceptions.ConnectionError("the server is starting")
        if commands == [["PING"]]:
            return ["PONG"]
        asked, commands = commands, without_waits(commands)
        sent = with_clock(commands, self.clock_for(machine))
        asks = machine is not None and any(command[1] in may_send() for command in commands)
        flags = self._flags() if asks else ()
        reads_only = all(
            command[1] in _READERS if command[0] == "EVALSHA" else command[0] in _NOT_A_WRITE
            for command in commands
        )
        # After another server was promoted, a script that only reads is told another time, too.
        reads_only = reads_only and not self.plan.odd.back
        if reads_only or self.mode == "effects":
            results = self.wire.run(sent)
        else:
            results = self.wire.run([*sent, self._question()])
            self._judge(results.pop())
        each, answered = each_of(commands, results)
        self.judge.bounds.ran(each, answered)
        if machine is not None:
            self._trips.answered(each, answered, machine, flags)
        if self._tracing:
            self._trips.tell(each, answered, machine)
        if not reads_only:
            self._trips.wrote(each, answered)
            if self.power.keeps_file:
                self.power.wrote(sent, results)
        if len(asked) > len(commands):
            self.power.sync()
            return with_waits(asked, results)
        return results

    def _flags(self) -> Sequence[str | None]:
        """Return what holds every send back in this moment."""
        return self.wire.run([["HGET", f"{PREFIX}{key}", name] for key, name in FLAGS])

    def clock_for(self, machine: Machine | None) -> int:
        """Return the clock that a script is given: the server's own, whoever asks."""
        del machine
        now = self.loop.time()
        return self.loop.wall_ms - round(
            1000 * sum(behind for at, behind in self.plan.odd.back if at <= now)
        )

    def _question(self) -> RawCommand:
        return ["EVALSHA", _SNAPSHOT_SHA, 0, PREFIX, *self.judge.question()]

    def _judge(self, snapshot: Any) -> None:
        if isinstance(snapshot, BaseException):
            raise snapshot
        self.judge.look(snapshot)

    def run_call(self, call: Command[Any]) -> Any:
        """Carry one call out for somebody who is no machine; his network has no faults."""
        members = [len(call.arguments)] if call.script.takes_members else []
        reply = self.serve(
            [["EVALSHA", call.script.sha, 0, PREFIX, "", RETENTION_MS, *members, *call.arguments]],
            None,
        )[0]
        if members and not isinstance(reply, BaseException):
            reply = reply[0]
        if isinstance(reply, BaseException):
            if type(reply).__name__ != "NoScriptError":
                raise reply
            self.load_scripts()
            return self.run_call(call)
        if call.durable:
            self.power.sync()
        return call.read(reply)

    def look(self) -> None:
        """Let the judge look at what lies in Redis now."""
        self._judge(self.wire.run([self._question()])[0])

    def load_scripts(self) -> None:
        """Load every script, as the first to call each would."""
        self.wire.load([*(script.text for script in every_script()), SNAPSHOT])

    def _durable_body(self, refund_id: str) -> str | None:
        body: str | None = (
            self.wire.one("GET", f"{PREFIX}body:{refund_id}") if self.mode == "ours" else None
        )
        return body

    # Playing

    def run(self) -> Result:
        """Play the world and return what became of it."""
        listen(wanted=self.plan.heard)
        self.wire.one("FLUSHALL")
        self.load_scripts()
        with virtual_time(self.loop):
            asyncio.set_event_loop(self.loop)
            try:
                self.loop.run_until_complete(self.loop.create_task(self._play(), context=OUTSIDE))
                self._end_tasks()
            finally:
                asyncio.set_event_loop(None)
                self.loop.close()
        for failure in [*self.loop.failures, *HEARD]:
            self.judge.broken("error", "loop", failure)
        for line in LINES:
            self.judge.tells_no_secret("a log line", "log", line)
        self.fired["key_window_passed"] += len(self.judge.history.past_window)
        ends = Counter(
            f"{known.record.get('stage')} {known.record.get('status')}"
            for known in self.judge.refunds.values()
            if known.record or known.said
        )
        return Result(
            seed=self.plan.seed,
            violations=self.judge.violations,
            fired=self.fired,
            ends=ends,
            trace=self.trace,
            posts=sum(len(known.posts) for known in self.judge.refunds.values()),
            hours=self.loop.time() / 3600,
        )

    def _end_tasks(self) -> None:
        for machine in self.processes.machines:
            machine.kill()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(_gathered(tasks))

    async def _play(self) -> None:
        plan = self.plan
        for name, facts in plan.payments.items():
            self.seam.bank.create_payment(name, **facts)
        for _ in range(plan.machines):
            self.processes.boot()
        self.timetable.begin()
        if self.mode == "ours":
            self._turn_callbacks_on()
            self.people.begin()
            self.files.begin()
            self.seam.others.begin()
            self.power.begin()
            self.forgetting.begin()
            self.webhooks.begin()
            self.reversals.begin()
        await self._until_over()
        if not self.judge.violations or self.mode == "effects":
            self.judge.finish()
            if plan.identifies:
                self.judge.identified(self.webhooks.tampered)
        if not self.judge.violations and self.mode == "ours":
            self.judge.judge_events(self.wire.one("XRANGE", f"{PREFIX}events", "-", "+"))
            self.judge.judge_counters(self.wire.one("HGETALL", f"{PREFIX}counters"))
            self.judge.bounds.counters(self.tally)

    async def _until_over(self) -> None:
        plan, calm = self.plan, self.plan.faults_end + CALM_AFTER
        end = calm + DRAIN_SECONDS + self.reversals.horizon
        while self.loop.time() < end and (self.mode == "effects" or not self.judge.violations):
            await asyncio.sleep(LOOK_EVERY if not self.reversals.days_later else LOOK_LATER)
            if self.loop.time() >= calm and self.mode == "ours":
                for refund_id in self.judge.overdue(
                    self.judge.now_ms(), int(TAKEN_UP_SECONDS * 1000)
                ):
                    self.judge.broken("forgotten", refund_id, "due for a minute, and nobody looked")
            if self.loop.time() >= plan.faults_end and self._all_ended():
                # What is still on the wire may yet come to the ledger.
                await asyncio.sleep(2 * plan.rules.settle.total_seconds() + 60)
                self.judge.effects.read_ledger()
                if self._all_ended() and not self.reversals.goes_on:
                    return

    def _all_ended(self) -> bool:
        if self.mode == "effects":
            return self.loop.time() > self.plan.faults_end + 4 * VISIBILITY
        return (
            self.files.done
            and self.forgetting.over
            and self.webhooks.over
            and not self.judge.rechecks
            and self.judge.refunds.keys() >= {asked.request.refund_id for asked in self.plan.asked}
            and all(
                known.record["stage"] in {"settled", "review"} if known.record else not known.said
                for known in self.judge.refunds.values()
            )
        )

    def _turn_callbacks_on(self) -> None:
        command = ["HSET", f"{PREFIX}meta", "callbacks", self.loop.wall_ms]
        self.power.wrote([command], [self.wire.one(*command)])
        self.power.sync()


async def _gathered(tasks: Any) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
