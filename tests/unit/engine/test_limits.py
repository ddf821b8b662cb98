"""The limits of the engine, each as the code around it states it."""

from __future__ import annotations

from worker.engine import actions, service


def test_limits_of_the_engine_are_those_that_are_documented() -> None:
    assert actions.MAX_ACTIONS == 4
    assert service.MOST_WOKEN == 1000
