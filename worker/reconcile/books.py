# ruff: noqa: S608 - statements are put together from texts of this file only
"""Both sides of a comparison in a temporary SQLite file, so that memory does not grow with them.

Only this process can read the file, and its name is removed at once.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from worker.reconcile.export import Theirs

_CACHE_KIB: Final = 8_000
_CLOCKS_MS: Final = 86_400_000
"""How far the times of the two sides may be apart for one moment, with all their zones."""
_SCHEMA: Final = """
CREATE TABLE theirs (line INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, payment TEXT,
  amount INTEGER, currency TEXT, status TEXT, created INTEGER, named TEXT, inside INTEGER,
  ours TEXT);
CREATE TABLE ours (refund_id TEXT PRIMARY KEY, payment TEXT, amount INTEGER, currency TEXT,
  status TEXT, provider_id TEXT, at INTEGER, inside INTEGER,
  used INTEGER DEFAULT 0) WITHOUT ROWID;
CREATE TABLE items (rank INTEGER, line INTEGER, refund_id TEXT, class TEXT, reason TEXT);
"""


class Ours(NamedTuple):
    """One of our refunds: `at` is when it succeeded last, in epoch ms; else its last move."""

    refund_id: str
    payment: str
    amount: int | None
    currency: str | None
    status: str
    provider_id: str | None
    at: int
    inside: bool

    @property
    def money(self) -> int:
        """Return what it moved inside the window."""
        return (self.amount or 0) if self.inside and self.status == "succeeded" else 0


class Row(NamedTuple):
    """A refund in the provider's file, and whether it was made inside the window."""

    theirs: Theirs
    inside: bool

    @property
    def money(self) -> int:
        """Return what it moved inside the window."""
        return self.theirs.amount if self.inside and self.theirs.status == "succeeded" else 0


class Item(NamedTuple):
    """One difference, as it is written: either side may be absent."""

    kind: str
    reason: str
    row: Row | None
    ours: Ours | None


@contextmanager
def books() -> Iterator[Books]:
    """Yield empty books, and remove them at the end."""
    descriptor, name = tempfile.mkstemp(prefix="refunds-reconcile-", suffix=".sqlite")
    os.close(descriptor)
    path = Path(name)
    try:
        database = sqlite3.connect(path, isolation_level=None)
        try:
            database.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
                f"PRAGMA cache_size=-{_CACHE_KIB}; PRAGMA locking_mode=EXCLUSIVE; {_SCHEMA}"
            )
            # Open, it needs no name; so nothing is left however the process ends.
            path.unlink()
            yield Books(database)
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, f"the temporary file: {error}") from error
        finally:
            database.close()
    finally:
        path.unlink(missing_ok=True)


