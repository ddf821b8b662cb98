"""One world: a plan played out on virtual time with the real service, the real scripts and the
sandbox's rules.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from types import SimpleNamespace
from typing import Any, Final, Literal
from unittest import mock

from redis import exceptions

from tests.simulation.brakes_judge import FLAGS
from tests.simulation.chance import Chance
from tests.simulation.clock import MACHINE, OUTSIDE, Machine, VirtualLoop
from tests.simulation.files import ROWS_A_CHUNK, Files
from tests.simulation.judge import Judge
from tests.simulation.mail import VISIBILITY, Mail
from tests.simulation.odd_replies import OddReplies
from tests.simulation.others import Others
from tests.simulation.people import People
from tests.simulation.plan import Asked, Plan
from tests.simulation.power import Power, with_waits, without_waits
from tests.simulation.processes import Processes, Worker
from tests.simulation.provider_seam import ProviderSeam
from tests.simulation.records_seam import PREFIX, RawCommand, Wire, with_clock
from tests.simulation.reversals import Reversals
from tests.simulation.secrets import HEARD, LINES, listen
from tests.simulation.snapshot import SNAPSHOT
from tests.simulation.webhooks import Webhooks
from worker.batches import opening, record
from worker.model.refund import Lane
from worker.sandbox.bank import Order
from worker.store import creations, rechecks, record_time, scripts
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
_NOT_A_WRITE: Final = frozenset({"PING", "HEXISTS", "SCRIPT", "HMGET", "HGETALL", "LRANGE"})
_ID: Final = 6
_VERSION: Final = 10
"""Where a script's command carries the first argument of its own."""


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
        self.people = People(self)
        self.webhooks, self.reversals = Webhooks(self), Reversals(self)
        self.files = Files(self)
        self.processes = Processes(self, make_worker)
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
        asks = machine is not None and any(command[1] in _may_send() for command in commands)
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
        self.judge.bounds.ran(commands, results)
        if machine is not None:
            self._note_answers(commands, results, machine, flags)
        if self._tracing:
            self._tell_commands(commands, results, machine)
        if not reads_only:
            self._note_writes(commands, results)
            if self.power.is_drawn:
                self.power.wrote(sent, results)
        if len(asked) > len(commands):
            self.power.sync()
            return with_waits(asked, results)
        return results

    def _flags(self) -> Sequence[str | None]:
        """Return what holds every send back in this moment."""
        return self.wire.run([["HGET", f"{PREFIX}{key}", name] for key, name in FLAGS])

    def _note_answers(
        self,
        commands: list[RawCommand],
        results: list[Any],
        machine: Machine,
        flags: Sequence[str | None],
    ) -> None:
        for command, result in zip(commands, results, strict=True):
            if command[1] == scripts.GATE.sha and isinstance(result, list):
                self.judge.brakes.given(machine.name, result, self.judge.now_ms())
            elif _asks_about_a_claim(command):
                continue
            elif command[1] == scripts.CLAIM.sha and str(result).startswith("['behind'"):
                fact = "the server forgot nothing that was confirmed, and claims were stopped"
                self.judge.broken("behind", str(command[_ID]), fact)
            elif command[1] in _may_send() and (
                result == "" or (isinstance(result, list) and result[0] == "claimed")
            ):
                self.judge.may_send(str(command[_ID]), machine.name, flags)
            elif (
                command[1] == scripts.SAVE.sha
                and isinstance(result, list)
                and result[0] == "contradicts"
            ):
                self.judge.refunds[str(command[_ID])].late_proofs.append(machine)

    def _note_writes(self, commands: list[RawCommand], results: list[Any]) -> None:
        for command in commands:
            if command[1] == scripts.FLAG.sha or command[0] == "HDEL":
                self.breaker_is_open = command[0] != "HDEL"
        # A sweep in the same trip may have taken up at once what was given back before it.
        last, result = commands[-1], results[-1]
        if last[1] == scripts.GIVE_BACK.sha and isinstance(result, int):
            self.judge.given_back([str(refund_id) for refund_id in last[_ID:]], self.judge.now_ms())
        for event in self.changed:
            event.set()

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

    def _tell_commands(
        self, commands: list[RawCommand], results: list[Any], machine: Machine | None
    ) -> None:
        names = {script.sha: script.name for script in _scripts()}
        who = machine.name if machine else "world"
        for command, result in zip(commands, results, strict=True):
            if command[0] != "EVALSHA":
                self.tell(who, command[0])
                continue
            name = names.get(command[1], "planted")
            known = self.judge.refunds.get(str(command[6])) if command[6:7] else None
            if known is None:
                self.tell(who, name, _in_order(result) if name == "siblings" else result)
                continue
            answer = result[0] if isinstance(result, list) and result and name != "load" else ""
            kind = command[7] if name == "claim" else ""
            stored = known.record
            stand = (
                f"{stored.get('stage')} {stored.get('status')} {known.label}"
                f" v{stored.get('version')}"
            )
            self.tell(who, name, command[6], kind, answer, "=>", stand)

    def run_call(self, call: Command[Any]) -> Any:
        """Carry one call out for somebody who is no machine; his network has no faults."""
        reply = self.serve(
            [["EVALSHA", call.script.sha, 0, PREFIX, "", RETENTION_MS, *call.arguments]], None
        )[0]
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
        self.wire.load([*(script.text for script in _scripts()), SNAPSHOT])

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
        with self._virtual_time():
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
        self.fired["key_window_passed"] += len(self.judge.past_window)
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
        self._schedule()
        self._at(plan.faults_end, self._mend)
        if self.mode == "ours":
            self._turn_callbacks_on()
            self.people.begin()
            self.files.begin()
            self.seam.others.begin()
            self.power.begin()
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

    def _schedule(self) -> None:
        plan = self.plan
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
                self.judge.read_ledger()
                if self._all_ended() and not self.reversals.goes_on:
                    return

    def _all_ended(self) -> bool:
        if self.mode == "effects":
            return self.loop.time() > self.plan.faults_end + 4 * VISIBILITY
        return (
            self.files.done
            and self.webhooks.over
            and not self.judge.rechecks
            and self.judge.refunds.keys() >= {asked.request.refund_id for asked in self.plan.asked}
            and all(
                known.record["stage"] in {"settled", "review"} if known.record else not known.said
                for known in self.judge.refunds.values()
            )
        )

    def _mend(self) -> None:
        """End what still lasts of the faults: from here on the world is as it should be."""
        self.outage = None
        self.processes.let_all_go_on()

    def _at(self, when: float, what: Callable[..., object], *facts: Any) -> None:
        self.loop.call_at(when, what, *facts, context=OUTSIDE)

    def submit(self, asked: Asked) -> None:
        """Accept a refund as the producer's door does: the record first, then the nudge."""
        if self.power.is_away:
            self._at(self.loop.time() + 5.0, self.submit, asked)
            return
        request = asked.request
        if request.refund_id not in self.judge.refunds:
            self.judge.accepted(request.refund_id, request.payment_intent)
            if self.mode == "ours":
                self.people.expect(asked)
        elif not self.judge.refunds[request.refund_id].record:
            self.judge.accepted(request.refund_id, request.payment_intent, said=False)
        if self.mode == "effects":
            self.mail.nudge([request.refund_id], Lane.SINGLE)
            return
        created = self.run_call(creations.create(request, Lane.SINGLE))
        self.tell("caller", "submits", request.refund_id, created.result)
        self.judge.told(request.refund_id, 1)
        self.power.tempt()
        if created.result == "created":
            self.mail.nudge([request.refund_id], Lane.SINGLE)

    def _turn_callbacks_on(self) -> None:
        command = ["HSET", f"{PREFIX}meta", "callbacks", self.loop.wall_ms]
        self.power.wrote([command], [self.wire.one(*command)])
        self.power.sync()

    def _set_outage(self, what: str | None) -> None:
        self.outage = what
        self.tell("provider", f"outage: {what}")
        if what is not None:
            self.happens(f"outage_{what}")

    def _set_paused(self, paused: bool) -> None:  # noqa: FBT001 - a timer passes its arguments by position
        key = f"{PREFIX}meta"
        command = ["HSET", key, "paused", self.loop.wall_ms] if paused else ["HDEL", key, "paused"]
        self.power.wrote([command], [self.wire.one(*command)])
        self.power.sync()
        self.happens("paused" if paused else "resumed")

    def _note_time(self) -> None:
        if not self.power.is_away:
            self.run_call(record_time.clock())

    def _promote(self, behind: float) -> None:
        self.happens("clock_went_back", "redis")
        self.tell("redis", "another server is promoted, its clock is behind by", behind)
        for event in self.changed:
            event.set()

    def _flush_scripts(self) -> None:
        self.wire.flush_scripts()
        self.wire.load([SNAPSHOT])
        self.happens("scripts_flushed")

    def _refund_elsewhere(self, payment: str, amount: int) -> None:
        order = Order(
            payment_intent=payment, amount=amount, reason=None, metadata={}, idempotency_key=None
        )
        self.seam.bank.refund(order, settle_ms=1000)
        self.happens("refunded_elsewhere")

    @contextmanager
    def _virtual_time(self) -> Iterator[None]:
        """Put this world's clocks where the code under test and the sandbox read the machine's
        own.
        """
        loop = self.loop
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


_MODULES: Final = (scripts, rechecks, opening, record)
RETENTION_MS: Final = 400 * 86_400_000


def _scripts() -> list[scripts.Script]:
    """Return the scripts as they stand now: planted ones too."""
    return [
        value
        for module in _MODULES
        for value in vars(module).values()
        if isinstance(value, scripts.Script)
    ]


def _in_order(records: Any) -> Any:
    """Return records with their fields sorted: each server's own table has another order."""
    if not isinstance(records, list):
        return records
    return [
        sorted(zip(row[::2], row[1::2], strict=True)) if isinstance(row, list) else row
        for row in records
    ]


def _asks_about_a_claim(command: RawCommand) -> bool:
    """Tell whether a worker asks what became of a claim whose reply it lost.

    It sends nothing for the answer.
    """
    return command[1] == scripts.CLAIM.sha and str(command[_VERSION]) == "0"


def _may_send() -> tuple[str, str]:
    """Return the scripts that tell a worker that it may send, as they are now.

    A planted bug has others.
    """
    return scripts.CLAIM.sha, scripts.STANDS.sha


async def _gathered(tasks: Any) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
