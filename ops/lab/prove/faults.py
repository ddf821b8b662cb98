"""What is done to workers, their clocks and their queues.

Each fault hurts a rig and returns how often it fired.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from random import Random
from typing import Any, Final

from ops.lab.prove.leaks import POISON_CANARY
from ops.lab.prove.rig import LATE_EFFECT, LATENCY_MS, LEASE, SETTLE, Rig, RigError, Worker
from worker.model.refund import Lane
from worker.rules.attempts import Rules

SLOW_MS: Final = 350
_ROUNDS: Final = 60
_LIVES: Final = 5
_SOON: Final = 30.0
_IN_FLIGHT: Final = 6
_OTHERS_ARE_DONE: Final = 8.0
_RESTART_SECONDS: Final = 1.0
"""What a supervisor pauses before it starts a worker again."""

Inject = Callable[[Rig, Random], int]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault by name; `control` is the way the control suffers it, None where it has no such
    thing.
    """

    name: str
    ours: Inject
    control: Inject | None
    fsync: str = "always"
    settings: dict[str, str] = field(default_factory=dict)

    def inject(self, rig: Rig, dice: Random) -> int:
        """Hurt the rig; return how often the fault fired."""
        way = self.ours if rig.subject.is_ours else self.control
        return 0 if way is None else way(rig, dice)


def both(name: str, inject: Inject, **options: Any) -> Fault:
    """Return a fault that both subjects suffer in the same way."""
    return Fault(name=name, ours=inject, control=inject, **options)


# Workers


def _is_over(worker: Worker) -> bool:
    return not worker.alive


def crash(point: str) -> Inject:
    """Return the fault that a further worker is killed when it reaches a named point of an
    attempt.
    """

    def inject(rig: Rig, dice: Random) -> int:
        if point == "sent":
            rig.sandbox.set_modes(latency_ms=SLOW_MS)
        if point == "half read":
            rig.sandbox.set_faults("slow_drip_after:seconds=0.6")
        after = dice.randint(1, 4)
        for _ in range(_LIVES):
            worker = rig.launch(point=point, after=after)
            died = fed_until(rig, partial(_is_over, worker))
            if not died or worker.process.returncode == -signal.SIGKILL:
                break
            # Beside another fault it may have found no Redis at its start and ended: its supervisor
            # would try again.
            worker.expected = True
            # That pause is the fault's own; there is nothing to be awaited in it.
            time.sleep(_RESTART_SECONDS)
        if point == "half read":
            rig.sandbox.set_faults("")
        if point == "sent":
            rig.sandbox.set_modes(latency_ms=LATENCY_MS)
        worker.expected = died
        rig.kills.append(time.time())
        return int(died and worker.process.returncode == -signal.SIGKILL)

    return inject


def killed_when(spec: str) -> Inject:
    """Return the fault that all workers are killed while a fault of the provider holds one of their
    requests.
    """

    def inject(rig: Rig, _dice: Random) -> int:
        rig.sandbox.set_faults(spec)
        held = fed_until(rig, lambda: _fired(rig) > 0)
        victims = rig.alive
        for worker in victims:
            rig.kill(worker)
        rig.sandbox.set_faults("")
        rig.supervise()
        return len(victims) if held else 0

    return inject


def sigkill(rig: Rig, dice: Random) -> int:
    """Kill one worker of those that run, whatever it does."""
    rig.feed(5)
    rig.kill(dice.choice(rig.alive))
    return 1


def killed_with_claims(rig: Rig, _dice: Random) -> int:
    """Kill a worker that has refunds in flight.

    Return how many nobody has taken from it a while later.
    """
    rig.sandbox.set_modes(latency_ms=SLOW_MS)
    fed_until(rig, lambda: rig.sending() > _IN_FLIGHT)
    rig.kill(rig.alive[0])
    rig.sandbox.set_modes(latency_ms=LATENCY_MS)
    time.sleep(_OTHERS_ARE_DONE)
    return rig.sending()


