"""The commands that erase the metadata of settled refunds (`REFUNDS_METADATA_DAYS`).

One cursor per final status, in the field `erased:<status>` of the hash `watch`, holds the time in
epoch ms up to which the refunds of that status have been erased, by when they settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from worker.model.refund import Refund, Status
from worker.model.times import from_ms
from worker.rules import decisions
from worker.store.saves import Saved, save
from worker.store.scripts import Argument, Command, Script

ERASE: Final = Script("erase")
FINAL: Final = (Status.SUCCEEDED, Status.FAILED, Status.CANCELED)

_ms = timedelta(milliseconds=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Erasable:
    """Settled refunds whose metadata are due to be erased, and the records' time, `now`.

    `until` is the time in epoch ms up to which the list reaches, None if nothing is left.
    """

    now: datetime
    until: int | None
    refund_ids: Sequence[str]


def erasable(
    status: Status, age: timedelta, *, most: int, done: int | None = None
) -> Command[Erasable]:
    """List refunds that settled more than `age` ago and still have metadata.

    It reads at most `most` refunds, and more only if they settled in one millisecond. `done` is the
    `until` of a list that the caller has erased: the next list starts after it.
    """

    def read(reply: Any) -> Erasable:
        return Erasable(
            now=from_ms(int(reply[0])),
            until=int(reply[1]) if reply[1] else None,
            refund_ids=tuple(reply[2:]),
        )

    arguments: list[Argument] = [status.value, age // _ms, most, "" if done is None else done]
    # The append-only file is in order: a crash that undoes an erasure undoes the cursor, too.
    return Command(script=ERASE, arguments=arguments, read=read, durable=False)


def erase(refund: Refund, now: datetime) -> Command[Saved]:
    """Erase a settled refund's metadata, by compare-and-set on its version."""
    return save(refund, decisions.erased(refund, now), durable=False)
