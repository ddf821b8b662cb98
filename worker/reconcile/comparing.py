"""Puts every refund of both sides into one class, and shows that the classes add up.

The provider's file is never believed against the records: a difference is only named, and with
`hints_of` read again at the provider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, timedelta, tzinfo
from typing import Any, Final

from worker.model.hints import Hint
from worker.model.refund import Status
from worker.model.request import is_provider_id
from worker.model.times import from_ms, to_ms
from worker.reconcile.books import Books, Item, Ours, Row
from worker.reconcile.settled import (
    Fields,
    ids_settled_again,
    read,
    settled_in,
    succeeded_at,
)
from worker.reconcile.window import Window
from worker.store.connection import redis_errors
from worker.store.store import PAGE, Store

MATCHED: Final = "matched"
OTHER_WINDOW: Final = "other_window"
RANKS: Final = (
    "twice",
    "status_differs",
    "amount_differs",
    "currency_differs",
    "missing_here",
    "missing_there",
    "ambiguous",
    "identified",
    OTHER_WINDOW,
)
"""The classes of differences, as they are written."""
CLASSES: Final = (MATCHED, *RANKS)
AGREE: Final = frozenset({MATCHED, OTHER_WINDOW})
"""The classes in which nothing differs."""
EDGE: Final = timedelta(days=1)
"""How far from the window's edge the file of the neighbouring window may have a refund."""
_EDGE_MS: Final = EDGE // timedelta(milliseconds=1)
_STANDING: Final = frozenset({"succeeded", "pending"})


@dataclass(kw_only=True, slots=True)
class ClassSum:
    """Refunds of one class and currency, and what each side says that they moved."""

    refunds: int = 0
    ours: int = 0
    theirs: int = 0


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What one currency adds up to: theirs = ours + what each class of differences explains."""

    currency: str
    theirs: int
    ours: int
    explained: dict[str, int]
    """What the file has more than we have, by class; only classes with a difference."""

    @property
    def holds(self) -> bool:
        """Return whether the classes explain the whole difference; else the comparison is wrong."""
        return self.theirs == self.ours + sum(self.explained.values())


@dataclass(kw_only=True)
class Outcome:
    """The result of a comparison."""

    sums: dict[tuple[str, str], ClassSum] = field(default_factory=dict)
    """By class and currency; the currency is '' if it is not known."""
    balances: list[Balance] = field(default_factory=list)

    def add(self, item: Item) -> None:
        """Count an item; each side in its own currency."""
        self._sum(item.kind, _currency(item)).refunds += 1
        if item.row is not None:
            self._sum(item.kind, item.row.theirs.currency).theirs += item.row.money
        if item.ours is not None:
            self._sum(item.kind, item.ours.currency or "").ours += item.ours.money

    def _sum(self, kind: str, currency: str) -> ClassSum:
        return self.sums.setdefault((kind, currency), ClassSum())

    def counts(self) -> dict[str, int]:
        """Return the number of refunds of each class."""
        counts: Counter[str] = Counter()
        for (kind, _), total in self.sums.items():
            counts[kind] += total.refunds
        return {kind: counts[kind] for kind in CLASSES if counts[kind]}

    @property
    def differs(self) -> bool:
        """Return whether anything is not as it should be."""
        return any(kind not in AGREE for kind in self.counts())


def _currency(item: Item) -> str:
    if item.row is not None:
        return item.row.theirs.currency
    return (item.ours and item.ours.currency) or ""


# Ours


def gather(store: Store, books: Books, window: Window) -> None:
    """Put our side into the books.

    All refunds that succeeded in the window, and those that the file's rows are.
    """
    _add_window(store, books, window)
    books.index_ours()
    for page in books.rows(PAGE):
        _pair(store, books, page)
    _add_without_id(store, books)
    # What is reported as final must survive a crash of the server.
    store.confirm()


def _add_window(store: Store, books: Books, window: Window) -> None:
    again = set(ids_settled_again(store))
    changed: dict[str, Fields] = {}

    def settled_once() -> Iterator[Ours]:
        for settled in settled_in(store, window):
            fields = settled.fields
            if fields["status"] != Status.SUCCEEDED:
                continue
            refund_id = fields["refund_id"] or ""
            if refund_id in again:
                changed[refund_id] = fields
            else:
                yield _ours(fields, to_ms(settled.at), inside=True)

    books.add_ours(settled_once())
    # One that changed after it had settled counts where it last succeeded, and there only.
    times = succeeded_at(store, changed)
    books.add_ours(
        _ours(fields, to_ms(at), inside=True)
        for refund_id, fields in changed.items()
        if (at := times[refund_id]) is not None and at in window
    )


def _ours(fields: Fields, at: int, *, inside: bool) -> Ours:
    amount = fields["amount"]
    return Ours(
        refund_id=fields["refund_id"] or "",
        payment=fields["payment_intent"] or "",
        amount=None if amount is None else int(amount),
        currency=fields["currency"],
        status=fields["status"] or "",
        provider_id=fields["provider_refund_id"],
        at=at,
        inside=inside,
    )


def _outside(found: dict[str, Fields]) -> list[Ours]:
    return [
        _ours(fields, int(fields["updated_at"] or 0), inside=False) for fields in found.values()
    ]


def _pair(store: Store, books: Books, page: Sequence[Row]) -> None:
    """Find our refund of each row: by our id in its metadata, else by the provider's id."""
    names = list({row.theirs.named for row in page if row.theirs.named is not None})
    known = books.payments_of(names)
    found = read(store, [name for name in names if name not in known])
    books.add_ours(_outside(found))
    known |= {name: fields["payment_intent"] or "" for name, fields in found.items()}
    pairs, rest = [], []
    for row in page:
        name, payment = row.theirs.named, row.theirs.payment
        if name is not None and name in known and payment in {None, known[name]}:
            pairs.append((name, row.theirs.line))
        else:
            rest.append(row)
    pairs += _owned(store, books, rest)
    books.pair(pairs)


