"""What is done to Redis, to the provider, and to the ways there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

from ops.lab.prove.faults import Fault, Inject, both
from ops.lab.prove.rig import LATE_EFFECT, ROOT, Rig, RigError
from worker.sandbox.faults import KINDS, RETRY_AFTER, WRONG_FIELDS

_SOON: Final = 40.0
_HELD_SECONDS: Final = 6.0
_FLUSHES: Final = 20
_PENDING_MS: Final = 6000
KEY_WINDOW: Final = 12.0
"""Seconds: a replay some seconds after the first attempt is inside of it, the one after that is
not.
"""

# Redis


def server_killed(rig: Rig, _dice: Random) -> int:
    """Kill the server twice under load and start it again on what it had on disk."""
    for _ in range(2):
        rig.feed(8)
        time.sleep(0.3)
        rig.server.kill()
        time.sleep(0.7)
        rig.server.restart()
        time.sleep(1.5)
    return 2


def redis_cut(rig: Rig, _dice: Random) -> int:
    """Break every connection to Redis ten times, by FIN and by RST."""
    ended = 0
    for turn in range(10):
        rig.feed(2)
        ended += rig.to_redis.cut() if turn % 2 else rig.to_redis.reset()
        time.sleep(0.3)
    return ended


def redis_half_open(rig: Rig, _dice: Random) -> int:
    """Let Redis's replies vanish for twelve seconds, with the connections left standing."""
    before = rig.to_redis.fired["swallowed"]
    rig.to_redis.silence("replies")
    time.sleep(12)
    rig.to_redis.silence("none")
    return rig.to_redis.fired["swallowed"] - before


def redis_slow(rig: Rig, _dice: Random) -> int:
    """Let each trip to Redis take two seconds, for twelve."""
    before = rig.to_redis.fired["delayed"]
    rig.to_redis.delay = 1.0
    time.sleep(12)
    rig.to_redis.delay = 0.0
    return rig.to_redis.fired["delayed"] - before


def redis_full(rig: Rig, _dice: Random) -> int:
    """Let Redis be full, with noeviction, for a few seconds."""
    return _refusing(
        rig,
        "OOM",
        lambda: rig.redis.config_set("maxmemory", 1),
        lambda: rig.redis.config_set("maxmemory", 0),
    )


def redis_read_only(rig: Rig, _dice: Random) -> int:
    """Let Redis be a replica of nobody that answers: it serves reads and refuses writes."""
    return _refusing(
        rig,
        "READONLY",
        lambda: rig.redis.slaveof("127.0.0.1", "1"),
        lambda: rig.redis.slaveof("NO", "ONE"),
    )


def _refusing(rig: Rig, word: str, begin: Callable[[], Any], end: Callable[[], Any]) -> int:
    rig.feed(8)
    rig.asking(begin)
    try:
        rig.within(lambda: rig.errors_of_server(word) > 0, 15)
        time.sleep(4)
        refused = rig.errors_of_server(word)
    finally:
        rig.asking(end)
    return refused


def scripts_flushed(rig: Rig, _dice: Random) -> int:
    """Flush the scripts twenty times."""
    for _ in range(_FLUSHES):
        rig.feed(1)
        rig.asking(rig.redis.script_flush)
        time.sleep(0.15)
    return _FLUSHES


def restored(rig: Rig, _dice: Random) -> int:
    """Lose the server, restore it from an old copy, run `refunds recover`, hand in again what the
    copy lacks.
    """
    rig.feed(10)
    folder = Path(rig.asking(lambda: rig.redis.config_get("dir"))["dir"]) / "appendonlydir"
    copy = rig.folder / "snapshot"
    since = datetime.now(UTC)
    shutil.copytree(folder, copy)
    held = set(rig.accepted)
    before = rig.effects()
    rig.feed(20)
    rig.until(
        lambda: rig.effects() >= before + 10, "refunds are done that the copy knows nothing of"
    )
    for worker in rig.alive:
        rig.kill(worker)
    rig.server.kill()
    rig.kills.clear()
    rig.history_lost = True
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    rig.server.restart()
    said = json.loads(_refunds(rig, "recover", "--since", since.isoformat(), "--json"))
    recovered = time.time()
    if not said["doubted"]:
        raise RigError("the copy held nothing that may have been sent since")
    again = [request for refund_id, request in rig.accepted.items() if refund_id not in held]
    rig.accept(again)
    rig.start()
    # Long enough for every worker to sweep and to read its queues: all of them must hold still.
    time.sleep(_HELD_SECONDS)
    rig.held.append((recovered, time.time()))
    _refunds(rig, "resume")
    return int(said["doubted"])


