"""Turns calls into Redis commands: the code that both stores share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from redis import exceptions

from worker.errors import NotDurable, TooFewReplicas
from worker.model.refund import Lane
from worker.store import durability, scripts
from worker.store.connection import unavailable
from worker.store.scripts import Command

T = TypeVar("T")

WAITAOF_MS: Final = 5000
WAIT_MS: Final = 1000
"""How long a write waits for its replicas.

Together with `WAITAOF_MS` shorter than the client's socket timeout, so that the server replies.
"""
RELOADS: Final = 3
"""How often lost scripts are loaded again; a server may restart between load and command."""
_QUEUED: Final = {Lane.SINGLE: "index:queued", Lane.BULK: "index:queued.bulk"}

_ms = timedelta(milliseconds=1)


class _Scripts:
    """Base of both stores: turns a command into one `EVALSHA`."""

    def __init__(
        self, *, prefix: str, retention: timedelta, durable: bool, replicas: int, address: str
    ) -> None:
        self.prefix = prefix
        self.retention_ms = retention // _ms
        self.wants_disk = durable
        self.replicas = replicas
        """How many replicas must have a durable write before it counts."""
        self.lacks_replicas = False
        """Whether the latest durable write was confirmed by fewer."""
        self.address = address
        self.now: datetime | None = None
        """The time of a simulation; None means the server's clock."""
        self.least_time: Callable[[], int | None] = lambda: None
        """Returns the least that the records' time is, in epoch ms, None if that is not known."""
        self.wait_for_disk: bool | None = None if durable else False
        self.at_fault = False
        """Whether the latest check found that the server may forget what it acknowledges."""

    @property
    def may_not_forget(self) -> bool:
        """Return whether a server that forgot a durable write is at fault."""
        return self.wants_disk or self.replicas > 0

    def key(self, name: str) -> str:
        return self.prefix + name

    def raw_command(self, *commands: Command[Any]) -> list[scripts.Argument]:
        """Return the `EVALSHA` of one command, or of several that run together: see `joined`."""
        script = commands[0].script
        raw: list[scripts.Argument] = ["EVALSHA", script.sha, 0, self.prefix]
        raw += [scripts.at(self.now, self.least_time()), self.retention_ms]
        for command in commands:
            latest = command.latest()
            if script.takes_members:
                raw.append(len(command.arguments) + len(latest))
            raw += command.arguments
            raw += latest
        return raw

    def waits(self) -> tuple[durability.RawCommand, ...]:
        """Return the commands that wait until durable writes are safe.

        They follow the writes on the same connection, since a server waits for the latest write of
        the connection that asks.
        """
        disk = () if self.wait_for_disk is False else (("WAITAOF", 1, 0, WAITAOF_MS),)
        return (*disk, ("WAIT", self.replicas, WAIT_MS)) if self.replicas else disk

    def check_waits(self, waits: Sequence[durability.RawCommand], replies: Sequence[Any]) -> None:
        """Raise an error if a reply to `waits` does not confirm that the writes are safe."""
        for (name, *_), reply in zip(waits, replies, strict=True):
            (self.check_disk if name == "WAITAOF" else self.check_replicas)(reply)

    def check_disk(self, result: Any) -> None:
        self._check_answered(result, "on disk")
        if int(result[0]) < 1:
            raise unavailable(exceptions.TimeoutError("WAITAOF"), self.address)

    def check_replicas(self, result: Any) -> None:
        self._check_answered(result, "on a replica")
        self.lacks_replicas = int(result) < self.replicas
        if self.lacks_replicas:
            raise TooFewReplicas(self.replicas, int(result), self.address)

    def _check_answered(self, result: Any, where: str) -> None:
        if isinstance(result, exceptions.ResponseError) and durability.is_replica(result):
            raise unavailable(result, self.address)
        if isinstance(result, exceptions.ResponseError):
            raise NotDurable(
                f"this Redis could not confirm that a write is {where}: see 'refunds doctor'"
            ) from result
        if isinstance(result, BaseException):
            raise result


def joined(group: Sequence[Command[Any]]) -> list[list[int]]:
    """Return the indexes of the commands of a pipeline that run together, in the order to be sent.

    Claims run with claims and saves with saves, at most `JOINED` in one run. Commands for one
    refund keep their order. Others need not, since calls that are not awaited one by one arrive in
    any.
    """
    runs: list[list[int]] = []
    opened: dict[str, tuple[list[int], set[scripts.Argument]]] = {}
    for index, command in enumerate(group):
        script, arguments = command.script, command.arguments
        run, overtaken = opened.get(script.sha, ([], set()))
        if not run or len(run) == scripts.JOINED or arguments[0] in overtaken:
            run = []
            runs.append(run)
            if script.takes_members:
                opened[script.sha] = run, set()
        run.append(index)
        # A command that joins an earlier run overtakes those that are between.
        named = arguments[:1] if script.takes_members else arguments
        for sha, (_, others) in opened.items():
            if sha != script.sha:
                others.update(named)
    return runs


def parted(
    runs: Sequence[Sequence[int]], group: Sequence[Command[Any]], replies: Sequence[Any]
) -> list[Any]:
    """Return the replies to the commands of a pipeline, from the replies to its runs."""
    results: list[Any] = [None] * len(group)
    for run, reply in zip(runs, replies, strict=True):
        # An error of the run, such as a script that is lost, is that of each command in it.
        is_one = isinstance(reply, BaseException) or not group[run[0]].script.takes_members
        for index, result in zip(run, [reply] * len(run) if is_one else reply, strict=True):
            results[index] = result
    return results


def _lost_script(result: Any) -> bool:
    return isinstance(result, exceptions.NoScriptError)
