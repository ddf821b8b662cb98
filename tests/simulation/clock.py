"""Virtual time: an event loop whose clock jumps, and machines that can be stopped, let go on, or
killed.

Every callback belongs to the machine in whose context it was scheduled, or to the world (network,
provider, people). A stopped machine's callbacks wait; when it goes on, what arrived comes first and
its overdue timers after, as an event loop that wakes finds them.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH: Final = datetime(2026, 3, 1, tzinfo=UTC)
_EPOCH_MS: Final = int(EPOCH.timestamp() * 1000)
_MOST_TASKS_KEPT: Final = 200
OUTSIDE: Final = contextvars.Context()
FROZEN: Final = "frozen"
"""What befalls a worker that is stopped for very long over a reply."""
"""The world's own context, of no machine.

Callbacks of one loop never nest, so that all may share it.
"""

MACHINE: Final[contextvars.ContextVar[Machine | None]] = contextvars.ContextVar(
    "machine", default=None
)


class Stuck(RuntimeError):
    """Nothing is ready and no timer is set: the world would wait for ever."""


class _Handle(asyncio.Handle):
    """A callback that waits while its machine is stopped."""

    __slots__ = ()

    def _run(self) -> None:
        machine = self._context.get(MACHINE)  # type: ignore[attr-defined]  # asyncio keeps it, typeshed does not say so
        if machine is not None and machine.stopped:
            machine.arrived.append(self)
            return
        super()._run()


class _TimerHandle(asyncio.TimerHandle):
    """A timer that waits while its machine is stopped."""

    __slots__ = ()

    def _run(self) -> None:
        machine = self._context.get(MACHINE)  # type: ignore[attr-defined]
        if machine is not None and machine.stopped:
            machine.overdue.append(self)
            return
        super()._run()


class _Jump:
    """In the place of a selector: waiting takes no time, the clock goes straight to the next
    timer.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck
        if timeout > 0:
            self._loop.jump()
        return []

    def close(self) -> None:
        """There is nothing to close."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on virtual time; the same callbacks in the same order give the same run."""

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = _Jump(self)
        self.failures: list[str] = []
        self.set_exception_handler(self._failed)
        self.set_task_factory(_owned_task)

    def time(self) -> float:
        """Return virtual seconds since the world began."""
        return self._now

    def jump(self) -> None:
        """Go to the next timer."""
        self._now = max(self._now, self._scheduled[0].when())

    @property
    def wall_ms(self) -> int:
        """The true time, which is also the Redis server's, in epoch milliseconds."""
        return _EPOCH_MS + round(self._now * 1000)

    @property
    def wall(self) -> datetime:
        """The true time."""
        return EPOCH + timedelta(seconds=self._now)

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Schedule for this turn, owned by the machine of the context."""
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Schedule for a virtual time, owned by the machine of the context."""
        # Never the base's own class: its timers would not wait for a stopped machine.
        timer = _TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run at once: a thread would bring real time in."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - an executor hands on whatever the function raised
            future.set_exception(error)
        return future

    def requeue(self, handles: list[Any]) -> None:
        """Put waiting callbacks back into this turn."""
        self._ready.extend(handles)

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{context['message']}: {error!r}")

    def _process_events(self, event_list: list[Any]) -> None:
        """There is no I/O: the network is simulated by timers."""

    def _write_to_self(self) -> None:
        """Nobody wakes this loop from outside."""


def _owned_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    machine = MACHINE.get() if context is None else context.get(MACHINE)
    if machine is not None:
        machine.keep(task)
    return task


class Machine:
    """One life of one worker process.

    Its tasks, the error of its clock, and what is planned to befall it.
    """

    def __init__(
        self, loop: VirtualLoop, name: str, *, skew: float, befalls: Callable[[Machine, str], None]
    ) -> None:
        self.name = name
        self.loop = loop
        self.skew = skew
        """Seconds by which its wall clock is wrong; its monotonic clock starts anywhere."""
        self.alive = True
        self.stopped = False
        self.ending_at: float | None = None
        """When it was told to end in good order."""
        self.arrived: list[Any] = []
        self.overdue: list[Any] = []
        self.planned: dict[int, str] = {}
        """What befalls it at which of its points."""
        self.points = 0
        self.context = contextvars.copy_context()
        self.context.run(MACHINE.set, self)
        self._tasks: list[asyncio.Task[Any]] = []
        self._in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._befalls = befalls

    def clock(self) -> float:
        """Its monotonic clock."""
        return self.loop.time() + 1000.0 + self.skew

    @property
    def wall(self) -> datetime:
        """The time as this machine believes it to be."""
        return self.loop.wall + timedelta(seconds=self.skew)

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Remember a task, so that it dies with the machine."""
        self._tasks.append(task)
        if len(self._tasks) > _MOST_TASKS_KEPT:
            self._tasks = [one for one in self._tasks if not one.done()]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine on this machine."""
        return self.loop.create_task(work, context=self.context)

    async def work_on(self, message: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Handle a message, which one who ends in good order waits for."""
        self._in_hand += 1
        self._idle.clear()
        try:
            await message()
        finally:
            self._in_hand -= 1
            if not self._in_hand:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no message is in hand."""
        await self._idle.wait()

    async def point(self, where: str) -> bool:
        """Mark a place at which the machine may die or be stopped.

        Return whether it was stopped here.
        """
        if not self.alive:
            raise asyncio.CancelledError
        self.points += 1
        if self.points not in self.planned:
            return False
        self._befalls(self, where)
        await asyncio.sleep(0)
        return True

    async def arrival(self, seconds: float) -> None:
        """Wait for something from outside, which a stopped machine notices only when it goes on."""
        await self.arriving(self.loop.create_future(), seconds, None)

    def arriving(
        self, future: asyncio.Future[Any], seconds: float, value: Any
    ) -> asyncio.Future[Any]:
        """Let a value, or an exception, arrive by the network after so many seconds."""
        self.loop.call_at(self.loop.time() + seconds, self._deliver, future, value, context=OUTSIDE)
        return future

    def _deliver(self, future: asyncio.Future[Any], value: Any) -> None:
        self.loop.call_soon(_resolve, future, value, context=self.context)

    def stop(self) -> None:
        """Stop it as SIGSTOP does."""
        self.stopped = True

    def go_on(self) -> None:
        """Let it go on as SIGCONT does: what arrived comes first, overdue timers after."""
        if not self.alive or not self.stopped:
            return
        self.stopped = False
        waiting = [*self.arrived, *sorted(self.overdue, key=lambda timer: float(timer.when()))]
        self.arrived, self.overdue = [], []
        self.loop.requeue(waiting)

    def kill(self) -> None:
        """End it as SIGKILL does: no task of it touches anything outside again."""
        self.alive = self.stopped = False
        self.loop.requeue([*self.arrived, *self.overdue])
        self.arrived, self.overdue = [], []
        for task in self._tasks:
            task.cancel()


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if future.done():
        return
    if isinstance(value, BaseException):
        future.set_exception(value)
    else:
        future.set_result(value)
