"""Commands as a person runs them at a shell.

The product's own blocking code, in step with the world.

Each command has a thread of its own, of which every trip to Redis is handed to the world's loop and
waited for: only one of the two ever runs, so that a seed replays to the letter while workers go on
between two trips.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from redis import exceptions

from tests.simulation.records_seam import PREFIX, RawCommand
from worker.errors import StoreUnavailable
from worker.store.store import Store

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")
Read = Callable[[Any], Any]

KILLED_RATE: Final = 0.12


class Killed(BaseException):
    """The command's process was killed."""


class Shell:
    """Where people run commands."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, command: Callable[[Store], T]) -> T:
        """Run a command to its end; raises what it raises, and `Killed` where it was killed at one
        of its trips.
        """
        desk = _Desk()
        client: Any = desk
        store = Store(
            client, prefix=PREFIX, retention=timedelta(days=400), durable=False, address="simulated"
        )
        store.wait_for_disk = self._world.power.keeps_file
        thread = threading.Thread(target=desk.work, args=(command, store), daemon=True)
        thread.start()
        try:
            while True:
                asked = desk.asked.get()
                if not isinstance(asked, list):
                    result: T = _outcome(asked)
                    return result
                desk.told.put(await self._trip(asked))
        finally:
            desk.dead = True
            desk.told.put(Killed())
            thread.join()

    async def until_through(self, command: Callable[[Store], T], killed: str = "") -> T:
        """Run a command as its user does.

        Again, some time later, while it is killed or Redis is away.
        """
        while True:
            try:
                return await self.run(command)
            except Killed:
                if killed:
                    self._world.happens(killed, "person")
            except StoreUnavailable:
                self._world.tell("person", "Redis is away")
            await asyncio.sleep(self._world.dice.choice((1.0, 30.0, 300.0)))

    async def _trip(self, commands: list[RawCommand]) -> Any:
        world, dice = self._world, self._world.dice
        dies = dice.random() if world.faulty and dice.random() < KILLED_RATE else 0.0
        fault, there, back = world.chance.draw_redis()
        await asyncio.sleep(there)
        if 0.0 < dies < 0.5:
            return Killed()
        if fault in {"redis_lost", "redis_refuses"}:
            return exceptions.ConnectionError("cut before the command")
        try:
            results = [
                divmod(world.clock_for(None) * 1000, 1_000_000) if command == ["TIME"] else result
                for command, result in zip(commands, world.serve(commands, None), strict=True)
            ]
        except exceptions.ConnectionError as error:
            return error
        await asyncio.sleep(back)
        if dies:
            return Killed()
        return exceptions.ConnectionError("cut before the reply") if fault else results


def _outcome(ended: Any) -> Any:
    result, error = ended
    if error is not None:
        raise error
    return result


class _Desk:
    """What a `Store` takes for its client, in the thread of one command."""

    def __init__(self) -> None:
        self.asked: SimpleQueue[Any] = SimpleQueue()
        self.told: SimpleQueue[Any] = SimpleQueue()
        self.dead = False

    def work(self, command: Callable[[Store], Any], store: Store) -> None:
        try:
            self.asked.put((command(store), None))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the command
            self.asked.put((None, error))

    def trip(self, commands: Sequence[RawCommand]) -> list[Any]:
        if self.dead:
            raise Killed
        self.asked.put(list(commands))
        results: Any = self.told.get()
        if isinstance(results, BaseException):
            self.dead = isinstance(results, Killed)
            raise results
        return list(results)

    def _one(self, *command: Any) -> Any:
        reply = self.trip([list(command)])[0]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def pipeline(self, *, transaction: bool) -> _Pipeline:
        """Return a pipeline of commands."""
        del transaction
        return _Pipeline(self)

    def script_load(self, text: str) -> Any:
        return self._one("SCRIPT", "LOAD", text)

    def hget(self, key: str, name: str) -> Any:
        return self._one("HGET", key, name)

    def hgetall(self, key: str) -> Mapping[str, str]:
        return _mapping(self._one("HGETALL", key))

    def hset(self, key: str, *, mapping: Mapping[str, str]) -> Any:
        return self._one("HSET", key, *_flat(mapping))

    def lrange(self, key: str, start: int, stop: int) -> Any:
        return self._one("LRANGE", key, start, stop)


class _Pipeline:
    """Commands gathered and carried out together."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk
        self._commands: list[RawCommand] = []
        self._read: list[Read] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.clear()

    def execute_command(self, *command: Any) -> None:
        self._add(list(command), lambda reply: reply)

    def hset(
        self, key: str, name: str = "", value: str = "", *, mapping: Mapping[str, str] | None = None
    ) -> None:
        pairs = [name, value] if mapping is None else _flat(mapping)
        self._add(["HSET", key, *pairs], lambda reply: reply)

    def hdel(self, key: str, *names: str) -> None:
        self._add(["HDEL", key, *names], lambda reply: reply)

    def delete(self, key: str) -> None:
        self._add(["DEL", key], lambda reply: reply)

    def time(self) -> None:
        self._add(["TIME"], lambda reply: reply)

    def hmget(self, key: str, names: Iterable[str], *more: str) -> None:
        first = [names] if isinstance(names, str) else names
        self._add(["HMGET", key, *first, *more], list)

    def hgetall(self, key: str) -> None:
        self._add(["HGETALL", key], _mapping)

    def zrange(self, key: str, start: int, stop: int) -> None:
        self._add(["ZRANGE", key, start, stop], list)

    def _add(self, command: RawCommand, read: Read) -> None:
        self._commands.append(command)
        self._read.append(read)

    def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        if not self._commands:
            return []
        replies = self._desk.trip(self._commands)
        for reply in replies:
            if raise_on_error and isinstance(reply, BaseException):
                raise reply
        return [
            reply if isinstance(reply, BaseException) else read(reply)
            for reply, read in zip(replies, self._read, strict=True)
        ]


def _flat(mapping: Mapping[str, str]) -> list[str]:
    return [each for pair in mapping.items() for each in pair]


def _mapping(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
