"""Planted bugs about refunds that are read again.

Because of a webhook, by the watch, and before a retry.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.bugs.planting import Bug, put, rescript
from worker.engine.rechecker import Rechecker
from worker.store import rechecks

if TYPE_CHECKING:
    from worker.engine.endings import Ending

_HINT: Final = "local function hint(id, r)\n"


def body_believed(stack: ExitStack) -> None:
    """An event says that a refund has succeeded, and so it is recorded."""
    believing = """  if ARGV[10] == 'succeeded' and candidate ~= '' and r.stage ~= 'settled' then
    local set = {provider_refund_id = candidate, provider_status = ARGV[10], evidence = 'lookup'}
    return move(id, r, 'settled', 'succeeded', NOW, set, '"succeeded"', ',"source":"lookup"')
  end
"""
    rescript(stack, ("HINT",), _HINT, _HINT + believing, of=rechecks)


def older_event_wins(stack: ExitStack) -> None:
    """The last event to come decides, though it tells of an earlier state."""
    reverting = """  local own = r.stage == 'settled' and candidate == r.provider_refund_id
  if own and ARGV[10] == 'pending' then
    local set = {provider_status = ARGV[10]}
    return move(id, r, 'processing', 'pending', NOW, set, '"processing"', '')
  end
"""
    rescript(stack, ("HINT",), _HINT, _HINT + reverting, of=rechecks)


def early_event_recorded_twice(stack: ExitStack) -> None:
    """A refund that an event has led to is recorded once more when the reply to its POST comes."""
    known = "if same and (to == 'processing' or r.status == ARGV[9]) then return {'already'"
    unknown = "if same and to == 'processing' then return {'already'"
    rescript(stack, ("SAVE",), known, unknown)
    refused = "      return {'contradicts', int(NOW), ''}\n    end\n    if r.provider_refund_id and"
    taken = "      if not same or r.status ~= ARGV[9] then" + refused.replace("\n", " end\n", 1)
    rescript(stack, ("SAVE",), refused, taken)


def hint_sent_again(stack: ExitStack) -> None:
    """A refund is sent though an event has named one of the provider's for it."""
    rescript(stack, ("CLAIM",), "if r.hinted then return refuse('unchecked') end", "")


def guard_removed(stack: ExitStack) -> None:
    """A failed refund is sent again, and what became of it meanwhile is not read."""
    guard = "if r.prior_refund_ids and not is_within(prior_read_at, fresh)"
    rescript(stack, ("CLAIM",), guard, "if false")


def tie_at_the_cursor_lost(stack: ExitStack) -> None:
    """The watch goes on after the last time that it has read, and not after the last refund."""
    rescript(stack, ("WATCH",), "if not visited[id] then visit(status, id) end", "", of=rechecks)


def cursor_moved_first(stack: ExitStack) -> None:
    """The watch notes how far it has come before anything is to be read, and then dies."""
    adding = "added = added + redis.call('ZADD', P .. 'rechecks', 'NX', int(NOW), id)"
    rescript(stack, ("WATCH",), adding, "added = added + 1", of=rechecks)


def final_state_skipped(stack: ExitStack) -> None:
    """A state that is said to be final is never read again."""

    async def unread(*_: Any) -> tuple[bool, Ending | None]:
        return True, None

    put(stack, Rechecker, "_recheck_own", unread)


def earlier_refunds_forgotten(stack: ExitStack) -> None:
    """Once a retry has ended, what its earlier refunds became is never read again."""

    async def unread(*_: Any) -> tuple[bool, Ending | None]:
        return True, None

    put(stack, Rechecker, "_recheck_prior", unread)


OF_RECHECKS: Final[tuple[Bug, ...]] = (
    body_believed,
    older_event_wins,
    early_event_recorded_twice,
    hint_sent_again,
    guard_removed,
    tie_at_the_cursor_lost,
    cursor_moved_first,
    final_state_skipped,
    earlier_refunds_forgotten,
)
