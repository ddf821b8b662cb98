"""The Lua scripts on the records, and a command: one script with its arguments.

The modules beside this one make the commands: `creations`, `claims`, `saves`, `reads`, `sweeps`,
`gate`, `account_facts`, `meta`, `record_time` and others. `Store` (blocking) or `AsyncStore` runs a
`Command`, alone or pipelined with others. Every command is safe to repeat if its reply was lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any, Final, Generic, TypeVar

from worker.model.currencies import KNOWN as CURRENCIES
from worker.model.refund import Lane, Stage, Status
from worker.model.request import MAX_AMOUNT, REASONS
from worker.model.times import to_ms
from worker.rules.attempts import MAX_SERVER_ERRORS
from worker.rules.codes import CODES
from worker.store.records import NUMBERS

T = TypeVar("T")
Argument = str | bytes | int | float
CREATED_AT_ONCE: Final = 50
"""Maximum refunds that one script accepts; it blocks the server for about a millisecond."""
JOINED: Final = 50
"""Maximum claims or saves that one run of a script takes."""
_MEMBERS: Final = "_members"
SHARED: Final = (
    "_begin",
    "_counters",
    "_refund",
    "_rows",
    "_payment",
    "_batch",
    "_owners",
    "_history",
    "_check",
    "_move",
)
"""The files that come before every script, in this order: each uses what those before declare."""


def beginning() -> str:
    """Return the Lua code that passes the rules' constants to the scripts.

    Bounds, and names between spaces.
    """
    names: dict[str, Iterable[str]] = {
        "STAGES": Stage,
        "STATUSES": Status,
        "LANES": Lane,
        "REASONS": REASONS,
        "CODES": CODES,
        "CURRENCIES": CURRENCIES,
    }
    lists = [f"local {name} = ' {' '.join(sorted(words))} '" for name, words in names.items()]
    numbers = ", ".join(f"'{name}'" for name in sorted(NUMBERS))
    return "\n".join(
        [
            f"local MAX_AMOUNT, MOST_ROWS = {MAX_AMOUNT}, {CREATED_AT_ONCE}",
            f"local MAX_SERVER_ERRORS = {MAX_SERVER_ERRORS}",
            f"local function numbers() return {{{numbers}}} end",
            *lists,
        ]
    )


@cache
def shared_text() -> str:
    """Return what comes before every script."""
    return "\n".join([beginning(), *map(_read, SHARED)])


def _read(name: str) -> str:
    return (resources.files("worker.store") / "lua" / f"{name}.lua").read_text("utf-8")


class Script:
    """A Lua script: one file behind those that come before every script, known by its digest.

    `shared` names further files that come between.
    """

    def __init__(self, name: str, *shared: str) -> None:
        self.name = name
        self.shared = shared
        self.takes_members = _MEMBERS in shared
        """Whether one run takes the arguments of several commands: see `lua/_members.lua`."""
        self.text = "\n".join([shared_text(), *map(_read, (*shared, name))])
        self.sha = hashlib.sha1(self.text.encode("utf-8"), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Command(Generic[T]):
    """One script with its arguments; `read` converts the raw reply to the result.

    A durable command returns only after its writes survive a crash of the server. That is the
    default, because the caller reports the result or depends on it.
    """

    script: Script
    arguments: Sequence[Argument]
    read: Callable[[Any], T]
    durable: bool = True
    latest: Callable[[], Sequence[Argument]] = tuple
    """Returns further arguments, as they are when the command is sent."""


CREATE: Final = Script("create", "_standing")
LOAD: Final = Script("load")
CLAIM: Final = Script("claim", _MEMBERS, "_position")
STANDS: Final = Script("stands")
SAVE: Final = Script("save", _MEMBERS, "_standing")
SWEEP: Final = Script("sweep")
GIVE_BACK: Final = Script("give_back")
SIBLINGS: Final = Script("siblings")
GATE: Final = Script("gate")
BLOCK_GATE: Final = Script("block_gate")
PIN: Final = Script("pin")
FLAG: Final = Script("flag")
ONCE: Final = Script("once")
TOKEN_NAME: Final = Script("token_name")
CLOCK: Final = Script("clock")
BEAT: Final = Script("beat")
CONFIRM: Final = Script("confirm")
POSITION: Final = Script("position", "_position")
PAYMENT: Final = Script("payment")
ACCOUNT: Final = Script("account")
WITNESSES: Final = Script("witnesses")
EVERY: Final = (
    *(
        CREATE,
        LOAD,
        CLAIM,
        STANDS,
        SAVE,
        SWEEP,
        GIVE_BACK,
        SIBLINGS,
        GATE,
        BLOCK_GATE,
        PIN,
        FLAG,
        CLOCK,
        BEAT,
    ),
    *(PAYMENT, ACCOUNT, WITNESSES, POSITION),
)


def at(now: datetime | None, least: int | None = None) -> str:
    """Return the clock argument of a script: '' for the server's own clock.

    `least` is the least that the records' time is, in epoch ms, if the sender knows: see
    `record_time.LeastTime`.
    """
    clock = "" if now is None else str(to_ms(now))
    return clock if least is None else f"{clock}>{least}"
