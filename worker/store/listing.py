"""Finds refunds by status, stage, batch or payment: all of them, or page by page with a cursor.

It reads the narrowest index that holds every match. Each refund is checked by its record, which may
be newer than the index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from worker.errors import FieldError, InvalidRequest
from worker.model.refund import Refund, Stage, Status
from worker.model.request import shown
from worker.store.store import BUCKETS, SETTLED, Place, Store

PAGE: Final = 500
MOST_READ: Final = 5000
"""The most ids that one page looks at, so that a rare match does not make a request endless."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """What a refund must be to match; None matches all."""

    status: Status | None = None
    stage: Stage | None = None
    batch: str | None = None
    payment_intent: str | None = None
    reversed_only: bool = False
    ids_prefix: str = ""

    def matches(self, refund: Refund | None) -> bool:
        """Return whether a record matches."""
        return (
            refund is not None
            and self.status in {None, refund.status}
            and self.stage in {None, refund.stage}
            and self.batch in {None, refund.batch_id}
            and self.payment_intent in {None, refund.payment_intent}
        )

    @property
    def buckets(self) -> tuple[str, ...]:
        """Return the indexes that hold refunds of this status and stage.

        None if no refund can have both.
        """
        chosen: Iterable[str] = BUCKETS
        if self.status is not None:
            chosen = (
                name
                for name in BUCKETS
                if (name not in SETTLED if self.status is Status.PENDING else name == self.status)
            )
        return tuple(name for name in chosen if self.stage in {None, _stage(name)})


def _stage(bucket: str) -> Stage:
    return Stage.SETTLED if bucket in SETTLED else Stage(bucket.removesuffix(".bulk"))


class Page(NamedTuple):
    """Refunds that match, and the cursor of the next page; None after the last one.

    A page may hold fewer than requested although others follow.
    """

    refunds: list[Refund]
    cursor: str | None


def matching(store: Store, wanted: Filter) -> Iterator[Refund]:
    """Yield the refunds that match, page by page."""
    places = _places(store, wanted, None)
    while chunk := list(islice(places, PAGE)):
        yield from (refund for _, refund in _read(store, wanted, chunk) if refund is not None)


def page(store: Store, wanted: Filter, *, after: str | None, limit: int) -> Page:
    """Return at most `limit` refunds that match, after the cursor of the page before.

    A refund that moves between two pages may be on both or, if it settles, on neither. Raises
    `InvalidRequest` for a cursor that no page returned.
    """
    places = _places(store, wanted, None if after is None else _read_cursor(after))
    found: list[Refund] = []
    seen = 0
    while chunk := list(islice(places, PAGE if seen else limit)):
        seen += len(chunk)
        for position, refund in _read(store, wanted, chunk):
            if refund is not None:
                found.append(refund)
            if len(found) == limit:
                is_last = position == chunk[-1][0] and next(places, None) is None
                return Page(found, None if is_last else _cursor(position))
        if seen >= MOST_READ:
            return Page(found, _cursor(chunk[-1][0]))
    return Page(found, None)


_Position = tuple[str, int, str]
"""The kind of index, the score or row in it, and the id."""
_UNSETTLED: Final = "u"
_SETTLED: Final = "s"
_REVERSED: Final = "r"
_PAYMENT: Final = "p"
_BATCH: Final = "b"
_CURSOR: Final = re.compile(r"([usrpb])([0-9]{1,15})\.([A-Za-z0-9._:\-]{0,200})")


def _read(
    store: Store, wanted: Filter, chunk: list[tuple[_Position, str]]
) -> Iterator[tuple[_Position, Refund | None]]:
    """Yield each position, with the record if it matches."""
    ids = [refund_id for _, refund_id in chunk if refund_id.startswith(wanted.ids_prefix)]
    records = dict(zip(ids, store.get_many(ids), strict=True))
    for position, refund_id in chunk:
        refund = records.get(refund_id)
        yield position, refund if wanted.matches(refund) else None


def _places(
    store: Store, wanted: Filter, after: _Position | None
) -> Iterator[tuple[_Position, str]]:
    """Yield positions and ids of the narrowest index that holds every match, after a position."""
    kind, number, last = after or ("", 0, "")
    if wanted.reversed_only:
        place = Place(True, number, last) if kind == _REVERSED else None
        for found in store.places_reversed(place):
            yield (_REVERSED, int(found.score), found.refund_id), found.refund_id
    elif not wanted.buckets:
        return
    elif wanted.payment_intent is not None:
        for refund_id in sorted(store.ids_on_payment(wanted.payment_intent)):
            if kind != _PAYMENT or refund_id > last:
                yield (_PAYMENT, 0, refund_id), refund_id
    elif wanted.batch is not None and (
        kind == _BATCH or (not kind and _rows_are_fewer(store, wanted.batch, wanted.buckets))
    ):
        start = number if kind == _BATCH else 0
        for row, refund_id in enumerate(store.ids_in_batch(wanted.batch, start), start + 1):
            yield (_BATCH, row, ""), refund_id
    else:
        place = Place(kind == _SETTLED, number, last) if kind in {_UNSETTLED, _SETTLED} else None
        for found in store.places_in(wanted.buckets, place):
            name = _SETTLED if found.settled else _UNSETTLED
            yield (name, int(found.score), found.refund_id), found.refund_id


def _rows_are_fewer(store: Store, batch: str, buckets: tuple[str, ...]) -> bool:
    counts = store.counts()
    return store.batch_size(batch) <= sum(counts[name] for name in buckets)


def _cursor(position: _Position) -> str:
    kind, number, refund_id = position
    return f"{kind}{number}.{refund_id}"


def _read_cursor(text: str) -> _Position:
    found = _CURSOR.fullmatch(text)
    if found is None:
        rule = "must be the `next` of the page before"
        raise InvalidRequest(
            [FieldError(field="after", code="cursor", value=shown(text), rule=rule)]
        )
    return found[1], int(found[2]), found[3]
