"""Whatever is counted of a batch adds up to the batch.

Shown, listed, canceled, retried and written back.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import pytest

from tests.support.cli_runner import Cli, Records
from worker.batches import moves
from worker.model.refund import Retriable, Stage, Status
from worker.model.steps import Step
from worker.store import saves

ROWS = [
    *(f"row-{number},pi_{number},500,usd" for number in range(8)),
    # Stated twice, invalid, and known from before.
    "row-0,pi_0,500,usd",
    "row-8,pi_8,nothing,usd",
    "row-9,pi_9,500,usd",
]


@pytest.fixture
def season(cli: Cli, records: Records, tmp_path: Path) -> Path:
    """A file of every kind of row, handed in; its rows have come to every kind of end."""
    records.queued("row-9", payment_intent="pi_9", currency="usd")
    file = tmp_path / "season.csv"
    file.write_text("\n".join(["refund_id,payment_intent,amount,currency", *ROWS]) + "\n")
    ran = cli(
        "import",
        str(file),
        "--batch",
        "b-1",
        "--on-error",
        "skip",
        "--max-errors",
        "1",
        "--allow-repeat",
    )
    assert ran.code == 0, ran.err
    for number, (status, changes) in enumerate(
        [
            (Status.SUCCEEDED, {"provider_refund_id": "re_0"}),
            (Status.FAILED, {"error_code": "a", "retriable": Retriable.YES}),
            (Status.FAILED, {"error_code": "b", "retriable": Retriable.NO}),
            (Status.FAILED, {"error_code": "c", "retriable": Retriable.YES}),
        ]
    ):
        refund = records.claimed(f"row-{number}")
        step = Step(to=Stage.SETTLED, status=status, label="x", changes=changes)
        assert records.store.run(saves.save(refund, step)).result == "saved"
    for number in (4, 5):
        refund = records.claimed(f"row-{number}")
        step = Step(to=Stage.REVIEW, status=Status.PENDING, label="x")
        assert records.store.run(saves.save(refund, step)).result == "saved"
    return file


def test_rows_of_a_file_are_all_told_of(cli: Cli, season: Path) -> None:
    del season
    shown = cli("batch", "show", "b-1", "--json").object
    parts = [shown[name] for name in ("invalid", "duplicates", "known", "conflicting", "accepted")]
    assert parts == [1, 1, 1, 0, 8]
    assert sum(parts) == shown["rows"] == len(ROWS)


def test_refunds_of_a_batch_add_up_wherever_they_are_shown(cli: Cli, season: Path) -> None:
    del season
    shown = cli("batch", "show", "b-1", "--json").object
    assert sum(shown["statuses"].values()) == sum(shown["stages"].values()) == shown["accepted"]
    settled = sum(count for name, count in shown["statuses"].items() if name != "pending")
    assert settled + shown["stages"]["review"] + shown["moving"] == shown["accepted"]
    words = [line.split() for line in cli("batch", "show", "b-1").out.splitlines()]
    lines = {pair[0]: pair[1] for pair in words if len(pair) == 2}
    told = [int(lines[name]) for name in ("succeeded", "failed", "queued", "review")]
    assert sum(told) == int(lines["refunds"]) == shown["accepted"]
    header, row = cli("batch", "list").out.splitlines()
    columns = dict(zip(header.split()[2:8], row.split()[2:8], strict=True))
    counts = {name: int(count) for name, count in columns.items()}
    assert sum(counts.values()) == 2 * counts["refunds"] == 2 * shown["accepted"]


def test_failed_refunds_are_all_told_of_by_a_retry(
    cli: Cli, records: Records, season: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del season
    failed = cli("batch", "show", "b-1", "--json").object["statuses"]["failed"]
    apply = moves._apply

    def and_meanwhile(*arguments: object) -> tuple[list[str], list[tuple[str, str]]]:
        # Somebody else decides that one of them is not to be sent again.
        refund = records.get("row-3")
        step = Step(
            to=Stage.SETTLED, status=Status.FAILED, label="x", changes={"retriable": Retriable.NO}
        )
        records.store.run(saves.save(refund, step))
        return apply(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(moves, "_apply", and_meanwhile)
    told = cli("batch", "retry", "b-1", "--json").object
    assert (told["retried"], told["left"], told["moved"]) == (1, {"no": 1}, 1)
    assert told["retried"] + sum(told["left"].values()) + told["moved"] == failed


def test_a_retry_shows_how_many_had_failed(cli: Cli, season: Path) -> None:
    del season
    lines = [line.split() for line in cli("batch", "retry", "b-1").out.splitlines()[1:]]
    assert lines == [
        ["sent", "again", "2"],
        ["not", "sent,", "retriable:", "no", "1"],
        ["failed", "before", "3"],
    ]


def test_a_canceled_batch_adds_up(cli: Cli, season: Path) -> None:
    del season
    told = cli("batch", "cancel", "b-1", "--json").object
    assert (
        told["canceled"] + sum(told["sent"].values()) + sum(told["to_be_canceled"].values())
        == told["refunds"]
        == 8
    )


def test_a_result_has_every_row_with_the_statuses_that_are_shown(cli: Cli, season: Path) -> None:
    ran = cli("batch", "result", "b-1", "--input", str(season))
    assert ran.code == 0, ran.err
    rows = [*csv.DictReader(io.StringIO(ran.out))]
    assert len(rows) == len(ROWS)
    written = Counter(row["status"] for row in rows if row["refund_id"] not in {"row-9", ""})
    shown = cli("batch", "show", "b-1", "--json").object["statuses"]
    # The row that was stated twice is one refund, told of in each of its rows.
    assert written["succeeded"] - 1 == shown["succeeded"]
    assert (written["failed"], written["pending"]) == (shown["failed"], shown["pending"])