def _owned(store: Store, books: Books, rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Return our refund of each row whose provider's refund has an owner, with the line."""
    ids = [row.theirs.id for row in rows]
    owners = books.owners_of(ids)
    asked = [each for each in ids if each not in owners]
    with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
        for each in asked:
            pipeline.get(store.key(f"owner:{each}"))
        replies: list[Any] = pipeline.execute()
    found = read(store, set(filter(None, replies)))
    books.add_ours(_outside(found))
    owners |= {each: owner for each, owner in zip(asked, replies, strict=True) if owner in found}
    return [(owners[row.theirs.id], row.theirs.line) for row in rows if row.theirs.id in owners]


def _add_without_id(store: Store, books: Books) -> None:
    """Add our refunds on the payments of rows without an owner; some only totals proved."""
    for payments in books.payments_without_owner(PAGE):
        with redis_errors(store.address), store.redis.pipeline(transaction=False) as pipeline:
            for payment in payments:
                pipeline.hkeys(store.key(f"payment:{payment}"))
            replies = pipeline.execute()
        ids = [
            name.removeprefix("refund:")
            for names in replies
            for name in names
            if name.startswith("refund:")
        ]
        books.add_ours(_outside(read(store, ids)))


# Classes


def can_miss(window: Window) -> bool:
    """Return whether a refund of ours that the file lacks can be more than `other_window`.

    In a short window all are near an edge.
    """
    return window.end - window.start > 2 * EDGE


def compare(books: Books, window: Window) -> Outcome:
    """Put everything in the books into its class."""
    outcome = Outcome()
    for item in _classified(books, window):
        outcome.add(item)
        if item.kind != MATCHED:
            books.add_item(RANKS.index(item.kind), item)
    outcome.balances = _balances(outcome, books)
    return outcome


def _classified(books: Books, window: Window) -> Iterator[Item]:
    for ours, rows in books.pairs():
        yield from classify(ours, rows)
    for without_id, rows in books.fitting():
        yield from _without_id(without_id, rows)
    for row in books.rest_of_theirs():
        named = row.theirs.named
        reason = "not a refund of these records"
        if named is not None:
            reason = f"carries the id {named}, which these records do not have on its payment"
        yield Item("missing_here", reason, row, None)
    # In ms, since no calendar has a day before the year 1.
    start, end = to_ms(window.start) + _EDGE_MS, to_ms(window.end) - _EDGE_MS
    for ours in books.rest_of_ours():
        if start <= ours.at < end:
            yield Item("missing_there", "not in the file", None, ours)
        else:
            yield Item(OTHER_WINDOW, "not in the file, and near the window's edge", None, ours)


def classify(ours: Ours, rows: Sequence[Row]) -> Iterator[Item]:
    """Yield the items of one of our refunds and the rows that are it."""
    standing = [row for row in rows if row.theirs.status in _STANDING]
    is_other = (
        ours.status == Status.SUCCEEDED
        and ours.provider_id is not None
        and any(row.theirs.id != ours.provider_id for row in standing)
    )
    if len(standing) > 1 or is_other:
        yield from _twice(ours, standing)
        main = standing[0]
    else:
        own = [row for row in rows if row.theirs.id == ours.provider_id]
        main = (standing or own or rows[-1:])[0]
        yield from _single(ours, main)
    for row in rows:
        if row.inside and row is not main and row not in standing:
            yield Item(MATCHED, "an attempt that moved no money", row, None)


def _twice(ours: Ours, standing: Sequence[Row]) -> Iterator[Item]:
    names = [row.theirs.id for row in standing]
    if ours.provider_id is not None and ours.provider_id not in names:
        names.insert(0, ours.provider_id)
    reason = f"the provider has {' and '.join(names)} for one refund: money may have moved twice"
    for number, row in enumerate(standing):
        # Ours is counted once, beside the first of theirs.
        counted = ours if number == 0 else ours._replace(inside=False)
        yield Item("twice", reason, row, counted)


def _single(ours: Ours, row: Row) -> Iterator[Item]:
    if not row.inside and not ours.inside:
        # Neither belongs to this window.
        return
    kind, reason = difference(ours, row)
    is_elsewhere = ours.status == Status.SUCCEEDED and ours.inside != row.inside
    if kind == MATCHED and is_elsewhere:
        where = "outside" if row.inside else "inside"
        kind, reason = (
            OTHER_WINDOW,
            f"ours settled {where} the window, theirs was not made {where} it",
        )
    elif kind == MATCHED and ours.provider_id is None and ours.status == Status.SUCCEEDED:
        kind, reason = "identified", "ours has no provider id, and theirs names it"
    yield Item(kind, reason, row, ours)


def difference(ours: Ours, row: Row) -> tuple[str, str]:
    """Return the class of a pair, and every field that differs."""
    theirs = row.theirs
    found = []
    if ours.status != theirs.status:
        found.append(("status_differs", f"ours is {ours.status}, theirs {theirs.status}"))
    # A refund that moved nothing may never have had an amount.
    if ours.amount != theirs.amount and (
        ours.amount is not None or ours.status == Status.SUCCEEDED
    ):
        found.append(("amount_differs", f"ours is {ours.amount}, theirs {theirs.amount}"))
    if ours.currency != theirs.currency and (
        ours.currency is not None or ours.status == Status.SUCCEEDED
    ):
        found.append(("currency_differs", f"ours is {ours.currency}, theirs {theirs.currency}"))
    if not found:
        return MATCHED, ""
    return found[0][0], "; ".join(text for _, text in found)


def _without_id(ours: Sequence[Ours], rows: Sequence[Row]) -> Iterator[Item]:
    if len(ours) == len(rows) == 1:
        if not rows[0].inside and not ours[0].inside:
            return
        reason = "ours has no provider id, and theirs alone fits by payment and amount"
        kind, text = difference(ours[0], rows[0])
        yield Item("identified" if kind == MATCHED else kind, text or reason, rows[0], ours[0])
        return
    if not any(each.inside for each in ours) and not any(row.inside for row in rows):
        return
    reason = f"{len(ours)} of ours and {len(rows)} of theirs fit by payment and amount"
    for row in rows:
        yield Item("ambiguous", reason, row, None)
    for each in ours:
        yield Item("ambiguous", reason, None, each)


# Balance


def _balances(outcome: Outcome, books: Books) -> list[Balance]:
    theirs, ours = books.sums("theirs"), books.sums("ours")
    # A currency may occur only in refunds that moved nothing inside the window.
    currencies = sorted({*theirs, *ours, *(currency for _, currency in outcome.sums)})
    return [
        Balance(
            currency=currency,
            theirs=theirs.get(currency, 0),
            ours=ours.get(currency, 0),
            explained={
                kind: total.theirs - total.ours
                for kind in CLASSES
                if (total := outcome.sums.get((kind, currency))) is not None
                and total.theirs != total.ours
            },
        )
        for currency in currencies
    ]


# Looking again


def hint_of(item: Item) -> Hint | None:
    """Return what is to be read again at the provider for an item, None if nothing can be."""
    row, ours = item.row, item.ours
    if item.kind == "missing_there" and ours is not None:
        return _hint(ours.provider_id, ours)
    if item.kind == "missing_here" and row is not None:
        if row.theirs.payment is None or row.theirs.named is not None:
            return None
        return Hint(
            provider_refund_id=row.theirs.id if is_provider_id(row.theirs.id) else None,
            payment_intent=row.theirs.payment,
        )
    looked = {"status_differs", "amount_differs", "currency_differs", "identified"}
    if item.kind in looked and row is not None and ours is not None:
        return _hint(row.theirs.id, ours)
    return None


def _hint(provider_refund_id: str | None, ours: Ours) -> Hint | None:
    if not is_provider_id(provider_refund_id):
        return None
    return Hint(
        provider_refund_id=provider_refund_id,
        refund_id=ours.refund_id,
        payment_intent=ours.payment,
    )


def day_window(first: int, last: int, zone: tzinfo) -> Window:
    """Return the whole days of a zone that hold two times, in epoch ms."""
    start = from_ms(first).astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    end = from_ms(last).astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    return Window(start=start.astimezone(UTC), end=(end + EDGE).astimezone(UTC))