def sigterm(rig: Rig, _dice: Random) -> int:
    """End a worker in good order while it sends: it must finish and say so."""
    rig.sandbox.set_modes(latency_ms=SLOW_MS)
    worker = rig.alive[0]
    busy = fed_until(rig, lambda: rig.sending() > 0)
    worker.expected = True
    worker.signal(signal.SIGTERM)
    code = worker.process.wait(_SOON)
    rig.sandbox.set_modes(latency_ms=LATENCY_MS)
    # Beside another fault it may have been killed meanwhile.
    if rig.subject.is_ours and code not in {0, -signal.SIGKILL}:
        raise RigError(f"a worker told to stop ended with {code}")
    return int(busy)


def sigstop(rig: Rig, _dice: Random) -> int:
    """Stop a worker while it sends, let its leases lapse and others do its work, then let it go
    on.
    """
    rig.sandbox.set_modes(latency_ms=SLOW_MS)
    worker = rig.alive[0]
    busy = fed_until(rig, lambda: rig.sending() > 0)
    worker.stopped = True
    worker.signal(signal.SIGSTOP)
    rig.sandbox.set_modes(latency_ms=LATENCY_MS)
    _outlast(rig, worker)
    return int(busy)


def stopped_before_bytes(rig: Rig, dice: Random) -> int:
    """Stop workers between their last look at the clock and the first byte, for longer than any
    lease.
    """
    victims = [
        rig.launch(point="before bytes", after=dice.randint(1, 4), stop=True) for _ in range(2)
    ]
    fed_until(rig, lambda: all(_is_stopped(worker) for worker in victims))
    stopped = [worker for worker in victims if _is_stopped(worker)]
    _outlast(rig, *stopped)
    for worker in victims:
        worker.expected = True
        worker.signal(signal.SIGTERM)
    return len(stopped)


def _outlast(rig: Rig, *workers: Worker) -> None:
    """Wait until the others have taken over and ended what stopped workers held, then let them go
    on.
    """
    time.sleep(LEASE + 2 * SETTLE)
    rig.within(rig.settled, 2 * _SOON)
    for worker in workers:
        worker.signal(signal.SIGCONT)
    time.sleep(SETTLE)


def _is_stopped(worker: Worker) -> bool:
    pid = worker.process.pid
    found = (
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) if worker.alive else None
    )
    return found is not None


def fed_until(rig: Rig, condition: Callable[[], bool]) -> bool:
    """Hand refunds in, a few at a time, until a condition holds; return whether it came to that."""
    for _ in range(_ROUNDS):
        if condition():
            return True
        rig.feed(4)
        if rig.within(condition, 0.5):
            return True
    return False


def _fired(rig: Rig) -> int:
    return sum(fault["fired"] for fault in rig.sandbox.faults()["faults"])


# Clocks


def skewed(rig: Rig, dice: Random) -> int:
    """See that both workers' clocks are five minutes wrong, then let one be killed and the provider
    stumble.
    """
    shifted = [worker for worker in rig.alive if abs(_first_moment(worker) - rig.started) > 200]  # noqa: PLR2004 - seconds, of the 300 asked for
    if len(shifted) < len(rig.alive):
        raise RigError("the workers' clocks are right")
    rig.sandbox.set_faults(
        "timeout_after:n=3:times=2,reset_before:n=5:times=2,http_500_after:n=7:times=2"
    )
    fed_until(rig, lambda: _fired(rig) > 5)  # noqa: PLR2004 - all six
    sigkill(rig, dice)
    rig.sandbox.set_faults("")
    return len(shifted)


def _first_moment(worker: Worker) -> float:
    for line in worker.log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            return datetime.fromisoformat(json.loads(line)["at"]).timestamp()
    raise RigError("a worker logged nothing")


# Queues


def duplicated(rig: Rig, dice: Random) -> int:
    """Put each message of a moment into its queue 2 to 20 times at once."""
    copies = 0
    with rig.frozen():
        rig.feed(12)
        for lane in Lane:
            for raw in rig.asking(partial(rig.redis.lrange, lane.value, 0, -1)):
                whole = json.loads(raw)
                for _ in range(dice.randint(1, 19)):
                    whole["properties"]["delivery_tag"] = dice.randbytes(8).hex()
                    rig.asking(partial(rig.redis.lpush, lane.value, json.dumps(whole)))
                    copies += 1
    return copies


