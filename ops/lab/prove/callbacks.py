"""Callbacks under faults: shops fail in every way, while workers and Redis are killed.

Ten shops are endpoints of one installation. What each received is compared with the records.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from ops.lab.prove import webhooks
from ops.lab.prove.evidence import Evidence, gathered
from ops.lab.prove.faults import Fault, fed_until, sigkill
from ops.lab.prove.looked import Look, run_looked
from ops.lab.prove.places import redis_cut, server_killed
from ops.lab.prove.rig import Rig, RigError
from ops.lab.prove.scenarios import DRAIN_SECONDS, LIST, Result, Scenario
from ops.lab.prove.shops import Arrival, Shop, Shops
from ops.lab.prove.subjects import Product
from ops.lab.prove.violation import Violation
from worker.callbacks.endpoints import EVENTS
from worker.callbacks.payload import event_of
from worker.callbacks.retries import WAITS
from worker.store import callback_state
from worker.store.records import decode

SLOW_SECONDS: Final = 15.0
"""The longest that a shop without a fault may wait for a state, once workers and Redis are well."""
SHORT: Final = (1 / 300, 1.0)
"""The share to which waits are shortened, and the most seconds of one after a failed try."""
TEN_MINUTES: Final = 600.0
LEASE_SECONDS: Final = 8.0
"""The longest lease of a try, with short waits: the hung shop's apart."""
_REST_SECONDS: Final = 90.0
_LOAD: Final = 6
_ROUNDS: Final = 3
_STEADY: Final = "steady"
_DYING: Final = "dying"
_REFUSED: Final = "gone"

Hurt = Callable[[Rig, Shops, Random], int]


# Faults


def only_shops(rig: Rig, shops: Shops, _dice: Random) -> int:
    """Let the shops fail, kill one of them twice, and reverse a refund meanwhile."""
    deaths = 0
    for _ in range(2):
        rig.feed(_LOAD)
        shops.kill(_DYING)
        deaths += 1
        rig.feed(_LOAD)
        # It stays away for a while: callbacks fail meanwhile.
        time.sleep(1.0)
        shops.start(_DYING)
    _reversed(rig)
    return deaths + _failures(shops)


def nothing(rig: Rig, _shops: Shops, _dice: Random) -> int:
    """Hurt nothing: the run with which duplicates are compared."""
    rig.feed(_LOAD)
    return 1


def workers_killed(rig: Rig, shops: Shops, dice: Random) -> int:
    """Kill a worker with callbacks in flight, several times."""
    for turn in range(_ROUNDS):
        rig.feed(_LOAD)
        _in_flight(rig, shops)
        sigkill(rig, dice)
        rig.supervise()
        if turn == 0:
            _reversed(rig)
    return _ROUNDS + _failures(shops)


def workers_stopped(rig: Rig, shops: Shops, _dice: Random) -> int:
    """Stop a worker with callbacks in flight for longer than their leases, then let it go on."""
    for turn in range(2):
        rig.feed(_LOAD)
        _in_flight(rig, shops)
        worker = rig.alive[turn]
        worker.stopped = True
        worker.signal(signal.SIGSTOP)
        # Its leases must lapse before it continues, and only time does that.
        time.sleep(LEASE_SECONDS)
        if turn == 0:
            # The states that it took are not the present ones any more.
            _reversed(rig)
        worker.signal(signal.SIGCONT)
        worker.stopped = False
    return 2 + _failures(shops)


def workers_ended(rig: Rig, shops: Shops, _dice: Random) -> int:
    """End each worker in good order with callbacks in flight."""
    ended = 0
    for worker in [*rig.alive]:
        rig.feed(_LOAD)
        _in_flight(rig, shops)
        _end(worker)
        rig.supervise()
        ended += 1
    _reversed(rig)
    return ended + _failures(shops)


def _end(worker: Any) -> None:
    worker.expected = True
    worker.signal(signal.SIGTERM)
    if code := worker.process.wait(_REST_SECONDS):
        raise RigError(f"a worker told to stop ended with {code}")


