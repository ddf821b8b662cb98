"""The atomic operations for callbacks: which endpoint is to learn what, and what became of it.

Commands that a store runs. A member is a refund id, or `batch/` and a batch id. The
endpoints learn the present state of a member, not its moves: so several moves may make one
callback, and a later one is never overtaken by an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from worker.model.times import from_ms
from worker.store.records import pairs_of
from worker.store.scripts import Argument, Command, Script

OUTBOX: Final = Script("outbox", "_callbacks")
CALLBACK: Final = Script("callback", "_callbacks")
DELIVERED: Final = Script("delivered", "_callbacks")
REPLAY: Final = Script("callback_replay", "_callbacks")
EVERY: Final = (OUTBOX, CALLBACK, DELIVERED, REPLAY)

SHARED_OUT: Final = 200
"""Maximum members that one script shares out, so that it blocks the server for a moment only."""
HOLD: Final = timedelta(seconds=30)
"""How long a member that was taken is not taken again, if its message is lost."""
OPEN_FROM: Final = 5
"""Failures in a row from which an endpoint gets one probe at a time."""
FIRST_PROBE: Final = timedelta(seconds=30)
MOST_PROBE: Final = timedelta(minutes=5)
"""The longest time between two probes; it doubles from the first."""
LOGGED: Final = 10_000
"""Tries that an endpoint's log holds."""
REPLAYED: Final = 500
"""Maximum members that one script makes due again."""
BATCH: Final = "batch/"
"""What the member of a batch begins with; no refund id holds a slash."""

_ms = timedelta(milliseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an endpoint is to get: refund ids that begin with `ids`, and at most `most` of them."""

    name: str
    ids: str
    most: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Outbox:
    """How many members were shared out, and what is due now by endpoint."""

    shared_out: int
    due: Mapping[str, Sequence[str]]


def outbox(endpoints: Iterable[Wanted]) -> Command[Outbox]:
    """Share out what endpoints are to learn, and take what is due."""

    def read(reply: Any) -> Outbox:
        due: dict[str, list[str]] = {}
        for name, member in zip(reply[1::2], reply[2::2], strict=True):
            due.setdefault(name, []).append(member)
        return Outbox(shared_out=int(reply[0]), due=due)

    arguments: list[Argument] = [SHARED_OUT, HOLD // _ms, OPEN_FROM]
    for endpoint in endpoints:
        arguments += [endpoint.name, endpoint.ids, endpoint.most]
    # If a crash undoes it, it is repeated: the append-only file is in order.
    return Command(script=OUTBOX, arguments=arguments, read=read, durable=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """The begin of a try: `taken` with the record as stored, or the reason why not.

    `gone`: the endpoint knows it. `leased`: another try is under way. `early`: the next try is not
    due. `paused`. `open`: the endpoint keeps failing, and this is not the probe.
    """

    result: Literal["taken", "gone", "leased", "early", "paused", "open"]
    now: datetime
    tries: int
    """Failed tries before this one."""
    status_before: str | None = None
    stored: Mapping[str, str] | None = None
    """None if the record has expired."""


def take(name: str, member: str, *, token: str, lease: timedelta) -> Command[Taken]:
    """Begin a try, which no other begins until the lease ends.

    Durable, since a receiver may act on the status: a crash must not undo it.
    """

    def read(reply: Any) -> Taken:
        now = from_ms(int(reply[1]))
        if reply[0] != "taken":
            return Taken(result=reply[0], now=now, tries=0)
        return Taken(
            result="taken",
            now=now,
            tries=int(reply[2]),
            status_before=reply[3] or None,
            stored=pairs_of(reply[4:]) or None,
        )

    arguments: list[Argument] = [name, member, token, lease // _ms, OPEN_FROM]
    return Command(script=CALLBACK, arguments=arguments, read=read)


Result = Literal["delivered", "skipped", "failed", "refused"]
"""What became of a try. `skipped`: not sent, since the endpoint wants no such event."""
Ended = Literal["done", "newer", "again", "dead", "paused", "late"]


def ended(
    name: str,
    member: str,
    *,
    token: str,
    result: Result,
    version: str,
    wait: timedelta | None = None,
    log: Mapping[str, str] | None = None,
) -> Command[Ended]:
    """End a try. A failed one is repeated after `wait`; without one it becomes a dead letter.

    `version` is what was sent, of a refund with the ms at which it was written after a space. If
    the record has moved on, it is due again at once.
    """
    arguments: list[Argument] = [
        name,
        member,
        token,
        result,
        version,
        "" if wait is None else max(0, wait // _ms),
        OPEN_FROM,
        FIRST_PROBE // _ms,
        MOST_PROBE // _ms,
        LOGGED,
    ]
    for field, value in (log or {}).items():
        arguments += [field, value]
    # If a crash undoes it, the same is sent again, with the same id.
    return Command(
        script=DELIVERED,
        arguments=arguments,
        read=lambda reply: reply[0],
        durable=False,
    )


def replay(name: str, members: Sequence[str], *, only_dead: bool = False) -> Command[int]:
    """Make members due again, with all tries before them; return how many."""
    arguments: list[Argument] = [name, "1" if only_dead else "", *members]
    return Command(script=REPLAY, arguments=arguments, read=int)
