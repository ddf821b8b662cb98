"""Reads the stream of moves: all refunds' moves in order, of which about a million are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from worker.model.refund import Stage
from worker.model.times import from_ms, rfc3339
from worker.store.async_store import AsyncStore
from worker.store.connection import redis_errors

STREAM: Final = "events"
MOST: Final = 1000
"""The most moves that are read at once."""
BEGINNING: Final = "0-0"
KEPT: Final = 1_000_000
"""The length from which on the server removes the oldest moves."""
_ID: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
_MOST_ID: Final = 2**64


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One move of a refund; `moved_at` is RFC 3339."""

    move_id: str
    refund_id: str
    version: int
    moved_at: str
    source: str | None
    to: str
    status: str

    def as_dict(self) -> dict[str, Any]:
        """Return the move as JSON."""
        return {
            "id": self.move_id,
            "refund_id": self.refund_id,
            "version": self.version,
            "at": self.moved_at,
            "from": self.source,
            "to": self.to,
            "status": self.status,
        }


class Moves(NamedTuple):
    """Moves after a position; `last` is the position of the next read.

    `gap`: moves between the position and the first one here are not kept any more. `lost`: the move
    at the position is not kept, although older ones are, as after a restored snapshot.
    """

    moves: list[Move]
    last: str
    gap: bool
    lost: bool


def is_move_id(text: str) -> bool:
    """Return whether a text can be a position in the stream that moves come after."""
    found = _ID.fullmatch(text)
    if found is None:
        return False
    parts = [int(part) for part in found.groups()]
    # The server refuses to read after the last id that there can be.
    return all(part < _MOST_ID for part in parts) and parts != [_MOST_ID - 1] * 2


async def latest(store: AsyncStore) -> str:
    """Return the position of the latest move."""
    with redis_errors(store.address):
        async with store.direct:
            found: Any = await store.redis.xrevrange(store.key(STREAM), count=1)
    return str(found[0][0]) if found else BEGINNING


async def read(store: AsyncStore, after: str, most: int = MOST) -> Moves:
    """Return the moves after a position, at most `most`.

    A move to an end that is returned survives a crash of the server. Raises `StoreUnavailable`,
    `NotDurable`.
    """
    key = store.key(STREAM)
    with redis_errors(store.address):
        async with store.direct, store.redis.pipeline(transaction=False) as pipeline:
            pipeline.xrange(key, min=f"({after}", count=most)
            pipeline.xrange(key, count=1)
            pipeline.xlen(key)
            pipeline.xrange(key, min=after, max=after)
            entries, first, length, own = await pipeline.execute()
    oldest = first[0][0] if first else None
    moves = [_move(move_id, fields) for move_id, fields in entries]
    settled = [int(fields["at"]) for _, fields in entries if fields["to"] == Stage.SETTLED.value]
    if settled:
        await store.confirm_final(from_ms(max(settled)))
    return Moves(
        moves,
        moves[-1].move_id if moves else after,
        _has_gap(after, oldest, length),
        not own and oldest is not None and _parts(oldest) <= _parts(after),
    )


async def went_back(store: AsyncStore, after: str) -> bool:
    """Return whether the latest move is older than a position, as after a restored snapshot."""
    return _parts(await latest(store)) < _parts(after)


async def follow(store: AsyncStore, after: str, block_ms: int) -> list[tuple[str, str, str]]:
    """Wait for moves after a position; return their positions, refund ids and stages."""
    with redis_errors(store.address):
        found: Any = await store.redis.xread({store.key(STREAM): after}, MOST, block_ms)
    entries = found[0][1] if found else []
    return [(move_id, fields["refund_id"], fields["to"]) for move_id, fields in entries]


def _move(move_id: str, fields: dict[str, str]) -> Move:
    return Move(
        move_id=move_id,
        refund_id=fields["refund_id"],
        version=int(fields["version"]),
        moved_at=rfc3339(from_ms(int(fields["at"]))),
        source=fields["from"] or None,
        to=fields["to"],
        status=fields["status"],
    )


def _has_gap(after: str, first: str | None, length: int) -> bool:
    if after == BEGINNING:
        # Nothing is missing unless the server has begun to remove moves.
        return length >= KEPT
    return first is not None and _parts(after) < _parts(first)


def _parts(move_id: str) -> tuple[int, int]:
    milliseconds, _, number = move_id.partition("-")
    return int(milliseconds), int(number)