def redis_killed(rig: Rig, shops: Shops, dice: Random) -> int:
    """Kill Redis under load, and start it again on what it had on disk."""
    fired = server_killed(rig, dice)
    _reversed(rig)
    return fired + _failures(shops)


def connections_cut(rig: Rig, shops: Shops, dice: Random) -> int:
    """Break every connection to Redis ten times."""
    fired = redis_cut(rig, dice)
    _reversed(rig)
    return fired + _failures(shops)


def secrets_replaced(rig: Rig, shops: Shops, _dice: Random) -> int:
    """Replace every secret: both sign, then the shops change, then only the new one signs."""
    shops.new_secrets()
    for places in ((0, 1), (1,)):
        shops.sign_with(*places)
        for worker in [*rig.alive]:
            rig.feed(_LOAD)
            _end(worker)
            rig.supervise()
        rig.start()
        rig.feed(_LOAD)
        shops.know_only(1)
    rig.feed(_LOAD)
    return len(shops.alive)


def away(seconds: float) -> Hurt:
    """Return the fault that a shop is away for so long."""

    def inject(rig: Rig, shops: Shops, _dice: Random) -> int:
        shops.kill(_DYING)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rig.feed(2)
            # Load that is spread over its absence, which only time ends.
            time.sleep(seconds / 20)
        return 1

    return inject


def everything(rig: Rig, shops: Shops, dice: Random) -> int:
    """Kill a shop, a worker and Redis, and reverse a refund, while the shops fail."""
    rig.feed(_LOAD)
    shops.kill(_DYING)
    _in_flight(rig, shops)
    sigkill(rig, dice)
    rig.supervise()
    shops.start(_DYING)
    fired = server_killed(rig, dice)
    _reversed(rig)
    return 2 + fired + _failures(shops)


def _reversed(rig: Rig) -> None:
    done = "refunds:index:succeeded"
    rig.until(lambda: rig.asking(lambda: rig.redis.zcard(done)) >= _LOAD, "refunds have succeeded")
    webhooks.reverse(rig, gathered(rig), watched=True)


def _in_flight(rig: Rig, shops: Shops) -> None:
    """Wait until a callback arrived that was not answered with 2xx in time."""
    before = _failures(shops)
    if not fed_until(rig, lambda: _failures(shops) > before):
        raise RigError("no callback failed")


def _failures(shops: Shops) -> int:
    return sum(one.way != "ok" for shop in shops.alive for one in shops.arrivals(shop.name))


FAULTS: Final[Mapping[str, Hurt]] = {
    "kills, failures and a reversal": everything,
    "shops fail": only_shops,
    "workers killed": workers_killed,
    "workers stopped": workers_stopped,
    "workers ended": workers_ended,
    "Redis killed": redis_killed,
    "Redis connections cut": connections_cut,
    "secrets replaced": secrets_replaced,
    "nothing fails": nothing,
}
CALM: Final = frozenset({"nothing fails", "a shop away"})
"""Runs in which no shop fails by itself: duplicates and waits of the others are compared."""
QUICK: Final = ("kills, failures and a reversal",)


# Runs


def runs(
    *, size: int, keep: Path, quick: bool, seconds: float
) -> Iterator[tuple[str, Callable[[int], Result]]]:
    """Yield each run's name, and the run itself; `seconds` is how long a shop is away."""
    for name in QUICK if quick else FAULTS:
        yield _named(name), partial(_play, _named(name), FAULTS[name], size, keep, SHORT)
    if not quick:
        name = _named("a shop away")
        # The waits are in the same relation as to ten minutes; for ten they are the product's own.
        waits = (min(1.0, seconds / TEN_MINUTES), None)
        yield name, partial(_play, name, away(seconds), size, keep, waits)


def _named(name: str) -> str:
    return f"callbacks: {name}"


def run_bug(
    name: str, asked: Sequence[Mapping[str, Any]], *, size: int, seed: int, keep: Path
) -> Result:
    """Run workers with a planted bug, while shops fail."""
    return _play(name, only_shops, size, keep, SHORT, seed, asked)


