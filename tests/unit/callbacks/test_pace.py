"""Callbacks are slowed down while refunds need the processor, and never otherwise."""

from __future__ import annotations

import asyncio

import pytest

from worker.callbacks.pace import BUSY_RATE, BUSY_SHARE, LEAST_SECONDS, Pace


class Clocks:
    """A clock and a processor's clock that a test moves."""

    def __init__(self) -> None:
        self.now, self.used = 0.0, 50.0

    def pass_time(self, seconds: float, share: float) -> None:
        self.now += seconds
        self.used += seconds * share


@pytest.mark.parametrize(
    ("seconds", "share", "working", "busy"),
    [
        (1, 0.9, True, True),
        (1, 0.9, False, False),
        (1, 0.3, True, False),
        (1, 0.0, True, False),
        (5, BUSY_SHARE, True, True),
        (5, 0.3, True, False),
        (LEAST_SECONDS, 0.9, True, True),
    ],
)
def test_worker_is_busy_if_it_has_refunds_and_uses_its_processor(
    seconds: float, share: float, *, working: bool, busy: bool
) -> None:
    clocks = Clocks()
    pace = Pace(lambda: working, used=lambda: clocks.used, clock=lambda: clocks.now)
    clocks.pass_time(seconds, share)
    pace.measure()
    assert pace.busy is busy
    clocks.pass_time(1, 0)
    pace.measure()
    assert not pace.busy


def test_share_is_not_measured_over_a_moment() -> None:
    clocks = Clocks()
    pace = Pace(lambda: True, used=lambda: clocks.used, clock=lambda: clocks.now)
    clocks.pass_time(0.1, 1)
    pace.measure()
    assert not pace.busy


async def test_busy_worker_begins_callbacks_at_a_low_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds * BUSY_RATE, 6))

    monkeypatch.setattr(asyncio, "sleep", sleep)
    clocks = Clocks()
    pace = Pace(lambda: True, used=lambda: clocks.used, clock=lambda: clocks.now)
    await pace.turn()
    assert slept == []
    pace.busy = True
    for _ in range(3):
        await pace.turn()
    assert slept == [1, 2, 3]
    clocks.pass_time(10, 0)
    await pace.turn()
    assert slept[-1] == 1


def test_limits_are_those_that_are_documented() -> None:
    assert (BUSY_SHARE, BUSY_RATE, LEAST_SECONDS) == (0.4, 20, 0.5)
