"""The books: a temporary file that leaves nothing behind, and pages that leave nothing out."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest

from worker.reconcile.books import Ours, books
from worker.reconcile.export import Theirs


def theirs(line: int, **changes: Any) -> Theirs:
    usual = Theirs(line, f"re_{line}", f"pi_{line}", 500, "usd", "succeeded", None, None)
    return usual._replace(**changes)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_file_has_no_name_while_it_is_used_and_is_closed_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors: list[int] = []
    make = tempfile.mkstemp

    def noted(**how: Any) -> tuple[int, str]:
        made = make(**how)
        descriptors.append(made[0])
        return made

    monkeypatch.setattr("tempfile.mkstemp", noted)
    with books() as sides:
        assert list(folder.iterdir()) == []
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        sides.span()
    (descriptor,) = descriptors
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(descriptor)


def test_file_that_cannot_be_opened_does_not_stay_and_says_what_it_was_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def refuse(path: Path, **_: Any) -> None:
        assert list(folder.iterdir()) == [path]
        seen.append(path)
        raise sqlite3.OperationalError

    monkeypatch.setattr("sqlite3.connect", refuse)
    with pytest.raises(sqlite3.OperationalError), books():
        pass
    assert list(folder.iterdir()) == []
    (path,) = seen
    assert path.match("refunds-reconcile-*.sqlite")


def test_disk_that_is_full_is_an_error_of_the_disk() -> None:
    # The error is raised at the end of the block inside, so both belong here.
    with pytest.raises(OSError, match="the temporary file: database or disk is full") as caught:  # noqa: PT012, SIM117
        with books() as sides:
            sides._database.execute("PRAGMA max_page_count = 10")
            for line in range(1, 1000):
                sides.add_theirs(theirs(line, id=f"re_{line}" + "x" * 150))
    assert caught.value.errno == errno.ENOSPC


def test_rows_come_in_pages_from_the_first_line_on() -> None:
    with books() as sides:
        for line in (1, 2, 3):
            sides.add_theirs(theirs(line))
        pages = [[row.theirs.line for row in page] for page in sides.rows(2)]
    assert pages == [[1, 2], [3]]


def test_payments_without_owner_come_in_pages_each_once() -> None:
    with books() as sides:
        for line in (1, 2, 3):
            sides.add_theirs(theirs(line))
        sides.add_theirs(theirs(4, payment="pi_1", status="pending"))
        sides.add_theirs(theirs(5, status="failed"))
        sides.add_theirs(theirs(6, named="b"))
        sides.add_theirs(theirs(7, payment=None))
        sides.add_theirs(theirs(8))
        sides.pair([("a", 8)])
        assert list(sides.payments_without_owner(2)) == [["pi_1", "pi_2"], ["pi_3"]]


def test_books_know_whether_the_file_had_a_row() -> None:
    with books() as sides:
        assert not sides.has_rows()
        sides.add_theirs(theirs(1))
        assert sides.has_rows()


DAY = 86_400_000
LONG_AGO = 1_787_730_829_000


def ours(refund_id: str, currency: str | None = "usd", at: int = LONG_AGO) -> Ours:
    return Ours(refund_id, "pi_1", 500, currency, "succeeded", None, at, inside=True)


def fitted(mine: list[Ours], *rows: Theirs) -> list[tuple[list[str], list[int]]]:
    """The groups of refunds without an id, and the lines that fit each."""
    with books() as sides:
        sides.add_ours(mine)
        for row in rows:
            sides.add_theirs(row._replace(payment="pi_1"))
        return [
            ([each.refund_id for each in group], [row.theirs.line for row in found])
            for group, found in sides.fitting()
        ]


def test_refund_that_is_as_old_as_the_first_of_several_rows_fits_them() -> None:
    rows = [theirs(1, created=LONG_AGO + 5 * DAY), theirs(2, created=LONG_AGO)]
    late = ours("b", at=LONG_AGO + 5 * DAY)
    assert fitted([ours("a"), late], *rows) == [(["a", "b"], [1, 2])]
    # One that had succeeded a day before the first row fits none of them.
    early = ours("a", at=LONG_AGO - DAY - 1)
    assert fitted([early, late], *rows) == [(["b"], [1, 2])]


def test_row_that_came_later_is_of_no_refund_though_the_other_currency_had_all() -> None:
    mine = [ours("a", currency=None), ours("b")]
    rows = [theirs(1, created=LONG_AGO), theirs(2, created=LONG_AGO + 5 * DAY)]
    assert fitted(mine, *rows) == [(["a", "b"], [1])]
