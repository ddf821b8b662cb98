"""Files and their batches: handed in row by row, killed and gone on with, paused, canceled in the
middle, sent again.

The commands are the product's own, run in step with the workers (`shell`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tests.simulation.clock import OUTSIDE
from tests.simulation.shell import Shell
from worker import batches
from worker.batches import BatchDraft
from worker.client import Refunds
from worker.errors import GuardRefused, NotFound
from worker.model.refund import Lane, Retriable
from worker.store.store import Store

if TYPE_CHECKING:
    from tests.simulation.mail import Mail
    from tests.simulation.plan import File
    from tests.simulation.world import World

T = TypeVar("T")

ROWS_A_CHUNK: Final = 2
"""Few, so that a file of a few rows is handed in in several trips.

The product's own figure is hundreds.
"""
_BOTH: Final = frozenset({Retriable.YES, Retriable.UNKNOWN})


class Door(Refunds):
    """The producer's door on a store that is given, with this world's queue."""

    def __init__(self, store: Store, mail: Mail) -> None:
        self._given = store
        self.given_to = mail

    def _watch_backlog(self, lane: Lane) -> None:
        """A backlog is warned of by the machine's own clock, which this world does not have."""

    @property
    def store(self) -> Store:
        return self._given

    def ready_to_nudge(self) -> Any:
        return SimpleNamespace()

    def _nudge(self, refund_ids: Sequence[str], lane: Lane, *, per_message: int = 1) -> None:  # noqa: ARG002 - the client's signature
        self.given_to.nudge(refund_ids, lane)


class Files:
    """Everybody who hands in files; `done` once each was handed in whole or refused."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._shell = Shell(world)
        self._under_way = len(world.plan.files)

    @property
    def done(self) -> bool:
        """Tell whether every file is in, or refused for good."""
        return self._under_way == 0

    def begin(self) -> None:
        """Plan what is done with each file."""
        for file in self._world.plan.files:
            self._world.judge.batches.watch(file.batch_id)
            self._at(file.at, self._import, file)
            self._at(file.pause_at, self._pause, file)
            self._at(file.cancel_at, self._cancel, file)
            self._at(file.retry_at, self._retry, file)

    def _at(
        self, when: float | None, work: Callable[[File], Coroutine[Any, Any, None]], file: File
    ) -> None:
        loop = self._world.loop

        def start() -> None:
            loop.create_task(work(file), context=OUTSIDE)

        if when is not None:
            loop.call_at(when, start, context=OUTSIDE)

    async def _import(self, file: File) -> None:
        try:
            await self._shell.until_through(
                lambda store: self._hand_in(store, file), "import_killed"
            )
            self._world.judge.batches.imported(file.batch_id, [row.refund_id for row in file.rows])
            self._world.tell("person", "handed in", file.batch_id)
        except GuardRefused as refusal:
            self._world.happens("import_refused", "person")
            self._world.tell("person", "import refused", refusal)
        finally:
            self._under_way -= 1

    def _hand_in(self, store: Store, file: File) -> None:
        """Do what `refunds import` does with a file whose rows are valid."""
        judge = self._world.judge
        for row in file.rows:
            judge.accepted(row, said=False)
        # Rows of other files, and single refunds, have the same payments and amounts.
        opening = BatchDraft(delay=_seconds(file.delay), allow_repeat=True)
        opened = batches.open_batch(
            store,
            file.batch_id,
            file="season.csv",
            digest=file.batch_id,
            rows=len(file.rows),
            opening=opening,
        )
        if file.delay and opened.fresh:
            self._world.happens("batch_delayed", "person")
        door = Door(store, self._world.mail)
        handed = conflicting = 0
        for row, made in door.submit_stream(file.rows, lane=Lane.BULK, batch_id=opened.batch_id):
            judge.accepted(row)
            handed += made.result != "conflict"
            conflicting += made.result == "conflict"
        batches.close_batch(store, opened.batch_id, handed_in=handed, conflicting=conflicting)

    async def _pause(self, file: File) -> None:
        with suppress(NotFound, GuardRefused):
            if await self._shell.until_through(
                # A finished batch is not paused: the command reports that to the person.
                lambda store: (
                    batches.pause_batch(store, file.batch_id, by="person")
                    or batches.state_of_batch(store, file.batch_id) == "paused"
                )
            ):
                self._world.happens("batch_paused", "person")
                self._told(file, "paused")
            await asyncio.sleep((file.resume_at or 0.0) - (file.pause_at or 0.0))
            if await self._shell.until_through(
                lambda store: batches.resume_batch(store, file.batch_id)
            ):
                self._told(file, "running")

    async def _cancel(self, file: File) -> None:
        with suppress(NotFound):
            canceled = await self._shell.until_through(
                lambda store: batches.cancel_batch(store, file.batch_id, "person"), "cancel_killed"
            )
            self._world.tell("person", "canceled", file.batch_id, canceled.canceled)
            self._told(file, "canceled")
            if (
                canceled.canceled
                and canceled.batch.statuses.get("canceled", 0) < canceled.batch.accepted
            ):
                self._world.happens("batch_canceled_midway", "person")

    def _told(self, file: File, state: str) -> None:
        """Note what a person was told of a batch, which may tempt the server's power."""
        self._world.judge.batches.told(file.batch_id, state)
        self._world.power.tempt()

    async def _retry(self, file: File) -> None:
        def nudge(refund_ids: Sequence[str]) -> None:
            self._world.mail.nudge(refund_ids, Lane.BULK)

        with suppress(NotFound, GuardRefused):
            retried = await self._shell.until_through(
                lambda store: batches.retry_batch(
                    store, file.batch_id, "person", kinds=_BOTH, nudge=nudge
                )
            )
            if retried.retried:
                self._world.happens("batch_retried", "person")


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
