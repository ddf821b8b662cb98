"""The HTTP API under faults: clients submit refunds while servers, workers and Redis are killed.

Two servers run. Some clients send the same key at once, some break off in the midst of a request,
some wait for the result, and some never repeat what was not answered.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final

from ops.lab.prove.clients import CLIENT_SECONDS, ByDoor, Clients, Exchange, Strays
from ops.lab.prove.evidence import Evidence, gathered
from ops.lab.prove.faults import Fault, Inject, fed_until, killed_when, sigkill
from ops.lab.prove.looked import Look, run_looked
from ops.lab.prove.places import (
    redis_cut,
    redis_full,
    redis_half_open,
    redis_read_only,
    server_killed,
)
from ops.lab.prove.rig import Rig, RigError
from ops.lab.prove.scenarios import DRAIN_SECONDS, LIST, Result, Scenario
from ops.lab.prove.servers import SERVERS, Servers
from ops.lab.prove.violation import Violation
from worker.store.records import decode

ANSWERS: Final = frozenset({200, 202, 408, 429, 503})
"""What a whole and valid request may be answered with."""
_STRAYS: Final = 3
_PAUSE: Final = 0.25
_ROUNDS: Final = 2
_LIVES: Final = 5
_CUTS: Final = (0, 1, 20, 120, 200, 300, 400, 600)
_SETTLE_SECONDS: Final = 3.0
"""How long after the faults a request may still be written that was not answered."""
_LOAD: Final = 6
_CUT_LOAD: Final = 40
_CUT_SECONDS: Final = 0.02
_BUG_SECONDS: Final = 40.0

Hurt = Callable[[Rig, Servers, Random], int]


# Faults


def killed(rig: Rig, servers: Servers, dice: Random) -> int:
    """Kill each server under load, one after the other, and at last both at once."""
    kills = 0
    for places in [*([[0], [1]] * _ROUNDS), [0, 1]]:
        rig.feed(_LOAD)
        time.sleep(0.2 + 0.3 * dice.random())
        for place in places:
            servers.signal(place, signal.SIGKILL)
            kills += 1
        rig.feed(_LOAD)
        for place in places:
            servers.await_ready(rig, place)
    return kills


def dies_at(point: str) -> Hurt:
    """Return the fault that servers are killed when they reach a named point of a request."""

    def inject(rig: Rig, servers: Servers, dice: Random) -> int:
        deaths = 0
        for place in [*range(SERVERS)] * _ROUNDS:
            before = len(servers.ended)
            servers.dies_at(place, point, dice.randint(1, 4))
            # The first end is that of the server before it.
            if fed_until(rig, lambda before=before: len(servers.ended) >= before + 2):  # type: ignore[misc]  # bound in the loop
                deaths += 1
            servers.await_ready(rig, place)
        return deaths

    return inject


def ended(rig: Rig, servers: Servers, _dice: Random) -> int:
    """End each server in good order under load: it must finish and say so."""
    for place in range(SERVERS):
        before = len(servers.ended)
        rig.feed(_LOAD)
        servers.signal(place, signal.SIGTERM)
        fed_until(rig, lambda before=before: len(servers.ended) > before)  # type: ignore[misc]  # bound in the loop
        found = [code for one, code in servers.ended[before:] if one == place]
        if found != [0]:
            raise RigError(f"a server told to stop ended with {found}")
        servers.await_ready(rig, place)
    return SERVERS


def stopped(rig: Rig, servers: Servers, _dice: Random) -> int:
    """Stop each server for longer than its clients wait, then let it go on."""
    for place in range(SERVERS):
        rig.feed(_LOAD)
        servers.signal(place, signal.SIGSTOP)
        time.sleep(CLIENT_SECONDS + 1)
        servers.signal(place, signal.SIGCONT)
        servers.await_ready(rig, place)
    return SERVERS


def cut(rig: Rig, servers: Servers, _dice: Random) -> int:
    """Break every connection of the clients, and cut answers after some bytes."""
    before = sum(sum(proxy.fired.values()) for proxy in servers.proxies)
    for proxy in servers.proxies:
        proxy.cut_replies(*_CUTS)
    fed_until(rig, lambda: not any(proxy.cuts_left for proxy in servers.proxies))
    with ThreadPoolExecutor(1) as pool:
        feeding = pool.submit(rig.feed, _CUT_LOAD)
        for turn in count():
            if feeding.done():
                break
            for proxy in servers.proxies:
                if turn % 2:
                    proxy.cut()
                else:
                    proxy.reset()
            time.sleep(_CUT_SECONDS)
        feeding.result()
    return sum(sum(proxy.fired.values()) for proxy in servers.proxies) - before


def everything(rig: Rig, servers: Servers, dice: Random) -> int:
    """Kill servers, a worker and Redis, and break connections, one after the other."""
    rig.feed(_LOAD)
    servers.signal(0, signal.SIGKILL)
    fired = 1 + sigkill(rig, dice)
    rig.supervise()
    fired += cut(rig, servers, dice)
    fired += server_killed(rig, dice)
    for place in range(SERVERS):
        servers.signal(place, signal.SIGKILL)
    rig.feed(_LOAD)
    for place in range(SERVERS):
        servers.await_ready(rig, place)
    return fired + SERVERS


def _of_rig(inject: Inject) -> Hurt:
    return lambda rig, _, dice: inject(rig, dice)


FAULTS: Final[Mapping[str, Hurt]] = {
    "kills, cuts and repeats": everything,
    "servers killed": killed,
    "killed before the write": dies_at("read"),
    "killed after the write": dies_at("written"),
    "servers ended": ended,
    "servers stopped": stopped,
    "connections cut": cut,
    "workers killed": _of_rig(killed_when("timeout_after:n=3:times=3")),
    "Redis killed": _of_rig(server_killed),
    "Redis connections cut": _of_rig(redis_cut),
    "Redis half open": _of_rig(redis_half_open),
    "Redis full": _of_rig(redis_full),
    "Redis read-only": _of_rig(redis_read_only),
}
QUICK: Final = ("kills, cuts and repeats",)


# Runs


def runs(*, size: int, keep: Path, quick: bool) -> Iterator[tuple[str, Callable[[int], Result]]]:
    """Yield each run's name, and the run itself."""
    for name in QUICK if quick else FAULTS:
        yield f"door: {name}", partial(_play, f"door: {name}", FAULTS[name], size, keep)


