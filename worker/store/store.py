"""The blocking store for producers and commands: runs commands, as `scripts` describes them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from heapq import merge
from typing import Any, Final, NamedTuple

import redis
import redis.asyncio
from redis import exceptions

from worker.errors import NotDurable, SettingsError, StoreUnavailable, TooFewReplicas
from worker.model.refund import Lane, Refund, Stage
from worker.model.times import from_ms
from worker.store import durability, record_time, scripts
from worker.store.commands import _QUEUED, RELOADS, T, _lost_script, _Scripts, joined, parted
from worker.store.connection import ask_sentinels_again, redis_errors
from worker.store.records import CLOCK, Moves, decode, records_ms
from worker.store.scripts import Command

PAGE: Final = 500
RECHECK_SECONDS: Final = 60.0
"""How long a check of the server counts while it answers.

Its settings may be changed while a producer runs for months.
"""


class Place(NamedTuple):
    """Where a list of refunds goes on: an id and its score in the index that held it."""

    settled: bool
    score: float
    refund_id: str


class Store(_Scripts):
    """Refund records over a blocking Redis client; safe to share between threads."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str = "refunds:",
        retention: timedelta = timedelta(days=400),
        durable: bool = True,
        replicas: int = 0,
        address: str = "redis",
    ) -> None:
        super().__init__(
            prefix=prefix,
            retention=retention,
            durable=durable,
            replicas=replicas,
            address=address,
        )
        self.redis = client
        self._checked_at = time.monotonic()
        self._keeps = not durable
        """Whether the server was found not to evict records."""
        self._on_disk: datetime | None = None
        """The records' time up to which all writes are known to survive a crash of the server."""

    def run(self, command: Command[T]) -> T:
        """Run one command; raises `StoreUnavailable` if Redis is away."""
        return self.run_many([command])[0]

    def run_many(self, batch: Sequence[Command[T]]) -> list[T]:
        """Run calls in one pipeline and return their results in order."""
        try:
            return self._run_many(batch)
        except StoreUnavailable:
            # The server that answers next may be a promoted one, with settings of its own.
            self._checked_at = float("-inf")
            raise

    def _run_many(self, batch: Sequence[Command[T]]) -> list[T]:
        with redis_errors(self.address):
            self._check(batch)
            results = self._execute(batch)
            for _ in range(RELOADS):
                again = [index for index, result in enumerate(results) if _lost_script(result)]
                if not again:
                    break
                for script in {command.script for command in batch}:
                    self.redis.script_load(script.text)
                for index, result in zip(
                    again, self._execute([batch[i] for i in again]), strict=True
                ):
                    results[index] = result
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        return [command.read(result) for command, result in zip(batch, results, strict=True)]

    def _execute(self, batch: Sequence[Command[Any]]) -> list[Any]:
        runs = joined(batch)
        with self.redis.pipeline(transaction=False) as pipeline:
            for run in runs:
                pipeline.execute_command(*self.raw_command(*[batch[index] for index in run]))
            # Another thread may have found meanwhile that nothing is known of the disk: then the
            # server must confirm.
            waits = self.waits() if any(command.durable for command in batch) else ()
            for wait in waits:
                pipeline.execute_command(*wait)
            results: list[Any] = pipeline.execute(raise_on_error=False)
        try:
            self.check_waits(waits, results[len(runs) :])
        except TooFewReplicas:
            ask_sentinels_again(self.redis)
            raise
        return parted(runs, batch, results[: len(runs)])

    def ask(self, questions: Generator[durability.RawCommand, Any, T]) -> T:
        """Answer the questions of a check of the server.

        Raises what the check raises, and `StoreUnavailable`.
        """
        with redis_errors(self.address):
            try:
                step = next(questions)
                while True:
                    try:
                        reply: Any = self.redis.execute_command(*step)
                    except exceptions.ResponseError as error:
                        reply = error
                    step = questions.send(reply)
            except StopIteration as finished:
                answer: T = finished.value
                return answer

    def _check(self, batch: Sequence[Command[Any]]) -> None:
        """Check the server before the first durable commands, and before those a minute later.

        Raises `NotDurable` if the server may forget what it acknowledges, `SettingsError` if that
        is not readable.
        """
        durable = [command for command in batch if command.durable]
        now = time.monotonic()
        is_due = self.wants_disk and now - self._checked_at >= RECHECK_SECONDS
        if durable and is_due:
            self._checked_at, self._keeps = now, False
        if durable and (is_due or self.wait_for_disk is None):
            self.check_flushing()
        # A confirmation is about what is written already, such as a pause: it is given on a server
        # that may evict, too.
        if not self._keeps and any(command.script is not scripts.CONFIRM for command in durable):
            self.ask(durability.keeping())
            self._keeps = True

    def check_flushing(self) -> None:
        """Find out whether durable commands must wait for the disk.

        Raises as `require_durable` does.
        """
        try:
            self.wait_for_disk = self._probe_disk()
        except (NotDurable, SettingsError):
            self.at_fault, self.wait_for_disk = True, None
            raise
        self.at_fault = False

    def _probe_disk(self) -> bool:
        return self.ask(durability.flushing(after_fault=self.at_fault))

    def require_durable(self) -> None:
        """Raise `NotDurable` if the server may forget what it acknowledged.

        Raises `TooFewReplicas` if too few replicas confirm a write, `SettingsError` if that is not
        readable.
        """
        if self.wants_disk:
            self.check_flushing()
            self.ask(durability.keeping())
        if self.replicas:
            self.run(record_time.confirm())

    def confirm(self) -> None:
        """Return once everything written or read before survives the loss of the server.

        Use this before a report of something not written by a durable command. Raises `NotDurable`,
        `StoreUnavailable`.
        """
        confirm = record_time.confirm()
        self._check([confirm])
        if self.waits():
            self._on_disk = self.run(confirm)

    def confirm_final(self, moments: Iterable[datetime]) -> None:
        """Return once these final statuses survive a crash of the server.

        `moments` are the times of the records at which the statuses became final. A reader of a
        failed refund may pay it back in another way. If a crash undid that status, the refund would
        be sent again. Statuses known to be on disk are not waited for twice. Raises as `confirm`
        does.
        """
        latest = max(moments, default=None)
        if latest is not None and (self._on_disk is None or latest > self._on_disk):
            self.confirm()

    # Reads

    def time(self) -> datetime:
        """Return the records' time, which never goes back."""
        with redis_errors(self.address), self.redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.hmget(self.key("clock"), *CLOCK)
            server_time, clock = pipeline.execute()
        return from_ms(records_ms(server_time, clock))

    def get(self, refund_id: str) -> Refund | None:
        """Return a record, None if it does not exist."""
        return self.get_many([refund_id])[0]

    def get_many(self, refund_ids: Sequence[str]) -> list[Refund | None]:
        """Return records in the order of the ids, None for each that does not exist.

        Settled records are on disk.

        Raises `StoreUnavailable`. For settled records also raises `NotDurable`, or `SettingsError`
        if durability cannot be checked.
        """
        found: list[Refund | None] = []
        with redis_errors(self.address):
            for start in range(0, len(refund_ids), PAGE):
                with self.redis.pipeline(transaction=False) as pipeline:
                    for refund_id in refund_ids[start : start + PAGE]:
                        pipeline.hgetall(self.key(f"refund:{refund_id}"))
                    found.extend(
                        decode(stored) if stored else None for stored in pipeline.execute()
                    )
        self.confirm_final(
            refund.updated_at for refund in found if refund is not None and refund.settled
        )
        return found

    def history(self, refund_id: str) -> list[dict[str, Any]]:
        """Return a refund's moves, oldest first."""
        with redis_errors(self.address):
            entries: Any = self.redis.lrange(self.key(f"history:{refund_id}"), 0, -1)
        moves = Moves().read(entries)
        self.confirm_final(
            from_ms(move["at"]) for move in moves[-1:] if move["to"] == Stage.SETTLED
        )
        return moves

    def ids_in(self, buckets: Iterable[str]) -> Iterator[str]:
        """Yield the ids in indexes.

        Those in progress come first, by their next check, then settled ones, newest first. The
        indexes are merged by time, and read page by page.
        """
        for place in self.places_in(buckets):
            yield place.refund_id

    def places_in(self, buckets: Iterable[str], after: Place | None = None) -> Iterator[Place]:
        """Yield the places of ids in indexes, as `ids_in` does, from the one after `after` on."""
        chosen = list(buckets)
        if after is None or not after.settled:
            start = None if after is None else (after.score, after.refund_id)
            unsettled = [
                self.members_of(f"index:{bucket}", newest_first=False, after=start)
                for bucket in chosen
                if bucket not in SETTLED
            ]
            yield from (Place(False, *found) for found in merge(*unsettled))
        start = (after.score, after.refund_id) if after is not None and after.settled else None
        settled = [
            self.members_of(f"index:{bucket}", newest_first=True, after=start)
            for bucket in chosen
            if bucket in SETTLED
        ]
        yield from (Place(True, *found) for found in merge(*settled, reverse=True))

    def members_of(
        self, name: str, *, newest_first: bool, after: tuple[float, str] | None = None
    ) -> Iterator[tuple[float, str]]:
        """Yield the scores and ids of one sorted set, from the one after `after` on.

        One whose score changes meanwhile may come twice or not at all; each other one comes once.
        """
        key, offset = self.key(name), 0
        score: float | str = ("+inf" if newest_first else "-inf") if after is None else after[0]
        while True:
            with redis_errors(self.address):
                if newest_first:
                    page: Any = self.redis.zrevrangebyscore(
                        key, score, "-inf", start=offset, num=PAGE, withscores=True
                    )
                else:
                    page = self.redis.zrangebyscore(
                        key, score, "+inf", start=offset, num=PAGE, withscores=True
                    )
            for refund_id, its_score in page:
                found = (its_score, refund_id)
                if after is None or (found < after if newest_first else found > after):
                    after = found
                    yield found
            if len(page) < PAGE:
                return
            # From a score on, not from a rank: those before it may leave the set meanwhile. Only
            # where one score fills a whole page, there is nothing but the rank.
            last = page[-1][1]
            score, offset = last, offset + PAGE if last == score else 0

    def ids_contradicted(self) -> list[str]:
        """Return the ids of records that a refund of the provider contradicts, latest first."""
        with redis_errors(self.address):
            ids: Any = self.redis.zrange(self.key("contradicted"), 0, -1, desc=True)
        return list(ids)

    def places_reversed(self, after: Place | None = None) -> Iterator[Place]:
        """Yield refunds that the provider reversed, latest first, page by page."""
        start = None if after is None else (after.score, after.refund_id)
        for found in self.members_of("reversed", newest_first=True, after=start):
            yield Place(True, *found)

    def ids_on_payment(self, payment_intent: str) -> list[str]:
        """Return the ids of our refunds on a payment."""
        with redis_errors(self.address):
            names: Any = self.redis.hkeys(self.key(f"payment:{payment_intent}"))
        return [name.removeprefix("refund:") for name in names if name.startswith("refund:")]

    def owner_of(self, provider_refund_id: str) -> str | None:
        """Return the id of the refund that a refund of the provider belongs to, None without one.

        The refund's record may have expired.
        """
        with redis_errors(self.address):
            owner: Any = self.redis.get(self.key(f"owner:{provider_refund_id}"))
        return None if owner is None else str(owner)

    def batch_state(self, batch_id: str) -> str | None:
        """Return a batch's state: `running`, `paused` or `canceled`.

        Returns None if the batch has no record (any more).
        """
        with redis_errors(self.address):
            state: Any = self.redis.hget(self.key(f"batch:{batch_id}"), "state")
        return None if state is None else str(state)

    def batch_size(self, batch_id: str) -> int:
        """Return how many refunds a batch created, 0 if it does not exist."""
        with redis_errors(self.address):
            size: Any = self.redis.llen(self.key(f"batch-refunds:{batch_id}"))
        return int(size)

    def ids_in_batch(self, batch_id: str, start: int = 0) -> Iterator[str]:
        """Yield a batch's own ids in row order from the position `start` on, page by page."""
        while True:
            with redis_errors(self.address):
                page: Any = self.redis.lrange(
                    self.key(f"batch-refunds:{batch_id}"), start, start + PAGE - 1
                )
            yield from page
            if len(page) < PAGE:
                return
            start += PAGE

    def backlog(self, lane: Lane) -> int:
        """Return how many refunds of a lane are accepted and not yet taken by a worker."""
        with redis_errors(self.address):
            depth: Any = self.redis.zcard(self.key(_QUEUED[lane]))
        return int(depth)

    def counts(self) -> dict[str, int]:
        """Return the number of refunds in each index."""
        with redis_errors(self.address), self.redis.pipeline(transaction=False) as pipeline:
            for bucket in BUCKETS:
                pipeline.zcard(self.key(f"index:{bucket}"))
            return dict(zip(BUCKETS, pipeline.execute(), strict=True))


SETTLED: Final = frozenset({"succeeded", "failed", "canceled"})
"""The indexes of settled refunds."""
BUCKETS: Final = (
    "queued",
    "queued.bulk",
    "sending",
    "waiting",
    "in_doubt",
    "processing",
    "review",
    "succeeded",
    "failed",
    "canceled",
)