class Books:
    """The rows of the provider's file and our refunds."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    # Theirs

    def add_theirs(self, row: Theirs) -> int | None:
        """Add a row; return the line of an earlier one with the same id, None if there is none."""
        added = self._database.execute(
            "INSERT OR IGNORE INTO theirs VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, NULL)", row
        )
        if added.rowcount:
            return None
        line = self._one("SELECT line FROM theirs WHERE id = ?", row.id)
        return int(line)

    def span(self) -> tuple[int, int] | None:
        """Return the first and the last time of a row, None if no row has one."""
        first, last = self._database.execute(
            "SELECT min(created), max(created) FROM theirs"
        ).fetchone()
        return None if first is None else (first, last)

    def has_rows(self) -> bool:
        """Return whether the file has a refund."""
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM theirs)"))

    def set_window(self, start: int, end: int) -> int:
        """Note which rows are inside; return how many are not. Rows without a time are inside."""
        self._database.execute(
            "UPDATE theirs SET inside = 0 WHERE created < ? OR created >= ?", (start, end)
        )
        return int(self._one("SELECT count(*) FROM theirs WHERE inside = 0"))

    def rows(self, size: int) -> Iterator[list[Row]]:
        """Yield all rows in the file's order, so many at a time."""
        line = 0
        while True:
            page = self._rows("WHERE line > ? ORDER BY line LIMIT ?", line, size)
            if not page:
                return
            yield page
            line = page[-1].theirs.line

    def _rows(self, where: str, *values: Any) -> list[Row]:
        found = self._database.execute(
            "SELECT line, id, payment, amount, currency, status, created, named, inside"
            f" FROM theirs {where}",
            values,
        )
        return [Row(Theirs(*each[:8]), bool(each[8])) for each in found]

    def pair(self, pairs: Iterable[tuple[str, int]]) -> None:
        """Note which of our refunds each line is."""
        self._database.executemany("UPDATE theirs SET ours = ? WHERE line = ?", pairs)

    # Ours

    def add_ours(self, refunds: Iterable[Ours]) -> None:
        """Add refunds that are not known yet."""
        self._database.executemany(
            "INSERT OR IGNORE INTO ours VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", refunds
        )

    def index_ours(self) -> None:
        """Prepare `owners_of`."""
        self._database.execute(
            "CREATE INDEX by_provider ON ours (provider_id) WHERE provider_id IS NOT NULL"
        )

    def payments_of(self, refund_ids: Sequence[str]) -> dict[str, str]:
        """Return the payment of each refund that is known."""
        marks = ", ".join("?" * len(refund_ids))
        found = self._database.execute(
            f"SELECT refund_id, payment FROM ours WHERE refund_id IN ({marks})", refund_ids
        )
        return dict(found.fetchall())

    def owners_of(self, provider_ids: Sequence[str]) -> dict[str, str]:
        """Return which refund has each of the provider's ids, of those that are known."""
        # Without a value between the brackets SQLite cannot use the index.
        marks = ", ".join("?" * len(provider_ids)) or "NULL"
        found = self._database.execute(
            "SELECT provider_id, refund_id FROM ours INDEXED BY by_provider"
            f" WHERE provider_id IN ({marks})",
            provider_ids,
        )
        return dict(found.fetchall())

    def ours(self, refund_id: str) -> Ours:
        """Return one of our refunds."""
        (found,) = self._ours("WHERE refund_id = ?", refund_id)
        return found

    def _ours(self, where: str, *values: Any) -> list[Ours]:
        found = self._database.execute(
            "SELECT refund_id, payment, amount, currency, status, provider_id, at,"
            f" inside FROM ours {where}",
            values,
        )
        return [Ours._make((*each[:7], bool(each[7]))) for each in found]

    # Both

    def pairs(self) -> Iterator[tuple[Ours, list[Row]]]:
        """Yield each of our refunds that the file has, with its rows, and note that it was."""
        self._database.execute("CREATE INDEX by_ours ON theirs (ours) WHERE ours IS NOT NULL")
        self._database.execute(
            "UPDATE ours SET used = 1 WHERE refund_id IN (SELECT ours FROM theirs)"
        )
        found = self._database.execute(
            "SELECT o.refund_id, o.payment, o.amount, o.currency, o.status, o.provider_id,"
            " o.at, o.inside, t.line, t.id, t.payment, t.amount, t.currency, t.status,"
            " t.created, t.named, t.inside FROM theirs t INDEXED BY by_ours"
            " JOIN ours o ON o.refund_id = t.ours WHERE t.ours IS NOT NULL ORDER BY t.ours, t.line"
        )
        ours: Ours | None = None
        rows: list[Row] = []
        for each in found:
            row = Row(Theirs(*each[8:16]), bool(each[16]))
            if ours is not None and ours.refund_id == each[0]:
                rows.append(row)
                continue
            if ours is not None:
                yield ours, rows
            ours, rows = Ours._make((*each[:7], bool(each[7]))), [row]
        if ours is not None:
            yield ours, rows

    def fitting(self) -> Iterator[tuple[list[Ours], list[Row]]]:
        """Yield our refunds that have no id, and the rows without an owner that fit them.

        They fit by payment, amount and currency; an unknown currency fits each, so such a group
        comes first and has all of ours. A row that was made after ours had succeeded does not fit.
        Both are noted as used.
        """
        self._database.execute("CREATE INDEX by_payment ON theirs (payment) WHERE ours IS NULL")
        groups = self._database.execute(
            "SELECT payment, amount, currency FROM ours WHERE used = 0 AND provider_id IS NULL"
            " AND status = 'succeeded' AND amount IS NOT NULL GROUP BY 1, 2, 3 ORDER BY 3"
        ).fetchall()
        for payment, amount, currency in groups:
            rows = self._rows(
                "INDEXED BY by_payment WHERE ours IS NULL AND payment = ? AND amount = ?"
                " AND named IS NULL"
                " AND status IN ('succeeded', 'pending') AND (currency = ? OR ? IS NULL)"
                " ORDER BY line",
                *(payment, amount, currency, currency),
            )
            if not rows:
                continue
            ours = self._ours(
                "WHERE used = 0 AND provider_id IS NULL AND status = 'succeeded' AND payment = ?"
                " AND amount = ? AND (currency = ? OR ? IS NULL) ORDER BY refund_id",
                *(payment, amount, currency, currency),
            )
            latest = max((each.at for each in ours), default=0) + _CLOCKS_MS
            rows = [row for row in rows if (row.theirs.created or 0) <= latest]
            if not rows:
                continue
            first = min(row.theirs.created or 0 for row in rows)
            ours = [each for each in ours if first <= each.at + _CLOCKS_MS]
            self.pair((ours[0].refund_id, row.theirs.line) for row in rows)
            self._database.executemany(
                "UPDATE ours SET used = 1 WHERE refund_id = ?", [(each.refund_id,) for each in ours]
            )
            yield ours, rows

    def rest_of_theirs(self) -> Iterator[Row]:
        """Yield the rows inside the window that are none of our refunds."""
        line = 0
        while page := self._rows(
            "WHERE line > ? AND ours IS NULL AND inside ORDER BY line LIMIT 500", line
        ):
            yield from page
            line = page[-1].theirs.line

    def rest_of_ours(self) -> Iterator[Ours]:
        """Yield our refunds inside the window that the file does not have."""
        last = ""
        while page := self._ours(
            "WHERE refund_id > ? AND used = 0 AND inside AND status = 'succeeded'"
            " ORDER BY refund_id LIMIT 500",
            last,
        ):
            yield from page
            last = page[-1].refund_id

    def payments_without_owner(self, size: int) -> Iterator[list[str]]:
        """Yield the payments of rows that may be a refund of ours without an id."""
        last = ""
        while True:
            found = self._database.execute(
                "SELECT DISTINCT payment FROM theirs WHERE ours IS NULL AND named IS NULL"
                " AND payment > ? AND status IN ('succeeded', 'pending') ORDER BY 1 LIMIT ?",
                (last, size),
            ).fetchall()
            if not found:
                return
            yield [payment for (payment,) in found]
            last = found[-1][0]

    def sums(self, table: str) -> dict[str, int]:
        """Return what moved inside the window by currency, in `theirs` or in `ours`."""
        found = self._database.execute(
            f"SELECT coalesce(currency, ''), sum(coalesce(amount, 0)) FROM {table}"
            " WHERE inside AND status = 'succeeded' GROUP BY 1"
        )
        return dict(found.fetchall())

    # Items

    def add_item(self, rank: int, item: Item) -> None:
        """Keep a difference, to be written after those of a lower rank."""
        line = None if item.row is None else item.row.theirs.line
        refund_id = None if item.ours is None else item.ours.refund_id
        self._database.execute(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
            (rank, line, refund_id, item.kind, item.reason),
        )

    def items(self) -> Iterator[Item]:
        """Yield the differences by rank, then in the file's order."""
        for line, refund_id, kind, reason in self._database.execute(
            "SELECT line, refund_id, class, reason FROM items"
            " ORDER BY rank, line IS NULL, line, refund_id"
        ):
            row = None if line is None else self._rows("WHERE line = ?", line)[0]
            yield Item(kind, reason, row, None if refund_id is None else self.ours(refund_id))

    def _one(self, statement: str, *values: Any) -> Any:
        return self._database.execute(statement, values).fetchone()[0]
