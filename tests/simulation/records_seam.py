"""The way to Redis: a real server over one blocking connection, seen by each machine through a
network with faults.

A command is carried out whole at one virtual moment, with that moment as the server's clock.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import hiredis
from redis import exceptions

from tests.simulation.clock import OUTSIDE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.simulation.clock import Machine, VirtualLoop

RawCommand = list[Any]

PREFIX: Final = "s:"
CLIENT_SECONDS: Final = 10.0
_CLOCK: Final = 4
"""Where a script's command carries the clock."""


class Wire:
    """One blocking connection to a real server; replies are text."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._reader = hiredis.Reader(encoding="utf-8", replyError=_error)
        self._loaded: set[str] = set()

    def run(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Carry commands out in order; an error of the server is returned in its place."""
        self._socket.sendall(b"".join(hiredis.pack_command(tuple(command)) for command in commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is False:
                chunk = self._socket.recv(1 << 16)
                if not chunk:
                    raise ConnectionError("the server closed the connection")
                self._reader.feed(chunk)
            else:
                replies.append(reply)
        return replies

    def one(self, *command: Any) -> Any:
        """Carry one command out; raises what the server answers with."""
        reply = self.run([command])[0]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def load(self, texts: Sequence[str]) -> None:
        """Let the server have these scripts; it is the same one for many worlds and keeps them."""
        new = [text for text in texts if text not in self._loaded]
        self.run([["SCRIPT", "LOAD", text] for text in new])
        self._loaded.update(new)

    def flush_scripts(self) -> None:
        """Let the server forget every script."""
        self.one("SCRIPT", "FLUSH")
        self._loaded.clear()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _error(text: str) -> Exception:
    if text.startswith("NOSCRIPT"):
        return exceptions.NoScriptError(text)
    return exceptions.ResponseError(text)


def with_clock(commands: Sequence[RawCommand], now_ms: int) -> list[RawCommand]:
    """Return the commands with the server's clock in each script's place for it, before what the
    sender knows of the time.
    """
    return [
        (
            [*command[:_CLOCK], f"{now_ms}{command[_CLOCK]}", *command[_CLOCK + 1 :]]
            if command[0] == "EVALSHA"
            else command
        )
        for command in commands
    ]


class RedisSeam:
    """What `AsyncStore` takes for its client; one per machine."""

    def __init__(
        self,
        machine: Machine,
        serve: Callable[[list[RawCommand], Machine | None], list[Any]],
        draw: Callable[[], tuple[str, float, float]],
    ) -> None:
        self._machine = machine
        self._loop: VirtualLoop = machine.loop
        self._serve = serve
        self._draw = draw

    async def trip(self, commands: list[RawCommand]) -> list[Any]:
        """Carry commands out over the network: whole, lost before, lost after, late or refused."""
        machine = self._machine
        # The pipeline forgets its own when it is left, and a late command is carried out after
        # that.
        commands = [*commands]
        await machine.point("before redis")
        fault, there, back = self._draw()
        reply: asyncio.Future[Any] = self._loop.create_future()
        if fault == "redis_lost":
            machine.arriving(reply, there, exceptions.ConnectionError("cut before the command"))
        elif fault == "redis_refuses":
            refused = exceptions.ResponseError("OOM command not allowed")
            # A wait writes nothing, so memory is no reason to refuse it.
            machine.arriving(
                reply,
                there,
                [[1, 0] if command[0] == "WAITAOF" else refused for command in commands],
            )
        else:
            if fault == "redis_late":
                machine.arriving(
                    reply, min(there, CLIENT_SECONDS), exceptions.TimeoutError("no reply")
                )
                there += CLIENT_SECONDS
            elif fault == "redis_reply_lost":
                machine.arriving(
                    reply, there + back, exceptions.ConnectionError("cut before the reply")
                )
            at = self._loop.time() + there
            self._loop.call_at(
                at, self._at_server, commands, reply, back, fault == "", context=OUTSIDE
            )
        results: list[Any] = await reply
        await machine.point("after redis")
        return results

    def _at_server(
        self,
        commands: list[RawCommand],
        reply: asyncio.Future[Any],
        back: float,
        heard: bool,  # noqa: FBT001 - a timer passes its arguments by position
    ) -> None:
        try:
            results = self._serve(commands, self._machine)
        except exceptions.ConnectionError as error:
            self._machine.arriving(reply, back, error)
            return
        if heard:
            self._machine.arriving(reply, back, results)

    async def _one(self, *command: Any) -> Any:
        reply = (await self.trip([list(command)]))[0]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def pipeline(self, *, transaction: bool) -> _Pipeline:
        """Return a pipeline of commands."""
        del transaction
        return _Pipeline(self)

    async def script_load(self, text: str) -> Any:
        return await self._one("SCRIPT", "LOAD", text)

    async def get(self, key: str) -> Any:
        return await self._one("GET", key)

    async def hexists(self, key: str, name: str) -> Any:
        return await self._one("HEXISTS", key, name)

    async def hdel(self, key: str, name: str) -> Any:
        return await self._one("HDEL", key, name)

    async def aclose(self) -> None:
        """The world closes the connection."""


class _Pipeline:
    """Commands gathered and carried out together."""

    def __init__(self, seam: RedisSeam) -> None:
        self._seam = seam
        self._commands: list[RawCommand] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._commands.clear()

    def execute_command(self, *command: Any) -> None:
        self._commands.append(list(command))

    async def execute(self, *, raise_on_error: bool) -> list[Any]:
        del raise_on_error
        return await self._seam.trip(self._commands)
