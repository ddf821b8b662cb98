"""The audit: who did what, from where, and what came of it, in a stream of bounded length.

An action is noted before it is done, and its result after. So an action whose result was not
noted, as after a crash, still shows who began it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

from worker.errors import NotDurable, RefundError, StoreUnavailable
from worker.model.request import scrubbed
from worker.model.times import from_ms, rfc3339
from worker.store.async_store import AsyncStore
from worker.store.connection import redis_errors
from worker.store.scripts import Argument, Command, Script
from worker.store.store import Store

T = TypeVar("T")

AUDIT: Final = Script("audit")
STREAM: Final = "audit"
KEPT: Final = 100_000
"""The length from which on the server removes the oldest entries; an action has two."""
DONE: Final = "done"
UNCHANGED: Final = "unchanged"
UNKNOWN: Final = "unknown"
"""The result of an action whose end was not noted, or that may have happened."""
_LONGEST_NOTE: Final = 500
_AT_ONCE: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Deed:
    """Something that a person does: `by` whom, with what, from where, to what, and why."""

    by: str
    via: Literal["page", "api", "command line"]
    address: str
    action: str
    target: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A deed in the audit; `result` is done, unchanged, refused or unknown.

    With the number of what was done, or the reason.
    """

    entry_id: str
    at: datetime
    deed: Deed
    result: str

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as JSON."""
        deed = self.deed
        return {
            "id": self.entry_id,
            "at": rfc3339(self.at),
            "by": deed.by,
            "via": deed.via,
            "address": deed.address,
            "action": deed.action,
            "target": deed.target,
            "note": deed.note,
            "result": self.result,
        }


def carry_out(
    store: Store, deed: Deed, work: Callable[[], T], target: Callable[[T], str] | None = None
) -> T:
    """Do something that is noted before and after. Raises what the work does.

    Work that returns False, 0, or a pair that begins with False has changed nothing. Any other
    number is how many it has changed. If a result has the attribute `audited`, that counts instead.
    `target` names the target of a deed that has none before it is done. If the deed cannot be
    noted, nothing is done: raises `StoreUnavailable`.
    """
    begun, result, named = store.run(_begin(deed)), UNKNOWN, ""
    try:
        value = work()
        result, named = _result_of(value), "" if target is None else target(value)
    except RefundError as error:
        result = _result_of_error(error)
        raise
    finally:
        # The deed was done or refused: an end that cannot be noted changes neither.
        with suppress(RefundError):
            store.run(_end(begun, result, named))
    return value


async def carry_out_async(store: AsyncStore, deed: Deed, work: Callable[[], Awaitable[T]]) -> T:
    """Do the same as `carry_out` in an event loop."""
    begun, result = await store.run(_begin(deed)), UNKNOWN
    try:
        value = await work()
        result = _result_of(value)
    except RefundError as error:
        result = _result_of_error(error)
        raise
    finally:
        with suppress(RefundError):
            await store.run(_end(begun, result))
    return value


def _result_of(value: object) -> str:
    match getattr(value, "audited", value):
        case False | (False, *_) | 0:
            return UNCHANGED
        case int(changed) if changed is not True:
            return f"{DONE}: {changed}"
        case _:
            return DONE


def _result_of_error(error: RefundError) -> str:
    # It may have happened: the server may have written it before it was lost.
    is_open = isinstance(error, StoreUnavailable | NotDurable)
    return f"{UNKNOWN if is_open else 'refused'}: {scrubbed(str(error))}"


def _begin(deed: Deed) -> Command[str]:
    fields = {
        "by": scrubbed(deed.by),
        "via": deed.via,
        "address": scrubbed(deed.address),
        "action": deed.action,
        "target": scrubbed(deed.target),
        "note": scrubbed(deed.note, _LONGEST_NOTE),
    }
    return _command({name: value for name, value in fields.items() if value})


def _end(begun: str, result: str, target: str = "") -> Command[str]:
    named = {"target": scrubbed(target)} if target else {}
    return _command({"of": begun, "result": result, **named})


def _command(fields: dict[str, str]) -> Command[str]:
    arguments: list[Argument] = [KEPT, *(part for pair in fields.items() for part in pair)]
    # The append-only file is in order: a deed that is on disk has its beginning there, too.
    return Command(script=AUDIT, arguments=arguments, read=str, durable=False)


def entries(store: Store) -> Iterator[Entry]:
    """Yield what people did, newest first. Raises `StoreUnavailable`."""
    ends: dict[str, dict[str, str]] = {}
    last = "+"
    while True:
        with redis_errors(store.address):
            page: Any = store.redis.xrevrange(store.key(STREAM), max=last, count=_AT_ONCE)
        for entry_id, fields in page:
            if (begun := fields.get("of")) is not None:
                ends[begun] = fields
            else:
                yield _entry(entry_id, fields | ends.pop(entry_id, {}))
        if len(page) < _AT_ONCE:
            return
        last = f"({page[-1][0]}"


def selected(
    found: Iterable[Entry],
    *,
    by: str | None = None,
    target: str | None = None,
    action: str | None = None,
) -> Iterator[Entry]:
    """Yield the entries of one person, of one target and with a word in the name of the action."""
    for entry in found:
        deed = entry.deed
        is_of_action = action is None or action in deed.action.split()
        if is_of_action and by in {None, deed.by} and target in {None, deed.target}:
            yield entry


def position(entry_id: str) -> tuple[int, int]:
    """Return what the ids of two entries are compared by."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


def _entry(entry_id: str, fields: dict[str, str]) -> Entry:
    names = ("by", "address", "action", "target", "note")
    known = {name: fields.get(name, "") for name in names}
    via: Any = fields.get("via", "")
    return Entry(
        entry_id=entry_id,
        at=from_ms(position(entry_id)[0]),
        deed=Deed(via=via, **known),
        result=fields.get("result", UNKNOWN),
    )
