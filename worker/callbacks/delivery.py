"""Delivers callbacks: each endpoint has its own connections and slots, so none waits for another.

What is due is in the records. If this process cannot begin a member, or loses it, the member is due
again there.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Final

import structlog

from worker.callbacks.endpoints import Endpoint
from worker.callbacks.pace import BUSY_RATE, Pace
from worker.callbacks.payload import Message, message_of
from worker.callbacks.posting import MOST_READ, Poster, Reply
from worker.callbacks.retries import wait_after
from worker.errors import RefundError, StoreUnavailable
from worker.model.request import scrubbed
from worker.store import callbacks
from worker.store.async_store import AsyncStore
from worker.store.callbacks import Ended, Taken, Wanted

log = structlog.get_logger(__name__)

SPARE: Final = timedelta(seconds=15)
"""How long a lease outlasts the longest request, and how late a request may begin in it."""
TAKEN_PER_SLOT: Final = 60
"""Members taken for an endpoint at a time, for each request that one worker may make at once."""
MOST_TAKEN: Final = 500
MOST_TAKEN_BUSY: Final = round(BUSY_RATE)
MOST_HELD: Final = 10_000
"""Members that wait for an endpoint in this process; the rest is due again in half a minute."""
PER_MESSAGE: Final = 50
ROUNDS: Final = 20
"""Maximum scripts in a row that share out."""
END_SECONDS: Final = 5.0
"""How long requests in flight may take at the end."""

Nudge = Callable[[str, Sequence[str]], None]


class Sender:
    """Sends callbacks from one event loop, for the endpoints that this process knows."""

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        store: AsyncStore,
        *,
        worker: str,
        pace: Pace,
        chance: Callable[[], float],
    ) -> None:
        self._store = store
        self._pace = pace
        self._lines = {
            endpoint.name: _Line(
                store,
                Poster(endpoint),
                worker=worker,
                pace=self._pace,
                chance=chance,
            )
            for endpoint in endpoints
        }
        self._closing = False

    async def sweep(self, nudge: Nudge) -> int:
        """Share out what endpoints are to learn, and send messages for what is due.

        Return how many are due. `nudge` blocks, so it runs in a thread. Raises `StoreUnavailable`,
        and passes on the broker's errors; what was taken is due again in half a minute.
        """
        self._pace.measure()
        wanted = [
            Wanted(
                name=line.endpoint.name,
                ids=line.endpoint.ids,
                most=line.room(MOST_TAKEN_BUSY if self._pace.busy else MOST_TAKEN),
            )
            for line in self._lines.values()
        ]
        found = await self._store.run(callbacks.outbox(wanted))
        messages = [
            (name, members[start : start + PER_MESSAGE])
            for name, members in found.due.items()
            for start in range(0, len(members), PER_MESSAGE)
        ]
        for _ in range(ROUNDS):
            if found.shared_out < callbacks.SHARED_OUT:
                break
            # What these take is none: only the first script does.
            found = await self._store.run(
                callbacks.outbox([Wanted(name=each.name, ids=each.ids, most=0) for each in wanted])
            )
        if messages:
            await asyncio.to_thread(_send, messages, nudge)
        return sum(len(members) for _, members in messages)

    def accept(self, name: str, members: Sequence[str]) -> int:
        """Begin to send members to an endpoint; return how many fit in. Call it in the loop."""
        line = self._lines.get(name)
        return 0 if line is None or self._closing else line.accept(members)

    async def idle(self) -> None:
        """Return once nothing waits or is in flight in this process."""
        while any(line.tasks for line in self._lines.values()):
            tasks = [task for line in self._lines.values() for task in line.tasks]
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Begin no more, let requests in flight end, and close the connections.

        What does not end in time is sent again by another worker, with the same id.
        """
        self._closing = True
        tasks: list[asyncio.Task[None]] = []
        for line in self._lines.values():
            line.waiting.clear()
            tasks += line.tasks
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=END_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for line in self._lines.values():
            await line.poster.close()


