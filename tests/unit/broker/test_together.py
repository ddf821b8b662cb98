"""What threads ask for at once is done in one run, and each gets its own result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from worker.broker import together
from worker.broker.together import Together
from worker.errors import NotStorable, StoreUnavailable

PATIENCE = 30


def _of(items: Sequence[int]) -> list[str]:
    return [f"done {item}" for item in items]


class Held:
    """A function whose first run waits until `go`; the items of each run are in `runs`."""

    def __init__(self, rule: Callable[[Sequence[int]], Sequence[str]] = _of) -> None:
        self.go = threading.Event()
        self.runs: list[list[int]] = []
        self._rule = rule

    def __call__(self, items: Sequence[int]) -> Sequence[str]:
        self.runs.append(list(items))
        if len(self.runs) == 1:
            assert self.go.wait(PATIENCE)
            return _of(items)
        return self._rule(items)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def gathered(
    pool: ThreadPoolExecutor, shared: Together[int, str], held: Held, count: int
) -> list[Future[str]]:
    """Have item 0 run, and so many more wait for it, in their order; then let them go."""
    asked = [pool.submit(shared.run, held, 0)]
    reached(lambda: len(held.runs) == 1)
    for number in range(1, count + 1):
        asked.append(pool.submit(shared.run, held, number))
        reached(partial(_waits, shared, number + 1))
    held.go.set()
    return asked


def _waits(shared: Together[int, str], count: int) -> bool:
    return len(shared._waiting) == count


def reached(condition: Callable[[], bool]) -> None:
    paused = threading.Event()
    for _ in range(PATIENCE * 1000):
        if condition():
            return
        paused.wait(0.001)
    raise AssertionError("not reached")


def test_a_thread_that_comes_alone_runs_its_item_at_once() -> None:
    held = Held()
    held.go.set()
    shared = Together[int, str](most=3)
    assert [shared.run(held, number) for number in range(2)] == ["done 0", "done 1"]
    assert held.runs == [[0], [1]]


def test_those_that_come_meanwhile_share_the_next_runs_in_their_order(
    pool: ThreadPoolExecutor,
) -> None:
    held, shared = Held(), Together[int, str](most=3)
    asked = gathered(pool, shared, held, 5)
    assert [each.result(PATIENCE) for each in asked] == [f"done {number}" for number in range(6)]
    assert held.runs == [[0], [1, 2, 3], [4, 5]]


def test_an_error_is_raised_in_each_thread_of_its_run_and_in_no_other(
    pool: ThreadPoolExecutor,
) -> None:
    def fails(items: Sequence[int]) -> Sequence[str]:
        if 1 in items:
            raise StoreUnavailable("away")
        return _of(items)

    asked = gathered(pool, Together[int, str](most=2), Held(fails), 4)
    assert [type(each.exception(PATIENCE)) for each in asked] == [
        *(type(None), StoreUnavailable, StoreUnavailable),
        *(type(None), type(None)),
    ]


def test_an_error_of_one_item_leaves_the_others_their_results(pool: ThreadPoolExecutor) -> None:
    def refuses(items: Sequence[int]) -> Sequence[str]:
        if 2 in items:
            raise NotStorable("a wrong value")
        return _of(items)

    held = Held(refuses)
    asked = gathered(pool, Together[int, str](most=9, single=(NotStorable,)), held, 3)
    assert [each.exception(PATIENCE) is None for each in asked] == [True, True, False, True]
    with pytest.raises(NotStorable, match="a wrong value"):
        asked[2].result()
    assert held.runs == [[0], [1, 2, 3], [1], [2], [3]]


def test_what_an_interrupted_thread_ran_for_others_is_to_be_repeated_and_the_next_goes_on(
    pool: ThreadPoolExecutor,
) -> None:
    def interrupted(items: Sequence[int]) -> Sequence[str]:
        if 1 in items:
            raise KeyboardInterrupt
        return _of(items)

    shared = Together[int, str](most=2)
    asked = gathered(pool, shared, Held(interrupted), 3)
    assert isinstance(asked[1].exception(PATIENCE), KeyboardInterrupt)
    with pytest.raises(StoreUnavailable, match="repeat it with the same id"):
        asked[2].result(PATIENCE)
    assert asked[3].result(PATIENCE) == "done 3"
    assert shared.run(_of, 4) == "done 4"


class _Interrupted(threading.Event):
    """An event whose waiter is interrupted before it comes, or just after."""

    late = False

    def wait(self, timeout: float | None = None) -> bool:
        if self.late:
            super().wait(timeout)
        raise KeyboardInterrupt


@pytest.mark.parametrize("late", [False, True])
def test_a_thread_that_is_interrupted_while_it_waits_holds_up_none(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    held, shared = Held(), Together[int, str](most=3)
    first = pool.submit(shared.run, held, 0)
    reached(lambda: len(held.runs) == 1)
    monkeypatch.setattr(_Interrupted, "late", late)
    monkeypatch.setattr(together, "Event", _Interrupted)
    waiting = pool.submit(shared.run, held, 1)
    if late:
        reached(lambda: len(shared._waiting) == 2)
    else:
        assert isinstance(waiting.exception(PATIENCE), KeyboardInterrupt)
    monkeypatch.undo()
    behind = pool.submit(shared.run, held, 2)
    reached(lambda: len(shared._waiting) == 2 + late)
    held.go.set()
    assert first.result(PATIENCE) == "done 0"
    assert behind.result(PATIENCE) == "done 2"
    assert isinstance(waiting.exception(PATIENCE), KeyboardInterrupt)
    # Interrupted as it was to lead, it ran nothing.
    assert held.runs == [[0], [2]]


def test_a_call_within_a_call_of_the_same_thread_does_not_wait_for_itself() -> None:
    shared = Together[int, str](most=3)

    def nested(items: Sequence[int]) -> Sequence[Any]:
        return [shared.run(_of, 10 + item) for item in items]

    assert shared.run(nested, 1) == "done 11"
    assert shared.run(_of, 2) == "done 2"
