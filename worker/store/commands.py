"""Turns calls into Redis commands: the code that both stores share."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from redis import exceptions

from worker.errors import NotDurable
from worker.model.refund import Lane
from worker.store import durability, scripts
from worker.store.connection import unavailable
from worker.store.scripts import Command

T = TypeVar("T")

WAITAOF_MS: Final = 5000
RELOADS: Final = 3
"""How often lost scripts are loaded again; a server may restart between load and command."""
_QUEUED: Final = {Lane.SINGLE: "index:queued", Lane.BULK: "index:queued.bulk"}

_ms = timedelta(milliseconds=1)


class _Scripts:
    """Base of both stores: turns a command into one `EVALSHA`."""

    def __init__(self, *, prefix: str, retention: timedelta, durable: bool, address: str) -> None:
        self.prefix = prefix
        self.retention_ms = retention // _ms
        self.wants_disk = durable
        self.address = address
        self.now: datetime | None = None
        """The time of a simulation; None means the server's clock."""
        self.wait_for_disk: bool | None = None if durable else False
        self.at_fault = False
        """Whether the latest check found that the server may forget what it acknowledges."""

    def key(self, name: str) -> str:
        return self.prefix + name

    def raw_command(self, command: Command[Any]) -> list[scripts.Argument]:
        return [
            "EVALSHA",
            command.script.sha,
            0,
            self.prefix,
            scripts.at(self.now),
            self.retention_ms,
            *command.arguments,
        ]

    def check_disk(self, result: Any) -> None:
        if isinstance(result, exceptions.ResponseError) and durability.is_replica(result):
            raise unavailable(result, self.address)
        if isinstance(result, exceptions.ResponseError):
            raise NotDurable(
                "this Redis could not confirm that a write is on disk: see 'refunds doctor'"
            ) from result
        if isinstance(result, BaseException):
            raise result
        if int(result[0]) < 1:
            raise unavailable(exceptions.TimeoutError("WAITAOF"), self.address)


def _lost_script(result: Any) -> bool:
    return isinstance(result, exceptions.NoScriptError)