class _Line:
    """What waits and is in flight for one endpoint in this process."""

    def __init__(
        self,
        store: AsyncStore,
        poster: Poster,
        *,
        worker: str,
        pace: Pace,
        chance: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint = poster.endpoint
        self.poster = poster
        self._pace = pace
        self.waiting: deque[str] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self._store = store
        self._worker = worker
        self._chance = chance
        self._held: set[str] = set()
        self._lease = timedelta(seconds=endpoint.timeout_seconds) + SPARE

    def room(self, most: int) -> int:
        """Return how many members to take, so that few wait here for longer than they are held."""
        return max(0, min(TAKEN_PER_SLOT * self.endpoint.in_flight, most) - len(self.waiting))

    def accept(self, members: Sequence[str]) -> int:
        accepted = 0
        for member in members:
            if len(self._held) >= MOST_HELD:
                break
            if member not in self._held:
                self._held.add(member)
                self.waiting.append(member)
                accepted += 1
        # One that is done may not have been discarded yet.
        self.tasks = {task for task in self.tasks if not task.done()}
        while self.waiting and len(self.tasks) < self.endpoint.in_flight:
            task = asyncio.create_task(self._work())
            self.tasks.add(task)
            task.add_done_callback(self._over)
        return accepted

    def _over(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)

    async def _work(self) -> None:
        while self.waiting:
            await self._pace.turn()
            if not self.waiting:
                return
            member = self.waiting.popleft()
            try:
                await self._deliver(member)
            except StoreUnavailable as error:
                # The lease lapses, and then the member is due again.
                log.warning("callback_deferred", endpoint=self.endpoint.name, error=str(error))
            except RefundError as error:
                log.warning("callback_not_sent", endpoint=self.endpoint.name, error=str(error))
            except Exception:
                # The outermost loop: a line that ends silently is worse than any error.
                log.exception("callback_crashed", endpoint=self.endpoint.name)
            finally:
                self._held.discard(member)

    async def _deliver(self, member: str) -> None:
        name, token = self.endpoint.name, secrets.token_hex(8)
        began = time.monotonic()
        taken = await self._store.run(callbacks.take(name, member, token=token, lease=self._lease))
        if taken.result != "taken":
            return
        try:
            message = message_of(self._store.prefix, member, taken, metadata=self.endpoint.metadata)
        except (ValueError, TypeError, KeyError) as error:
            # The lease lapses, and then the record is read again: a person may have repaired it.
            log.error(  # noqa: TRY400 - the error of this record, not of the worker
                "callback_not_readable", member=member, error=type(error).__name__, alarm=True
            )
            return
        # What waits may be from before the endpoint's ids were changed, or named by a person.
        if message is None or not self.endpoint.wants(member, message.event):
            state = "" if message is None else message.state
            await self._store.run(
                callbacks.ended(name, member, token=token, result="skipped", version=state)
            )
            return
        if time.monotonic() - began > SPARE.total_seconds():
            # The process stood still: the lease may end before an answer, and another try begin.
            return
        # The records' time may be ahead, and a receiver compares with its own clock.
        reply = await self.poster.post(message.identity, int(time.time()), message.body)
        await self._end(member, token, taken, message, reply)

    async def _end(
        self, member: str, token: str, taken: Taken, message: Message, reply: Reply
    ) -> None:
        name = self.endpoint.name
        wait = wait_after(taken.tries, chance=self._chance(), asked=reply.retry_after)
        entry = {
            "member": member,
            "event": message.event,
            "version": message.version,
            "webhook_id": message.identity,
            "try": str(taken.tries + 1),
            "result": reply.result,
            "status": "" if reply.status is None else str(reply.status),
            "error": reply.error,
            "ms": str(round(reply.seconds * 1000)),
            "reply": scrubbed(reply.reply, MOST_READ),
            "worker": self._worker,
        }
        ended = await self._store.run(
            callbacks.ended(
                name,
                member,
                token=token,
                result=reply.result,
                version=message.state,
                wait=wait,
                log=entry,
            )
        )
        self._report(member, ended, reply)

    def _report(self, member: str, ended: Ended, reply: Reply) -> None:
        facts = {
            "endpoint": self.endpoint.name,
            "member": member,
            "status": reply.status,
            "error": reply.error or None,
        }
        if reply.result == "refused":
            log.error("callbacks_refused", alarm=True, **facts)
        elif ended == "dead":
            log.error("callback_dead", alarm=True, **facts)
        elif reply.result == "failed":
            log.warning("callback_failed", **facts)
        else:
            log.debug("callback_delivered", **facts)


def _send(messages: Sequence[tuple[str, Sequence[str]]], nudge: Nudge) -> None:
    for name, members in messages:
        nudge(name, members)