def _refunds(rig: Rig, *words: str) -> str:
    environment = rig.environment | {"REFUNDS_REDIS_URL": rig.server.url}
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "worker", *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RigError(f"refunds {words[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


# The way to the provider


def provider_wire(rig: Rig, _dice: Random) -> int:
    """Break the way to the provider in each way there is, one after the other, under load."""
    proxy = rig.to_provider
    before = sum(proxy.fired.values())
    for end in (proxy.reset, proxy.cut, proxy.reset, proxy.cut):
        _under_load(rig, "ended", lambda end=end: end() > 0)  # type: ignore[misc]  # bound in the loop
    for what in ("replies", "both"):
        proxy.silence(what)
        swallowed = proxy.fired["swallowed"]
        _under_load(
            rig,
            f"silence of {what}",
            lambda swallowed=swallowed: proxy.fired["swallowed"] > swallowed + 2,
        )  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        proxy.silence("none")
    proxy.cut_replies(0, 1, 20, 120, 200, 300, 400, 500)
    _under_load(rig, "replies cut", lambda: proxy.cuts_left == 0)
    proxy.delay = 0.5
    delayed = proxy.fired["delayed"]
    _under_load(rig, "delay", lambda: proxy.fired["delayed"] > delayed + 6)
    proxy.delay = 0.0
    proxy.refuse()
    rig.feed(6)
    time.sleep(1.5)
    proxy.open()
    return sum(proxy.fired.values()) - before


def _under_load(rig: Rig, what: str, condition: Callable[[], bool]) -> None:
    # Long: a worker's breaker may have to find out first that the provider is back.
    end = time.monotonic() + 2 * _SOON
    while time.monotonic() < end:
        rig.feed(2)
        if rig.within(condition, 0.7):
            return
    raise RigError(f"a fault on the way to the provider did not fire: {what}")


# The provider


def _posts() -> list[str]:
    """Return every fault that a POST may meet, each once, with what it may be told."""
    specs = []
    for kind in KINDS.values():
        if "field" in kind.takes:
            specs += [f"{kind.name}:field={name}" for name in WRONG_FIELDS]
        elif "retry_after" in kind.takes:
            specs += [f"{kind.name}:seconds=1:retry_after={form}" for form in RETRY_AFTER]
        elif kind.name.startswith("slow_drip"):
            specs.append(f"{kind.name}:seconds=4")
        elif kind.name == "late_effect":
            specs.append(f"{kind.name}:seconds={LATE_EFFECT}")
        else:
            specs.append(kind.name)
    return [f"{spec}:n={4 + 3 * place}:times=1" for place, spec in enumerate(specs)]


def _looks() -> list[str]:
    """Return every fault that a look may meet; of a lie only those that can be told.

    A provider that names a wrong id, or another's refund, in an otherwise perfect list cannot be
    caught by reading.
    """
    specs = [
        f"{kind.name}:seconds=4" if kind.name.startswith("slow_drip") else kind.name
        for kind in KINDS.values()
        if kind.name not in {"late_effect", "wrong_resource_after", "http_401", "http_429"}
    ]
    specs += [
        "http_429:seconds=1",
        "wrong_resource_after:field=payment_intent",
        "wrong_resource_after:field=amount",
    ]
    return specs


def provider_posts(rig: Rig, _dice: Random) -> int:
    """Let the POSTs meet every fault that the sandbox knows."""
    return _met(rig, _posts())


def looks(*endpoints: str) -> Inject:
    """Return the fault that the looks at these endpoints meet every fault that can be told."""

    def inject(rig: Rig, _dice: Random) -> int:
        # Each doubtful POST makes looks; the faults on the looks then come one after the other.
        doubts = "timeout_after:p=0.3,reset_after:p=0.3"
        specs = [
            f"{spec}:on={endpoint}:n={1 + place // 2}:times=1"
            for place, spec in enumerate(_looks())
            for endpoint in endpoints
        ]
        return _met(rig, specs, beside=doubts)

    return inject


def charges(rig: Rig, dice: Random) -> int:
    """Let payments name their charge and not show it, and let the looks at the charge meet every
    fault.
    """
    rig.sandbox.set_modes(charges_expanded=False)
    return looks("get_charge")(rig, dice)


def polls(rig: Rig, _dice: Random) -> int:
    """Let refunds stay pending for some polls, and let the polls meet every fault that can be
    told.
    """
    rig.sandbox.set_modes(settle_ms=_PENDING_MS)
    return _met(
        rig,
        [f"{spec}:on=get_refund:n={1 + place // 2}:times=1" for place, spec in enumerate(_looks())],
    )


def past_the_window(rig: Rig, _dice: Random) -> int:
    """Let the POSTs meet every fault, most of them several, while keys are good for some seconds
    only.
    """
    rig.sandbox.set_modes(key_window_seconds=KEY_WINDOW)
    return _met(
        rig, _posts(), beside="timeout_before:p=0.3,reset_after:p=0.3,http_503_before:p=0.2"
    )


def _met(rig: Rig, specs: Sequence[str], *, beside: str = "") -> int:
    """Set the faults and hand refunds in until each has fired."""
    rig.sandbox.set_faults(",".join(filter(None, [*specs, beside])))

    def missing() -> list[str]:
        report = rig.sandbox.faults()["faults"][: len(specs)]
        return [f"{fault['kind']} on {fault['on']}" for fault in report if not fault["fired"]]

    end = time.monotonic() + 2 * _SOON
    while (left := missing()) and time.monotonic() < end:
        rig.feed(4)
        time.sleep(0.25)
    fired: int = sum(fault["fired"] for fault in rig.sandbox.faults()["faults"])
    rig.sandbox.set_faults("")
    if left and rig.subject.is_ours:
        raise RigError(f"these faults of the provider did not fire: {', '.join(left)}")
    return fired


REDIS: Final = (
    both("Redis killed, everysec", server_killed, fsync="everysec"),
    both("Redis killed, always", server_killed),
    both("Redis connections cut", redis_cut),
    both("Redis half open", redis_half_open),
    both("Redis full", redis_full),
    both("Redis read-only", redis_read_only),
    # A claim's own trip is taken off its lease.
    both("Redis 2 s away", redis_slow, settings={"REFUNDS_LEASE_SECONDS": "12"}),
    both("Redis scripts flushed", scripts_flushed),
    Fault(name="Redis restored from a copy", ours=restored, control=None),
)
