"""Wakes requests that wait for a refund or for any move: one reader of the moves a process.

The reader runs only while a request waits. A wait also reads again every few seconds, which makes
up for a move that was missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import structlog

from worker.errors import RefundError
from worker.model.refund import Stage

log = structlog.get_logger(__name__)

MOST_WAITING: Final = 2000
"""Further requests do not wait: they are answered at once."""
POLL_SECONDS: Final = 5.0
POSITION_SECONDS: Final = 1.0
"""How long a wait leaves Redis to say after which move it begins; then its polls remain."""
_PAUSE_SECONDS: Final = 1.0
"""How long the reader pauses if Redis is away."""
_RESTING: Final = frozenset({Stage.SETTLED.value, Stage.REVIEW.value})

Found = list[tuple[str, str, str]]
"""Positions, refund ids and stages of moves."""


class Waiters:
    """Requests that wait. For one event loop.

    `latest` returns the position of the latest move, and `follow` waits for moves after a position.
    """

    def __init__(
        self,
        latest: Callable[[], Awaitable[str]],
        follow: Callable[[str], Awaitable[Found]],
        *,
        poll_seconds: float,
        position_seconds: float,
        most: int,
    ) -> None:
        self._latest, self._follow = latest, follow
        self._poll_seconds, self._position_seconds = poll_seconds, position_seconds
        self._most = most
        self._by_id: dict[str, set[asyncio.Event]] = {}
        self._for_any: set[asyncio.Event] = set()
        self.count = 0
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._ended = False

    async def until(
        self, is_over: Callable[[], Awaitable[bool]], *, refund_id: str | None, seconds: float
    ) -> None:
        """Return when `is_over` is true, the time is over or the server ends.

        It is called at once, after each move of the refund (of any refund without an id) to an end
        or to review, and every few seconds.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        if seconds <= 0 or self._ended or self.count >= self._most:
            await is_over()
            return
        with self._registered(refund_id) as moved:
            await self._reading(end)
            while not await is_over() and not self._ended and (left := end - loop.time()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, self._poll_seconds)):
                        await moved.wait()
                moved.clear()

    def end(self) -> None:
        """Answer every wait as it is now; later ones do not wait."""
        self._ended = True
        for moved in [*self._for_any, *(each for found in self._by_id.values() for each in found)]:
            moved.set()

    async def close(self) -> None:
        """End the reader, which returns within a few seconds."""
        self.end()
        if self._reader is not None:
            await self._reader

    @contextmanager
    def _registered(self, refund_id: str | None) -> Iterator[asyncio.Event]:
        moved = asyncio.Event()
        waiting = self._for_any if refund_id is None else self._by_id.setdefault(refund_id, set())
        waiting.add(moved)
        self.count += 1
        try:
            yield moved
        finally:
            self.count -= 1
            waiting.discard(moved)
            if refund_id is not None and not waiting:
                del self._by_id[refund_id]

    async def _reading(self, end: float) -> None:
        """Return once the reader has its position: it misses no move after that."""
        if self._reader is None:
            self._ready.clear()
            self._reader = asyncio.create_task(self._read())
        latest = asyncio.get_running_loop().time() + self._position_seconds
        # Redis may be slow or away.
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(end, latest)):
                await self._ready.wait()

    async def _read(self) -> None:
        position = ""
        try:
            while self.count and not self._ended:
                try:
                    position = position or await self._latest()
                    self._ready.set()
                    for move_id, refund_id, stage in await self._follow(position):
                        position = move_id
                        self._wake(refund_id, stage)
                except RefundError as error:
                    log.warning("moves_not_read", error=str(error))
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            self._ready.set()
            self._reader = None

    def _wake(self, refund_id: str, stage: str) -> None:
        for moved in self._for_any:
            moved.set()
        if stage in _RESTING:
            for moved in self._by_id.get(refund_id, ()):
                moved.set()
