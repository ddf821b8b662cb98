"""The store for the event loop: concurrent calls are gathered into few Redis pipelines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import redis
import redis.asyncio
from redis import exceptions

from worker.errors import NotDurable, SettingsError, StoreUnavailable, TooFewReplicas
from worker.model.refund import Lane
from worker.store import durability, meta, reads, record_time
from worker.store.commands import _QUEUED, RELOADS, T, _lost_script, _Scripts, joined, parted
from worker.store.connection import ask_sentinels_again_async, ours, redis_errors
from worker.store.reads import Loaded
from worker.store.record_time import LeastTime
from worker.store.scripts import Command, Script

TRIPS: Final = 3
"""Maximum concurrent pipelines.

With one, a saturated worker spends a third of its time waiting for Redis.
"""
_GATHERED: Final = 256
DIRECT: Final = 16
"""Maximum concurrent calls of one kind that are not gathered into pipelines."""


class AsyncStore(_Scripts):
    """Refund records over an asyncio Redis client.

    Calls made while pipelines are in flight share the next pipeline.

    Up to `TRIPS` pipelines are in flight at once, so calls that are not awaited one by one arrive
    in any order.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        prefix: str = "refunds:",
        retention: timedelta = timedelta(days=400),
        durable: bool = True,
        replicas: int = 0,
        address: str = "redis",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            prefix=prefix,
            retention=retention,
            durable=durable,
            replicas=replicas,
            address=address,
        )
        self.redis = client
        self._waiting: list[tuple[Command[Any], asyncio.Future[Any]]] = []
        self._flushers: set[asyncio.Task[None] | None] = set()
        self.direct = asyncio.Semaphore(DIRECT)
        """Held during a call that is not gathered, so that a flood does not use up connections."""
        self._on_disk: datetime | None = None
        """The records' time up to which all writes are known to survive a crash of the server."""
        self._seen = self.least_time = LeastTime(monotonic)

    async def run(self, command: Command[T]) -> T:
        """Run one command; raises `StoreUnavailable` if Redis is away."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if len(self._flushers) < TRIPS:
            self._flushers.add(asyncio.create_task(self._flush()))
        reply = await future
        return command.read(reply)

    async def _flush(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_GATHERED], self._waiting[_GATHERED:]
                results = await self._results([command for command, _ in group])
                for (_, future), result in zip(group, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, BaseException):
                        future.set_exception(self._foreign(result))
                    else:
                        future.set_result(result)
        finally:
            # Not in the task's done callback, which runs later: a command run in between would wait
            # for no task.
            self._flushers.discard(asyncio.current_task())

    async def _results(self, group: Sequence[Command[Any]]) -> list[Any]:
        """Return the result of each command, an error in the place of one that failed."""
        try:
            return await self._run_group(group)
        except UnicodeDecodeError as error:
            if len(group) == 1:
                return [error]
            # A record holds what is not text, and no reply of the pipeline could be read. That
            # concerns the calls for that record only, and every command is safe to repeat.
            return [(await self._results([command]))[0] for command in group]
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the callers, not to this task
            return [error] * len(group)

    def _foreign(self, error: BaseException) -> BaseException:
        return ours(error, self.address) or error

    async def _run_group(self, group: Sequence[Command[Any]]) -> list[Any]:
        if self.wait_for_disk is None and any(command.durable for command in group):
            try:
                self.wait_for_disk = await self._probe_disk()
            except (NotDurable, SettingsError) as error:
                # Calls in the group that need not be durable are not affected.
                rest = [command for command in group if not command.durable]
                results = iter(await self._run_scripts(rest) if rest else [])
                return [error if command.durable else next(results) for command in group]
        return await self._run_scripts(group)

    async def _run_scripts(self, group: Sequence[Command[Any]]) -> list[Any]:
        results = await self._execute(group)
        for _ in range(RELOADS):
            again = [index for index, result in enumerate(results) if _lost_script(result)]
            if not again:
                break
            for script in {group[index].script for index in again}:
                await self.redis.script_load(script.text)
            for index, result in zip(
                again, await self._execute([group[i] for i in again]), strict=True
            ):
                results[index] = result
        return results

    async def _execute(self, group: Sequence[Command[Any]]) -> list[Any]:
        # A check may have failed since this group was let through: then the server must confirm.
        durable = [command.durable for command in group]
        waits = self.waits() if any(durable) else ()
        runs = joined(group)
        async with self.redis.pipeline(transaction=False) as pipeline:
            for run in runs:
                pipeline.execute_command(*self.raw_command(*[group[index] for index in run]))
            for wait in waits:
                pipeline.execute_command(*wait)
            results: list[Any] = await pipeline.execute(raise_on_error=False)
        results, confirmed = parted(runs, group, results[: len(runs)]), results[len(runs) :]
        try:
            self.check_waits(waits, confirmed)
        except (NotDurable, StoreUnavailable, exceptions.RedisError, OSError) as error:
            if isinstance(error, TooFewReplicas):
                await ask_sentinels_again_async(self.redis)
            return [
                error if wants else result for wants, result in zip(durable, results, strict=True)
            ]
        return results

    async def _probe_disk(self) -> bool:
        try:
            waits = await self._ask(durability.probe(after_fault=self.at_fault))
        except (NotDurable, SettingsError):
            self.at_fault, self.wait_for_disk = True, None
            raise
        self.at_fault = False
        return waits

    async def _ask(self, questions: Generator[durability.RawCommand, Any, T]) -> T:
        try:
            step = next(questions)
            while True:
                try:
                    reply: Any = await self.redis.execute_command(*step)
                except exceptions.ResponseError as error:
                    reply = error
                step = questions.send(reply)
        except StopIteration as finished:
            answer: T = finished.value
            return answer

    async def require_durable(self) -> None:
        """Raise `NotDurable` if the server may forget what it acknowledged.

        Checks the server again. Raises `TooFewReplicas` if too few replicas confirm a write.

        After a check that failed, each durable command checks the server first, until a check
        succeeds.
        """
        if self.wants_disk:
            with redis_errors(self.address):
                self.wait_for_disk = await self._probe_disk()
        if self.replicas:
            await self.run(record_time.confirm())

    async def load_scripts(self, scripts: Sequence[Script]) -> None:
        """Load the scripts into the server before the first refund needs them."""
        with redis_errors(self.address):
            for script in scripts:
                await self.redis.script_load(script.text)

    async def flagged(self, name: str) -> bool:
        """Return whether a flag in `meta` is set, such as `paused` or `credentials_refused_at`."""
        with redis_errors(self.address):
            return bool(await self.redis.hexists(self.key("meta"), name))

    async def flag(self, name: str, *, once: bool) -> bool:
        """Set a flag in `meta` to the records' time.

        With `once`, return whether it was not set before.
        """
        return await self.run(meta.flag(name, once=once))

    async def unflag(self, *names: str) -> None:
        """Clear flags in `meta`."""
        with redis_errors(self.address):
            await self.redis.hdel(self.key("meta"), *names)

    async def meta(self, *names: str) -> list[str | None]:
        """Return the values of fields in `meta`, None for an absent field."""
        with redis_errors(self.address):
            found: Any = await self.redis.hmget(self.key("meta"), *names)
        return list(found)

    async def owner_of(self, provider_refund_id: str) -> str | None:
        """Return the refund whose record has a refund of the provider, None if none has it."""
        with redis_errors(self.address):
            owner: Any = await self.redis.get(self.key(f"owner:{provider_refund_id}"))
        return None if owner is None else str(owner)

    async def load(self, refund_id: str) -> Loaded:
        """Return a record and the records' time; a settled record is on disk.

        Raises `StoreUnavailable`, and `NotDurable` for a settled record that may be lost.
        """
        loaded = await self.run(reads.load(refund_id))
        if loaded.refund is not None and loaded.refund.settled:
            await self.confirm_final(loaded.refund.updated_at)
        return loaded

    async def confirm_final(self, moment: datetime) -> None:
        """Return once a final status of this time survives a crash of the server.

        As `Store.confirm_final`: a time that is known to be on disk is not waited for twice.
        """
        is_known = self._on_disk is not None and moment <= self._on_disk
        if is_known or not self.waits():
            return
        self._on_disk = await self.run(record_time.confirm())

    async def backlog(self, lane: Lane) -> int:
        """Return how many refunds of a lane are accepted and not yet taken by a worker."""
        with redis_errors(self.address):
            return int(await self.redis.zcard(self.key(_QUEUED[lane])))

    async def beat(self, worker: str) -> None:
        """Record a worker's heartbeat, and remove workers without one for a day.

        Also note the records' time, and thereby how late it is at least from now on.
        """
        self._seen.saw(await self.run(meta.beat(worker)))

    async def leave(self, worker: str) -> None:
        """Remove a worker that has ended."""
        with redis_errors(self.address):
            await self.redis.zrem(self.key("workers"), worker)

    async def close(self) -> None:
        """Send the calls that are gathered, then close the client."""
        while self._flushers:
            await asyncio.wait([flusher for flusher in self._flushers if flusher is not None])
        await self.redis.aclose()
