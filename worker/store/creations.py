"""The commands that accept refunds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import repeat
from typing import Any, Final, Literal

from worker.model.refund import Lane, Refund
from worker.model.request import RefundRequest
from worker.model.times import from_ms
from worker.store import scripts
from worker.store.records import decode, new_row, pairs_of
from worker.store.scripts import Argument, Command
from worker.store.sweeps import NUDGE_GRACE

MOST_FIELDS: Final = 200
"""Maximum fields of a payment that a script reads to find a repeat.

A comparison reads a payment with more in pages; what accepts or retries a refund lets it through.
"""
_ms = timedelta(milliseconds=1)


Result = Literal["created", "exists", "conflict", "repeat"]
_WITHOUT_RECORD: Final[tuple[Result, ...]] = ("created", "conflict", "repeat")


@dataclass(frozen=True, kw_only=True, slots=True)
class Created:
    """The result of a request: `created`, `exists` (with the record), `conflict`, or `repeat`.

    One that is created in doubt, as after a recovery, has its record too.
    """

    result: Result
    now: datetime
    refund: Refund | None = None


def create(
    request: RefundRequest, lane: Lane, batch_id: str | None = None, *, by: str = ""
) -> Command[Created]:
    """Accept a refund once; `by` names who submits it, for the history.

    The same id changes nothing with the same contents, and conflicts with other contents.
    """
    several = create_several([request], lane, batch_id, by=by)
    return Command(
        script=scripts.CREATE,
        arguments=several.arguments,
        read=lambda reply: several.read(reply)[0],
    )


def create_several(
    requests: Sequence[RefundRequest],
    lane: Lane,
    batch_id: str | None = None,
    *,
    by: str = "",
    queue: str = "",
    messages: Sequence[str] = (),
    refuse_repeats: bool = False,
) -> Command[Sequence[Created]]:
    """Accept refunds in one script, each as `create` does.

    At most `CREATED_AT_ONCE`, so that others wait little. With a `queue`, the script also pushes
    the message of each refund that is new. With `refuse_repeats`, a new id is not accepted if
    another refund of the same payment and amount is pending or has succeeded.
    """

    def read(reply: Any) -> Sequence[Created]:
        now = from_ms(int(reply[0]))
        plain: dict[str, Created] = {
            word: Created(result=word, now=now) for word in _WITHOUT_RECORD
        }
        return [
            plain[result] if isinstance(result, str) else _with_record(result, now)
            for result in reply[1:]
        ]

    arguments: list[Argument] = [NUDGE_GRACE // _ms, lane.value, batch_id or "", by, queue]
    arguments.append(MOST_FIELDS if refuse_repeats else 0)
    for request, message in zip(requests, messages or repeat("", len(requests)), strict=True):
        arguments += (*new_row(request), message)
    return Command(script=scripts.CREATE, arguments=arguments, read=read)


def _with_record(flat: Sequence[str], now: datetime) -> Created:
    # A record is pairs, and the first text is the name of a field.
    if flat[0] == "created":
        return Created(result="created", now=now, refund=decode(pairs_of(flat[1:])))
    return Created(result="exists", now=now, refund=decode(pairs_of(flat)))
