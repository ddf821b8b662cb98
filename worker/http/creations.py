"""Accepts refunds: those of concurrent requests share a script and one wait for the disk.

A refund of its own script costs Redis about three times what one of many in a script does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from worker.errors import NotStorable, StoreFull
from worker.model.refund import Lane
from worker.model.request import RefundRequest
from worker.store import creations, scripts
from worker.store.creations import Created
from worker.store.scripts import Command

SCRIPTS_AT_ONCE: Final = 2
"""Scripts under way; requests that come meanwhile share the next one."""

Result = Created | BaseException
_Waiting = list[tuple[RefundRequest, asyncio.Future[Created]]]


class Creations:
    """Accepts refunds in the lane of single ones. For one event loop.

    `run` runs a script of the records, and returns once what it wrote is on disk.
    """

    def __init__(
        self, run: Callable[[Command[Sequence[Created]]], Awaitable[Sequence[Created]]]
    ) -> None:
        self._run = run
        # By the caller's name: a script writes one into the histories.
        self._waiting: dict[str, _Waiting] = {}
        self._under_way: set[asyncio.Task[None] | None] = set()

    async def create(self, wanted: RefundRequest, *, by: str) -> Created:
        """Accept a refund once; `by` names the caller. Raises what running the script raises."""
        future: asyncio.Future[Created] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(by, []).append((wanted, future))
        if len(self._under_way) < SCRIPTS_AT_ONCE:
            self._under_way.add(asyncio.create_task(self._work()))
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                by, group = self._next()
                results = await self._created([wanted for wanted, _ in group], by)
                for (_, future), result in zip(group, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, BaseException):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            # Not in a done callback, which runs later: a request in between would wait for no task.
            self._under_way.discard(asyncio.current_task())

    def _next(self) -> tuple[str, _Waiting]:
        """Return the next group, of the caller that has waited for the longest."""
        by = next(iter(self._waiting))
        waiting = self._waiting.pop(by)
        if rest := waiting[scripts.CREATED_AT_ONCE :]:
            self._waiting[by] = rest
        return by, waiting[: scripts.CREATED_AT_ONCE]

    async def _created(self, group: Sequence[RefundRequest], by: str) -> Sequence[Result]:
        try:
            return await self._run(creations.create_several(group, Lane.SINGLE, by=by))
        except (NotStorable, StoreFull) as error:
            if len(group) == 1:
                return [error]
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the requests, not to this task
            return [error] * len(group)
        # One request of the group is refused, and the script changed nothing: each on its own.
        alone = await asyncio.gather(*(self._created([each], by) for each in group))
        return [result for results in alone for result in results]