def _play(
    name: str,
    hurt: Hurt,
    size: int,
    keep: Path,
    waits: tuple[float, float | None],
    seed: int,
    asked: Sequence[Mapping[str, Any]] = ({}, {}),
) -> Result:
    opened: list[Shops] = []
    product = Product()

    def before(rig: Rig) -> None:
        shops = Shops(rig, narrow=f"p{seed}-1")
        rig.settings = {**rig.settings, **shops.settings}
        shops.open(calm=name.rpartition(": ")[2] in CALM)
        callback_state.turn_on(product.refunds.store, "prove")
        rig.conditions.append(lambda: is_at_rest(rig, shops))
        opened.append(shops)

    def inject(rig: Rig, dice: Random) -> int:
        fired = hurt(rig, opened[0], dice)
        opened[0].settle()
        rig.asking(lambda: callback_state.resume(product.refunds.store, _REFUSED))
        return fired

    def look(rig: Rig) -> Look:
        calm = time.time()
        # Of a refund that every shop holds, each is to learn once more.
        webhooks.reverse(rig, gathered(rig), watched=True)
        rig.until(
            lambda: is_at_rest(rig, opened[0]), "every shop holds the reversal", _REST_SECONDS
        )
        evidence = gathered(rig)
        found = [*_judge(rig, opened[0], evidence, calm)]
        note = _told(rig, opened[0], evidence)
        return Look(found=found, note=note, facts=partial(_facts, opened[0], evidence))

    scenario = Scenario(
        name=name,
        faults=(Fault(name=name, ours=inject, control=None),),
        mode=LIST,
        drain=DRAIN_SECONDS if waits == SHORT else TEN_MINUTES * waits[0] + DRAIN_SECONDS,
        asked=[{**one, "callback_waits": waits} for one in asked],
        before=before,
    )
    return run_looked(scenario, product, size=size, seed=seed, keep=keep, look=look)


def _facts(shops: Shops, evidence: Evidence, about: set[str]) -> Mapping[str, Any]:
    arrivals = {
        shop.name: [one for one in shops.arrivals(shop.name) if one.member in about]
        for shop in shops.alive
    }
    refunds = [evidence.about(one) for one in sorted(about & evidence.records.keys())]
    return {"refunds": refunds, "arrivals": arrivals}


def is_at_rest(rig: Rig, shops: Shops) -> bool:
    """Return whether nothing waits to be sent to a shop that accepts it."""
    keys = ["refunds:callbacks", *(f"refunds:callbacks:{shop.name}" for shop in shops.alive)]
    return not any(rig.asking(lambda key=key: rig.redis.zcard(key)) for key in keys)  # type: ignore[misc]  # bound in the loop


# What a run must have come to


def _judge(rig: Rig, shops: Shops, evidence: Evidence, calm: float) -> Iterator[Violation]:
    for shop in shops.alive:
        arrivals, prefix = shops.arrivals(shop.name), shops.wanted(shop)
        yield from unheld(shop, prefix, arrivals, evidence, _dead(rig, shop))
        yield from wrong(shop, prefix, arrivals)
    waited = delays(shops.arrivals(_STEADY), evidence, rig.fault_end)
    for refund_id, seconds in waited.items():
        if seconds > SLOW_SECONDS:
            fact = f"the steady shop learned of it {seconds:.1f} s late"
            yield Violation(rule="callback late", about=refund_id, fact=fact)
    if not any(one.at >= calm for one in shops.arrivals(_STEADY)):
        raise RigError("no callback followed the last reversal")


def _dead(rig: Rig, shop: Shop) -> dict[str, int]:
    """Return the dead letters of a shop, with the number of failed tries in its log of each."""
    dead = rig.asking(lambda: rig.redis.zrange(f"refunds:callback-dead:{shop.name}", 0, -1))
    tries: Any = rig.asking(lambda: rig.redis.xrange(f"refunds:callback-log:{shop.name}"))
    failed = [fields["member"] for _, fields in tries if fields["result"] == "failed"]
    return {member: failed.count(member) for member in dead}


