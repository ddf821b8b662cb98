"""What threads ask for at once is done in one round trip, by one of them for all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from threading import Event
from typing import Final, Generic, TypeVar

from worker.errors import StoreUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Sequence[Item]], Sequence[Result]]

_INTERRUPTED: Final = (
    "the call that this one shared a round trip with was interrupted: repeat it with the same id"
)


class _Turn(Generic[Item, Result]):
    """One thread's item, and what became of it."""

    __slots__ = ("item", "leads", "outcome", "woken")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.leads = False
        self.outcome: Result | Exception = StoreUnavailable(_INTERRUPTED)
        self.woken = Event()


class Together(Generic[Item, Result]):
    """Runs a function for the items of all threads that wait at that moment, in their order.

    The first thread runs its own item at once. Those that come meanwhile wait, and then one of them
    runs all of theirs. Safe to share between threads, not across forks. `most` bounds the items of
    one run. An error of a kind in `single` may concern one item only: after it each runs alone.
    """

    def __init__(self, *, most: int, single: tuple[type[Exception], ...] = ()) -> None:
        self._most = most
        self._single = single
        self._lock = threading.Lock()
        self._waiting: deque[_Turn[Item, Result]] = deque()
        self._is_led = False
        self._inside: set[int] = set()

    def run(self, function: Run[Item, Result], item: Item) -> Result:
        """Return what the function returns for this item, or raise what it raises.

        Raises `StoreUnavailable` if the thread that ran this item was interrupted.
        """
        thread = threading.get_ident()
        if thread in self._inside:
            # A signal's handler within a call: this thread cannot wait for itself.
            return function([item])[0]
        self._inside.add(thread)
        try:
            turn = self._taken(function, item)
        finally:
            self._inside.discard(thread)
        if isinstance(turn.outcome, Exception):
            raise turn.outcome
        return turn.outcome

    def _taken(self, function: Run[Item, Result], item: Item) -> _Turn[Item, Result]:
        """Return the turn of an item once it is over."""
        turn: _Turn[Item, Result] = _Turn(item)
        try:
            with self._lock:
                self._waiting.append(turn)
                if not self._is_led:
                    self._is_led = turn.leads = True
            if not turn.leads:
                turn.woken.wait()
            if turn.leads:
                self._lead(function)
        finally:
            self._leave(turn)
        return turn

    def _lead(self, function: Run[Item, Result]) -> None:
        with self._lock:
            turns = list(islice(self._waiting, self._most))
        outcomes: Sequence[Result | Exception] = ()
        try:
            outcomes = self._outcomes(function, [turn.item for turn in turns])
        finally:
            with self._lock:
                self._waiting = deque(turn for turn in self._waiting if turn not in turns)
            # None, if this thread was interrupted: each turn keeps the error that says so.
            for turn, outcome in zip(turns, outcomes, strict=False):
                turn.outcome = outcome
            for turn in turns:
                turn.woken.set()

    def _outcomes(
        self, function: Run[Item, Result], items: Sequence[Item]
    ) -> Sequence[Result | Exception]:
        try:
            return function(items)
        except self._single as error:
            if len(items) == 1:
                return [error]
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the threads that asked
            return [error] * len(items)
        return [outcome for each in items for outcome in self._outcomes(function, [each])]

    def _leave(self, turn: _Turn[Item, Result]) -> None:
        """Let the next thread lead; one that was interrupted is not waited for."""
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if turn.leads:
                self._is_led = bool(self._waiting)
                if self._waiting:
                    following = self._waiting[0]
                    following.leads = True
                    following.woken.set()
