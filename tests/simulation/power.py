"""What a server lacks that starts again, or takes over from another one.

After a power cut what was written a moment ago and not waited for is gone, and scripts are too. A
server that takes over may lack more.

The server flushes its file once a second (`appendfsync everysec`); `WAITAOF` waits for that. A cut
is played by carrying the kept commands out once more: scripts are told the time, so they do again
what they did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.simulation.clock import OUTSIDE
from tests.simulation.snapshot import SNAPSHOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.simulation.records_seam import RawCommand
    from tests.simulation.world import World

FLUSH_SECONDS: Final = 1.0
ON_DISK: Final = (1, 0)
"""The reply to `WAITAOF`: the server itself, and no replica."""
WAIT: Final = "WAITAOF"


class Power:
    """Keeps what one world's server was told, as its append-only file does."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._file: list[tuple[float, RawCommand]] = []
        self._synced = 0
        self._away_until = -1.0

    @property
    def is_drawn(self) -> bool:
        """Whether this world's server may lose what is not on disk yet."""
        return "power" in self._world.plan.odd

    @property
    def keeps_file(self) -> bool:
        """Whether what is written is noted, since some of it may be lost."""
        return self.is_drawn or self._world.plan.odd.takeover is not None

    @property
    def written(self) -> int:
        """The number of commands noted so far."""
        return len(self._file)

    @property
    def is_away(self) -> bool:
        """Whether the server is starting again."""
        return self._world.loop.time() < self._away_until

    def begin(self) -> None:
        """Plan the cuts that nothing leads to."""
        for when in self._world.plan.odd.cuts:
            self._at(when)

    def tempt(self) -> None:
        """Cut it, now and then, right after a person or a caller was told of something."""
        if self.is_drawn and self._world.faulty and self._world.odd_dice.random() < 0.3:
            self._at(self._world.loop.time() + self._world.odd_dice.uniform(0.0, FLUSH_SECONDS))

    def _at(self, when: float) -> None:
        self._world.loop.call_at(when, self.cut, context=OUTSIDE)

    def wrote(self, commands: Sequence[RawCommand], results: Sequence[Any]) -> None:
        """Note what was carried out in this moment."""
        now = self._world.loop.time()
        done = zip(commands, results, strict=True)
        self._file += [
            (now, command) for command, result in done if not isinstance(result, BaseException)
        ]

    def sync(self) -> None:
        """Note that all that was written so far is on disk."""
        self._synced = len(self._file)

    def cut(self) -> None:
        """Lose what was not on disk, and start again."""
        world = self._world
        if not world.faulty or self.is_away:
            return
        since = world.loop.time() - world.odd_dice.uniform(0, FLUSH_SECONDS)
        kept = max(self._synced, sum(1 for at, _ in self._file if at <= since))
        lost = len(self._file) - kept
        world.tell("redis", "power cut:", lost, "writes are lost")
        world.happens("power_cut", "redis")
        if lost:
            world.happens("writes_lost", "redis")
        self.start_with(kept, world.odd_dice.choice((1.5, 5.0, 40.0)))
        world.judge.power_was_cut()
        world.look()
        # What was over may be due again: no sweep may be passed over for what was known before.
        for event in world.changed:
            event.set()

    def written_until(self, when: float) -> int:
        """Return how many commands were noted up to then."""
        return sum(1 for at, _ in self._file if at <= when)

    def start_with(self, kept: int, seconds: float) -> None:
        """Start a server that has the first `kept` commands, and is away for so long."""
        world = self._world
        del self._file[kept:]
        self._synced = kept
        self._away_until = world.loop.time() + seconds
        world.wire.one("FLUSHALL")
        world.load_scripts()
        world.wire.run([command for _, command in self._file])
        world.wire.flush_scripts()
        world.wire.load([SNAPSHOT])


def without_waits(commands: Sequence[RawCommand]) -> list[RawCommand]:
    """Return the commands that a server without a file of its own can carry out."""
    return [command for command in commands if command[0] != WAIT]


def with_waits(commands: Sequence[RawCommand], results: Sequence[Any]) -> list[Any]:
    """Return the replies with one in the place of each wait."""
    rest = iter(results)
    return [[*ON_DISK] if command[0] == WAIT else next(rest) for command in commands]