def unheld(
    shop: Shop,
    prefix: str,
    arrivals: Sequence[Arrival],
    evidence: Evidence,
    dead: Mapping[str, int],
) -> Iterator[Violation]:
    """Yield the refunds of which a shop does not hold the last state, dead letters apart."""
    held: dict[str, Arrival] = {}
    for one in arrivals:
        if one.held and (one.member not in held or held[one.member].version < one.version):
            held[one.member] = one
    for refund_id, stored in evidence.records.items():
        refund = decode(dict(stored))
        event = event_of(refund)
        # A refund that is under way is not reported.
        if event not in EVENTS or not refund_id.startswith(prefix):
            continue
        if refund_id in dead:
            if dead[refund_id] <= len(WAITS):
                fact = f"a dead letter at {shop.name} after {dead[refund_id]} failed tries"
                yield Violation(rule="dead early", about=refund_id, fact=fact)
            continue
        last = held.get(refund_id)
        if last is None or (last.version, last.type) != (refund.version, event):
            had = "nothing" if last is None else f"{last.type} in version {last.version}"
            fact = f"{shop.name} holds {had}; it is {event} in version {refund.version}"
            yield Violation(rule="callback lost", about=refund_id, fact=fact)


def wrong(shop: Shop, prefix: str, arrivals: Sequence[Arrival]) -> Iterator[Violation]:
    """Yield what a shop received and should not have: forged, unwanted, older, or elsewhere."""
    newest: dict[str, int] = {}
    identities: dict[str, tuple[str, int]] = {}
    for one in arrivals:
        if not one.verified:
            fact = f"the independent verifier refuses what {shop.name} received"
            yield Violation(rule="signature", about=one.member, fact=fact)
        if not one.member.startswith(prefix):
            fact = f"{shop.name} wants only ids that begin with {prefix}"
            yield Violation(rule="callback unwanted", about=one.member, fact=fact)
        if one.path != "/callbacks":
            fact = f"{shop.name} received it at {one.path}: a redirect was followed"
            yield Violation(rule="callback redirected", about=one.member, fact=fact)
        if one.version < newest.get(one.member, 0):
            fact = f"{shop.name} received version {one.version} after {newest[one.member]}"
            yield Violation(rule="callback out of date", about=one.member, fact=fact)
        newest[one.member] = max(one.version, newest.get(one.member, 0))
        state = (one.member, one.version)
        if identities.setdefault(one.webhook_id, state) != state:
            fact = f"{shop.name} received its webhook-id for another state too"
            yield Violation(rule="callback id", about=one.member, fact=fact)


def delays(arrivals: Sequence[Arrival], evidence: Evidence, fault_end: float) -> dict[str, float]:
    """Return, for each refund, the seconds until a shop held its last state.

    They are counted from the last move, or from the end of the faults if that is later.
    """
    first: dict[tuple[str, int], float] = {}
    for one in arrivals:
        if one.held:
            first.setdefault((one.member, one.version), one.at)
    found = {}
    for refund_id, entries in (evidence.histories or {}).items():
        at = first.get((refund_id, len(entries)))
        if at is not None and entries:
            moved = entries[-1]["at"] / 1000
            found[refund_id] = max(0.0, at - (max(moved, fault_end) if evidence.kills else moved))
    return found


def _told(rig: Rig, shops: Shops, evidence: Evidence) -> str:
    arrivals = [one for shop in shops.alive for one in shops.arrivals(shop.name)]
    held = [one for one in arrivals if one.held]
    states = len({one.webhook_id + place for place, one in _by_shop(shops) if one.held})
    waited = sorted(delays(shops.arrivals(_STEADY), evidence, rig.fault_end).values())
    late = f"{waited[len(waited) // 2]:.1f} s, {waited[-1]:.1f} s at most" if waited else "-"
    dead = sum(len(_dead(rig, shop)) for shop in shops.alive)
    return (
        f"{len(arrivals)} callbacks, {len(arrivals) - len(held)} of them failed by the shop;"
        f" {states} states held, {len(held) - states} twice"
        f" ({(len(held) - states) / max(1, states):.1%}), {dead} dead letters;"
        f" the steady shop held each after {late}"
    )


def _by_shop(shops: Shops) -> Iterator[tuple[str, Arrival]]:
    for shop in shops.alive:
        for one in shops.arrivals(shop.name):
            yield shop.name, one
