"""An import that ends before its file does.

Whatever was accepted stays, and the same command does the rest.
"""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_runner import Cli, Records
from worker.batches import cancel_batch, read_batch
from worker.errors import InputError
from worker.importer.prefetch import ahead

ROWS = 1_200


@pytest.fixture
def season(tmp_path: Path) -> str:
    path = tmp_path / "season.csv"
    path.write_text(
        "refund_id,payment_intent,amount\n" + "".join(f"row-{n},pi_{n},500\n" for n in range(ROWS))
    )
    return str(path)


def assert_whole(records: Records, ran: Any, before: int) -> None:
    """Every row stands once, all of them in the one batch, and what stood before was left as it
    was.
    """
    assert (ran.code, ran.object["created"], ran.object["known"]) == (
        0 if before < ROWS else 9,
        ROWS - before,
        before,
    )
    batch = read_batch(records.store, "b-1")
    assert (batch.accepted, batch.known, batch.imported_at is None) == (ROWS, 0, False)
    assert [*records.store.ids_in_batch("b-1")] == [f"row-{number}" for number in range(ROWS)]
    assert sum(records.store.counts().values()) == ROWS


@pytest.mark.parametrize("rows", [0, 1, 499, 500, 501, ROWS - 1])
def test_an_import_that_ends_after_any_row_is_gone_on_with_by_the_same_command(
    cli: Cli, records: Records, season: str, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    @contextmanager
    def interrupted(items: Iterable[Any]) -> Iterator[Iterator[Any]]:
        def some() -> Iterator[Any]:
            for number, item in enumerate(items):
                if number == rows:
                    raise KeyboardInterrupt
                yield item

        yield some()

    with monkeypatch.context() as patch:
        patch.setattr("worker.file_import.submitting.ahead", interrupted)
        ran = cli("import", season, "--batch", "b-1", "--json")
    accepted = sum(records.store.counts().values())
    # Rows are accepted in chunks of five hundred.
    assert (ran.code, ran.out, accepted) == (130, "", rows // 500 * 500)
    assert (
        f"interrupted: at least {accepted:,} of {ROWS:,} rows are accepted as batch b-1" in ran.err
    )
    assert read_batch(records.store, "b-1").imported_at is None
    assert_whole(records, cli("import", season, "--batch", "b-1", "--json"), accepted)


def test_an_import_that_ends_before_it_notes_that_it_is_whole_is_gone_on_with(
    cli: Cli, records: Records, season: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("worker.batches.close_batch", interrupted)
        assert cli("import", season, "--batch", "b-1").code == 130
    assert_whole(records, cli("import", season, "--batch", "b-1", "--json"), ROWS)


def test_a_result_claims_no_refund_that_took_a_rows_id_during_the_import(
    cli: Cli, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "season.csv"
    path.write_text(
        "refund_id,payment_intent,amount\nrow-1,pi_1,500\nrow-2,pi_2,500\nrow-3,pi_3,500\n"
    )

    @contextmanager
    def and_meanwhile(items: Iterable[Any]) -> Iterator[Iterator[Any]]:
        records.succeeded("row-2", payment_intent="pi_9", amount=700)
        records.queued("row-3", payment_intent="pi_3", amount=500)
        yield iter(items)

    monkeypatch.setattr("worker.file_import.submitting.ahead", and_meanwhile)
    result = tmp_path / "result.csv"
    assert cli("import", str(path), "--batch", "b-1", "--result", str(result)).code == 6
    ran = cli("batch", "result", "b-1", "--input", str(path))
    assert result.read_text().splitlines() == ran.out.splitlines()
    rows = {row["refund_id"]: row for row in csv.DictReader(io.StringIO(ran.out))}
    assert {refund_id: row["status"] for refund_id, row in rows.items()} == {
        "row-1": "pending",
        "row-2": "",
        "row-3": "pending",
    }
    taken = rows["row-2"]
    assert (taken["amount"], taken["amount_refunded"], taken["error_code"]) == (
        "500",
        "",
        "conflict",
    )
    assert taken["provider_refund_id"] == ""


def test_an_import_does_not_end_well_if_its_batch_was_canceled_meanwhile(
    cli: Cli, records: Records, season: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def and_then_canceled(items: Iterable[Any]) -> Iterator[Iterator[Any]]:
        def to_the_last() -> Iterator[Any]:
            yield from items
            # An import looks for this after every 500 rows, and no such place comes any more.
            cancel_batch(records.store, "b-1", "kim")

        yield to_the_last()

    monkeypatch.setattr("worker.file_import.submitting.ahead", and_then_canceled)
    ran = cli("import", season, "--batch", "b-1", "--json", "--delay", "1h")
    assert (ran.code, ran.object["created"]) == (6, ROWS)
    assert "batch b-1 was canceled during its import" in ran.err
    assert "nothing is sent before" not in ran.err


def test_what_is_read_ahead_comes_in_its_order_and_ends_in_its_error() -> None:
    def rows() -> Iterator[int]:
        yield from range(1_000)
        raise InputError("changed while it was being read")

    with ahead(rows()) as ready:
        assert [next(ready) for _ in range(1_000)] == [*range(1_000)]
        with pytest.raises(InputError, match="changed"):
            next(ready)
    with ahead(range(1_001)) as ready:
        assert [*ready] == [*range(1_001)]


def test_reading_ahead_stops_with_the_one_who_reads() -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    with ahead(endless()) as ready:
        assert next(ready) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "rows-ahead"]
    assert 1 <= read < 10_000
