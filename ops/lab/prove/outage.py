"""What workers do while the provider is away.

How much they ask, how they come back, what revoked credentials do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from ops.lab.prove.faults import Fault
from ops.lab.prove.proxy import SeenRequest
from ops.lab.prove.rig import Rig, RigError
from ops.lab.prove.scenarios import DEFAULT, LIST, Result, Scenario, run_with
from ops.lab.prove.violation import Violation

PROBE: Final = "/v1/refunds/re_credentials_probe"
MOST: Final = 1.2
"""Requests sent over an outage, to those of a healthy run: probes come on top."""
RATE: Final = 40.0
BURST: Final = RATE / 10
SETTINGS: Final = {"REFUNDS_RATE_LIMIT": str(RATE), "REFUNDS_CONCURRENCY": "8"}
_WINDOW: Final = 1.0
_JITTER: Final = 0.1
"""How much a second's count may be over the rate.

Permits are given in Redis, and requests leave a little later.
"""
_NOTICED_SECONDS: Final = 20.0
_CALL: Final = "call:"
_CUT_SECONDS: Final = 3.0

Down = Callable[[Rig], None]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What was sent to the provider in one run, the probes apart."""

    requests: int
    probes: int


def outages(size: int, seconds: float, keep: Path) -> Iterator[Callable[[int], Result]]:
    """Yield the runs of the outage rows; each is called with a seed."""
    healthy = Healthy(size, keep)
    for name, down, up in (
        (
            "silent",
            lambda rig: rig.to_provider.silence("both"),
            lambda rig: rig.to_provider.silence("none"),
        ),
        ("refusing", lambda rig: rig.to_provider.refuse(), lambda rig: rig.to_provider.open()),
        ("failing", lambda rig: rig.sandbox.set_faults("http_503_before:on=any"), _mended),
    ):
        yield _outage(name, (down, up), size, seconds, healthy, keep)
    for status in (401, 403):
        yield partial(_revoked, revoked(status), size // 4, keep)
    for settle_times in (1, 4):
        yield partial(_by_totals, settle_times, size // 4, min(seconds, 20.0), keep)


class Healthy:
    """What a healthy run sends: made once, by whoever asks first, and held against every outage."""

    def __init__(self, size: int, keep: Path) -> None:
        self._size = size
        self._keep = keep
        self._lock = threading.Lock()
        self._traffic: Traffic | None = None

    def traffic(self, seed: int) -> Traffic:
        """Return it; raises `RigError` where the run broke a promise or could not be judged."""
        with self._lock:
            if self._traffic is None:
                self._traffic = self._made(seed)
            return self._traffic

    def _made(self, seed: int) -> Traffic:
        counts: list[Traffic] = []
        calm = Scenario(name="healthy", faults=(_fault("nothing", _nothing, SETTINGS),), mode=LIST)
        done = run_with(
            calm,
            size=self._size,
            seed=seed,
            keep=self._keep,
            after=lambda rig: counts.append(counted(rig)),
        )
        if done.error or done.violations:
            raise RigError(f"the healthy run: {done.error or done.violations[0]}")
        return counts[0]


def _outage(
    name: str, ways: tuple[Down, Down], size: int, seconds: float, healthy: Healthy, keep: Path
) -> Callable[[int], Result]:
    down, up = ways
    shown = f"provider {name} for {seconds:g} s"

    def inject(rig: Rig, _dice: Random) -> int:
        begun = rig.effects()
        rig.until(lambda: rig.effects() >= begun + size // 8, "refunds are being sent")
        before = rig.to_provider.fired.total()
        down(rig)
        time.sleep(seconds)
        failed = sum(fault["fired"] for fault in rig.sandbox.faults()["faults"])
        up(rig)
        return int(failed) + rig.to_provider.fired.total() - before

    def run(seed: int) -> Result:
        counts: list[Traffic] = []
        broken: list[Violation] = []

        def after(rig: Rig) -> None:
            counts.append(counted(rig))
            broken.extend(over_rate(rig, shown))

        rough = Scenario(name=shown, faults=(_fault(shown, inject, SETTINGS),), mode=LIST)
        result = run_with(rough, size=size, seed=seed, keep=keep, after=after)
        if result.error:
            return result
        try:
            usual = healthy.traffic(seed)
        except RigError as error:
            result.error = str(error)
            return result
        sent = counts[0]
        if sent.requests > MOST * usual.requests:
            fact = f"{sent.requests} requests, {usual.requests} in a healthy run"
            broken.append(Violation(rule="outage", about="-", fact=fact))
        result.violations += broken
        ratio = sent.requests / usual.requests
        result.note = f"{ratio:.2f} of a healthy run's requests, and {sent.probes} probes"
        return result

    return run


def _by_totals(settle_times: int, size: int, seconds: float, keep: Path, seed: int) -> Result:
    """Run an outage of so many settle times that begins with refunds whose replies are cut, under
    default settings.

    Which of the doubts are found by themselves, and which go to a person, is what an installation
    wants to know of it.
    """
    shown = (
        f"replies cut, then away for {settle_times} settle time{'s' if settle_times > 1 else ''}"
        " (totals)"
    )
    settings = SETTINGS | {"REFUNDS_SETTLE_SECONDS": str(seconds / settle_times)}

    def inject(rig: Rig, _dice: Random) -> int:
        begun = rig.effects()
        rig.until(lambda: rig.effects() >= begun + size // 8, "refunds are being sent")
        rig.sandbox.set_faults("cut_after")
        time.sleep(_CUT_SECONDS)
        fired = sum(fault["fired"] for fault in rig.sandbox.faults()["faults"])
        rig.sandbox.set_faults("http_503_before:on=any")
        time.sleep(seconds - _CUT_SECONDS)
        _mended(rig)
        return int(fired)

    notes: list[str] = []

    def after(rig: Rig) -> None:
        histories = [
            rig.asking(lambda key=key: rig.redis.lrange(key, 0, -1)) for key in _histories(rig)
        ]
        doubted = [moves for moves in histories if any('"to":"in_doubt"' in move for move in moves)]
        asked = sum(any('"to":"review"' in move for move in moves) for moves in doubted)
        notes.append(
            f"{asked} of {len(doubted)} doubts went to a person, of {len(histories)} refunds"
        )

    scenario = Scenario(
        name=shown, faults=(_fault(shown, inject, settings),), mode=DEFAULT, drain=300.0
    )
    result = run_with(scenario, size=size, seed=seed, keep=keep, after=after)
    result.note = "; ".join(notes)
    return result


def _histories(rig: Rig) -> list[str]:
    return list(rig.asking(lambda: list(rig.redis.scan_iter("refunds:history:*", count=1000))))


def revoked(status: int) -> Scenario:
    """Return the run in which the provider refuses the key for a while, with this status."""
    shown = f"credentials revoked ({status})"

    def inject(rig: Rig, _dice: Random) -> int:
        rig.sandbox.set_faults(f"http_{status}:on=any")
        began = time.time()
        # Some are sent for certain: a breaker that stays shut is the worker's fault and not the
        # run's.
        rig.feed(8)
        rig.alarmed = rig.within(lambda: _flag(rig) is not None, _NOTICED_SECONDS)
        rig.feed(8)
        time.sleep(4)
        rig.key_refused.append((began, time.time()))
        fired = sum(fault["fired"] for fault in rig.sandbox.faults()["faults"])
        rig.sandbox.set_faults("")
        return int(fired)

    return Scenario(name=shown, faults=(_fault(shown, inject, {}),), mode=LIST)


def _revoked(scenario: Scenario, size: int, keep: Path, seed: int) -> Result:
    return run_with(scenario, size=size, seed=seed, keep=keep, after=lambda _: None)


def _fault(name: str, inject: Callable[[Rig, Random], int], settings: dict[str, str]) -> Fault:
    return Fault(name=name, ours=inject, control=None, settings=settings)


def _nothing(_rig: Rig, _dice: Random) -> int:
    return 1


def _mended(rig: Rig) -> None:
    rig.sandbox.set_faults("")


def _flag(rig: Rig) -> Any:
    return rig.asking(lambda: rig.redis.hget("refunds:meta", "credentials_refused_at"))


def counted(rig: Rig) -> Traffic:
    """Return what left the workers: what reached the proxy, or what they counted themselves where
    that is more.
    """
    seen = rig.to_provider.requests
    probes = sum(request.path == PROBE for request in seen)
    # Counted at each heartbeat, so the last ones come a little later.
    time.sleep(6)
    counters = rig.asking(lambda: rig.redis.hgetall("refunds:counters"))
    calls = {name: int(count) for name, count in counters.items() if name.startswith(_CALL)}
    own = sum(count for name, count in calls.items() if ":probe_key:" not in name)
    own_probes = sum(count for name, count in calls.items() if ":probe_key:" in name)
    return Traffic(requests=max(own, len(seen) - probes), probes=max(own_probes, probes))


def over_rate(rig: Rig, about: str) -> list[Violation]:
    """Return a violation for the worst second after the faults in which more POSTs left than the
    rate allows.
    """
    offset = time.time() - time.monotonic()
    late = [request for request in rig.to_provider.requests if request.at + offset > rig.fault_end]
    most = busiest(late)
    allowed = (RATE + BURST) * (1 + _JITTER)
    if not late:
        raise RigError(
            "nothing was sent after the outage: there was nothing left to judge the rate by"
        )
    if most <= allowed:
        return []
    return [
        Violation(rule="rate", about=about, fact=f"{most} POSTs in a second, {allowed:.0f} allowed")
    ]


def busiest(requests: Sequence[SeenRequest]) -> int:
    """Return the largest number of POSTs in any one second."""
    times = sorted(request.at for request in requests if request.method == "POST")
    most = first = 0
    for place, at in enumerate(times):
        while times[first] <= at - _WINDOW:
            first += 1
        most = max(most, place - first + 1)
    return most