def run_bug(
    name: str, asked: Sequence[Mapping[str, Any]], *, size: int, seed: int, keep: Path
) -> Result:
    """Run servers with a planted bug, and kill them."""
    return _play(name, killed, size, keep, seed, asked[0])


def _play(
    name: str,
    hurt: Hurt,
    size: int,
    keep: Path,
    seed: int,
    asked: Mapping[str, Any] | None = None,
) -> Result:
    with Servers(asked) as servers:
        clients = Clients(servers)
        subject, strays = ByDoor(clients), list[Strays]()

        def begin(rig: Rig) -> None:
            servers.start(rig, subject)
            strays.append(Strays(rig, clients, threads=_STRAYS, pause=_PAUSE))
            rig.conditions.append(lambda: not [*strays[0].late()])
            strays[0].start()

        def inject(rig: Rig, dice: Random) -> int:
            fired = hurt(rig, servers, dice)
            strays[0].stop()
            # What was sent may be written a moment later.
            time.sleep(_SETTLE_SECONDS)
            strays[0].resolve()
            return fired

        def look(rig: Rig) -> Look:
            found = [*_judge(rig, clients, strays[0])]
            return Look(
                found=found, note=_told(clients, strays[0]), facts=partial(_facts, rig, clients)
            )

        scenario = Scenario(
            name=name,
            faults=(Fault(name=name, ours=inject, control=None),),
            mode=LIST,
            # What a planted bug lost never comes to rest.
            drain=DRAIN_SECONDS if asked is None else _BUG_SECONDS,
            begin=begin,
        )
        try:
            return run_looked(scenario, subject, size=size, seed=seed, keep=keep, look=look)
        finally:
            for each in strays:
                each.stop()