def lost(rig: Rig, _dice: Random) -> int:
    """Lose every message of a moment."""
    with rig.frozen():
        rig.feed(12)
        gone = sum(int(rig.asking(partial(rig.redis.llen, lane.value))) for lane in Lane)
        rig.asking(lambda: rig.redis.delete(*(lane.value for lane in Lane)))
    return gone


def message(task: str, args: list[object], kwargs: dict[str, object]) -> str:
    """Return a task message as a producer in any language would push it."""
    body = json.dumps(
        [args, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    )
    identity = os.urandom(8).hex()
    whole = {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "php", "task": task, "id": identity, "root_id": identity},
        "properties": {
            "correlation_id": identity,
            "delivery_mode": 2,
            "delivery_tag": os.urandom(8).hex(),
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "refunds"},
        },
    }
    return json.dumps(whole)


POISON: Final = (
    b"{not json",
    b"\xff\xfe\x00",
    b'{"hello": "world"}',
    b"[1, 2]",
    b"[" * 50_000,
    message("refunds.process", [["x"]], {}).replace('"body": "', '"body": "!!').encode(),
    message("refunds.process", [{"x": 1}], {}).encode(),
    message("refunds.process", [["a b"]], {}).encode(),
    message("refunds.submit", [], {"refund_id": "bad id", "payment_intent": "pi_1"}).encode(),
    message(
        "refunds.submit", [], {"refund_id": "a", "payment_intent": POISON_CANARY, "amount": 1.5}
    ).encode(),
)


def poisoned(rig: Rig, _dice: Random) -> int:
    """Put messages that nobody can understand into both queues.

    The product must keep each with its reason.
    """
    return _pushed(rig, POISON)


def foreign(rig: Rig, _dice: Random) -> int:
    """Put another application's tasks into both queues."""
    return _pushed(rig, [message("somebody.elses.task", [1], {"x": 2}).encode() for _ in range(3)])


def _pushed(rig: Rig, messages: Any) -> int:
    def rejected() -> int:
        return int(rig.asking(lambda: rig.redis.llen("refunds:rejected")))

    def disturbed() -> tuple[str, int]:
        facts: Any = rig.asking(lambda: rig.redis.info("server"))
        return facts["run_id"], sum(rig.to_redis.fired.values())

    before, lives, pushed = rejected(), disturbed(), 0
    whole = [(lane, raw) for raw in messages for lane in Lane]
    for _ in range(_LIVES):
        for lane, raw in whole:
            rig.asking(partial(rig.redis.lpush, lane.value, raw))
            pushed += 1
        if not rig.subject.is_ours or rig.within(lambda: rejected() >= before + len(whole), _SOON):
            return pushed
        if disturbed() == lives:
            break
        # What a worker had in hand when Redis went, or a connection, may be gone: a message is no
        # record. Push again.
        lives = disturbed()
    raise RigError(
        f"of {pushed} messages that nobody understands {rejected() - before} are kept as rejected"
    )


WORKERS: Final = (
    both("crash: received", crash("received")),
    Fault(name="crash: claimed", ours=crash("claimed"), control=None, fsync="everysec"),
    Fault(name="crash: durable", ours=crash("durable"), control=None, fsync="everysec"),
    both("crash: before bytes", crash("before bytes")),
    Fault(
        name="crash: sent before effect",
        ours=crash("sent"),
        control=killed_when(f"late_effect:seconds={LATE_EFFECT}:n=3:times=3"),
    ),
    both("crash: effect before reply", killed_when("timeout_after:n=3:times=3")),
    Fault(
        name="crash: reply half read",
        ours=crash("half read"),
        control=killed_when("slow_drip_after:seconds=1:times=5"),
    ),
    both("crash: reply read unsaved", crash("read unsaved")),
    both("crash: saved unacked", crash("saved unacked")),
    Fault(
        name="SIGKILL under the usual lease",
        ours=killed_with_claims,
        control=None,
        settings={"REFUNDS_LEASE_SECONDS": f"{Rules().lease.total_seconds():g}"},
    ),
    both("SIGTERM", sigterm),
    both("SIGSTOP past the lease", sigstop),
    Fault(name="SIGSTOP before bytes", ours=stopped_before_bytes, control=None),
)
QUEUES: Final = (
    both("message 2-20 times", duplicated),
    both("message lost", lost),
    both("message poisoned", poisoned),
    both("foreign task", foreign),
)
