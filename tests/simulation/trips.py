"""What the judge, the sweepers and the trace learn about each trip to Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from worker.batches import opening, record
from worker.store import rechecks, scripts

if TYPE_CHECKING:
    from tests.simulation.clock import Machine
    from tests.simulation.records_seam import RawCommand
    from tests.simulation.world import World

_ID: Final = 6
_VERSION: Final = 10
"""Where a script's command carries the first argument of its own."""
_MODULES: Final = (scripts, rechecks, opening, record)


class Trips:
    """Hears what was asked in one world, and what was answered."""

    def __init__(self, world: World) -> None:
        self._world = world

    def answered(
        self,
        commands: list[RawCommand],
        results: list[Any],
        machine: Machine,
        flags: Sequence[str | None],
    ) -> None:
        """Let the judge hear what a worker was answered, with the flags that stood before it."""
        judge, forgetting = self._world.judge, self._world.forgetting
        for command, result in zip(commands, results, strict=True):
            forgetting.answered(machine, command, result)
            if command[1] == scripts.GATE.sha and isinstance(result, list):
                judge.brakes.given(machine.name, result, judge.now_ms())
            elif _asks_about_a_claim(command):
                continue
            elif command[1] in may_send() and (
                result == "" or (isinstance(result, list) and result[0] == "claimed")
            ):
                judge.may_send(str(command[_ID]), machine.name, flags)
            elif (
                command[1] == scripts.SAVE.sha
                and isinstance(result, list)
                and result[0] == "contradicts"
            ):
                judge.refunds[str(command[_ID])].late_proofs.append(machine)

    def wrote(self, commands: list[RawCommand], results: list[Any]) -> None:
        """Let the judge and the sweepers hear of commands that may have written."""
        world = self._world
        for command in commands:
            if command[1] == scripts.FLAG.sha or command[0] == "HDEL":
                world.breaker_is_open = command[0] != "HDEL"
        # A sweep in the same trip may have taken up at once what was given back before it.
        last, result = commands[-1], results[-1]
        if last[1] == scripts.GIVE_BACK.sha and isinstance(result, int):
            ids = [str(refund_id) for refund_id in last[_ID:]]
            world.judge.given_back(ids, world.judge.now_ms())
        for event in world.changed:
            event.set()

    def tell(self, commands: list[RawCommand], results: list[Any], machine: Machine | None) -> None:
        """Add the commands and their results to the trace."""
        names = {script.sha: script.name for script in every_script()}
        world, who = self._world, machine.name if machine else "world"
        for command, result in zip(commands, results, strict=True):
            if command[0] != "EVALSHA":
                world.tell(who, command[0])
                continue
            name = names.get(command[1], "planted")
            known = world.judge.refunds.get(str(command[6])) if command[6:7] else None
            if known is None:
                world.tell(who, name, _in_order(result) if name == "siblings" else result)
                continue
            answer = result[0] if isinstance(result, list) and result and name != "load" else ""
            kind = command[7] if name == "claim" else ""
            stored = known.record
            stand = (
                f"{stored.get('stage')} {stored.get('status')} {known.label}"
                f" v{stored.get('version')}"
            )
            world.tell(who, name, command[6], kind, answer, "=>", stand)


def each_command(command: RawCommand) -> list[RawCommand]:
    """Return each claim or save of a run as a command of its own; else the command itself."""
    if command[0] != "EVALSHA" or command[1] not in {scripts.CLAIM.sha, scripts.SAVE.sha}:
        return [command]
    found, at = [], _ID
    while at < len(command):
        end = at + 1 + int(command[at])
        found.append([*command[:_ID], *command[at + 1 : end]])
        at = end
    return found


def each_of(
    commands: Sequence[RawCommand], results: Sequence[Any]
) -> tuple[list[RawCommand], list[Any]]:
    """Return the commands of a trip with those that ran together as commands of their own."""
    asked: list[RawCommand] = []
    answered: list[Any] = []
    for command, result in zip(commands, results, strict=True):
        members = each_command(command)
        takes_members = members[0] is not command
        is_whole = takes_members and not isinstance(result, BaseException)
        asked += members
        answered += result if is_whole else [result] * len(members)
    return asked, answered


def every_script() -> list[scripts.Script]:
    """Return the scripts as they stand now: planted ones too."""
    return [
        value
        for module in _MODULES
        for value in vars(module).values()
        if isinstance(value, scripts.Script)
    ]


def _in_order(records: Any) -> Any:
    """Return records with their fields sorted: each server's own table has another order."""
    if not isinstance(records, list):
        return records
    return [
        sorted(zip(row[::2], row[1::2], strict=True)) if isinstance(row, list) else row
        for row in records
    ]


def _asks_about_a_claim(command: RawCommand) -> bool:
    """Tell whether a worker asks what became of a claim whose reply it lost.

    It sends nothing for the answer.
    """
    return command[1] == scripts.CLAIM.sha and str(command[_VERSION]) == "0"


def may_send() -> tuple[str, str]:
    """Return the scripts that tell a worker that it may send, as they are now.

    A planted bug has others.
    """
    return scripts.CLAIM.sha, scripts.STANDS.sha