def _facts(rig: Rig, clients: Clients, about: set[str]) -> Mapping[str, Any]:
    evidence = gathered(rig)
    return {
        "refunds": [evidence.about(one) for one in sorted(about)],
        "exchanges": [one for one in clients.exchanges if one.refund_id in about],
    }


def _told(clients: Clients, strays: Strays) -> str:
    sent = len(clients.exchanges)
    unanswered = sum(one.status is None for one in clients.exchanges)
    refused = sum(one.status == HTTPStatus.SERVICE_UNAVAILABLE for one in clients.exchanges)
    return (
        f"{sent} requests, {unanswered} without an answer, {refused} answered 503;"
        f" {strays.sent} never repeated while faults lasted"
    )


# What a run must have come to


def _judge(rig: Rig, clients: Clients, strays: Strays) -> Iterator[Violation]:
    evidence = gathered(rig)
    yield from answers(clients.exchanges, evidence)
    for refund_id in strays.never_whole:
        fact = "a server accepted it, and never received the whole of its body"
        yield Violation(rule="half accepted", about=refund_id, fact=fact)
    yield from _on_disk(rig, evidence)


def answers(exchanges: Sequence[Exchange], evidence: Evidence) -> Iterator[Violation]:
    """Yield the answers that the records contradict, and those that no valid request may get."""
    records = {name: decode(dict(found)) for name, found in evidence.records.items()}
    for one in exchanges:
        if one.status is None:
            continue
        if one.differs:
            if one.accepted:
                fact = f"answered {one.status} to other contents under the same id"
                yield Violation(rule="conflict accepted", about=one.refund_id, fact=fact)
            continue
        if one.status not in ANSWERS:
            fact = f"a valid request was answered {one.status}: {dict(one.answer)}"
            yield Violation(rule="odd answer", about=one.refund_id, fact=fact)
        if not one.accepted:
            continue
        record = records.get(one.refund_id)
        if record is None:
            fact = f"answered {one.status}, and no record exists"
            yield Violation(rule="lost", about=one.refund_id, fact=fact)
        elif wrong := _contradicted(one, record.as_dict()):
            yield Violation(rule="false answer", about=one.refund_id, fact=wrong)


def _contradicted(one: Exchange, record: Mapping[str, Any]) -> str:
    """Return what of an answer its record contradicts, '' if it contradicts nothing."""
    answer = one.answer
    for name in ("refund_id", "payment_intent", "created_at"):
        if name == "created_at" and _ms(answer.get(name)) != _ms(record[name]):
            return f"{name} was {answer.get(name)}, and is {record[name]}"
        if name != "created_at" and answer.get(name) != record[name]:
            return f"{name} was {answer.get(name)}, and is {record[name]}"
    if answer["version"] > record["version"]:
        return f"version {answer['version']} was answered, and {record['version']} is recorded"
    is_final = answer["status"] != "pending"
    if is_final != (one.status == HTTPStatus.OK):
        return f"{answer['status']} was answered with {one.status}"
    if is_final and answer["status"] != record["status"]:
        return f"{answer['status']} was answered, and {record['status']} is recorded"
    return ""


def _ms(text: Any) -> int:
    """Return milliseconds since the epoch."""
    return round(datetime.fromisoformat(str(text)).timestamp() * 1000)


def _on_disk(rig: Rig, before: Evidence) -> Iterator[Violation]:
    """Kill Redis once more, and yield the records that its disk does not hold."""
    rig.server.kill()
    rig.server.restart()
    after = gathered(rig)
    for refund_id, record in before.records.items():
        held = after.records.get(refund_id, {})
        if held.get("version") != record["version"] or held.get("stage") != record["stage"]:
            fact = f"version {record['version']} is {held.get('version')} on the disk"
            yield Violation(rule="not on disk", about=refund_id, fact=fact)
