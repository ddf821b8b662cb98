"""Commands on refunds whose metadata were erased: repeats are known, and a retry is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli_runner import Cli, Records
from worker.store import erasure

HEADER = "refund_id,payment_intent,amount,metadata.customer"
ROW = "row-1,pi_1,500,ada"


def a_file(folder: Path, row: str, name: str) -> str:
    path = folder / name
    path.write_text(f"{HEADER}\n{row}\n")
    return str(path)


@pytest.fixture
def imported(cli: Cli, records: Records, tmp_path: Path) -> str:
    """A file with one refund, which has failed, and whose metadata were erased."""
    file = a_file(tmp_path, ROW, "season.csv")
    assert cli("import", file, "--batch", "b-1").code == 0
    records.failed("row-1", payment_intent="pi_1", batch_id="b-1", metadata={"customer": "ada"})
    refund = records.get("row-1")
    assert records.store.run(erasure.erase(refund, refund.updated_at)).result == "saved"
    return file


def test_file_with_the_same_row_is_known(cli: Cli, imported: str) -> None:
    ran = cli("import", imported, "--again", "--json")
    assert (ran.object["known"], ran.object["created"], ran.object["conflicting"]) == (1, 0, 0)


@pytest.mark.usefixtures("imported")
def test_row_with_other_metadata_is_a_conflict_that_says_what_is_not_known(
    cli: Cli, tmp_path: Path
) -> None:
    for customer in ("grace", ""):
        ran = cli("import", a_file(tmp_path, f"row-1,pi_1,500,{customer}", "other.csv"), "--json")
        assert (ran.code, ran.object["conflicting"]) == (6, 1)
        assert "failed (card_gone): metadata erased, here not the same\n" in ran.err
    ran = cli("import", a_file(tmp_path, "row-1,pi_1,600,ada", "more.csv"), "--json")
    assert "failed (card_gone): amount 500, here 600\n" in ran.err


@pytest.mark.usefixtures("imported")
def test_submit_knows_the_refund_and_refuses_other_metadata(cli: Cli) -> None:
    submit = ("submit", "row-1", "--payment-intent", "pi_1", "--amount", "500", "--json")
    again = cli(*submit, "--metadata", "customer=ada")
    assert (again.object["status"], again.object["metadata"]) == ("failed", {})
    assert "already accepted" in again.err
    assert cli(*submit).code == 6
    assert cli(*submit, "--metadata", "customer=grace").code == 6


@pytest.mark.usefixtures("imported")
def test_retry_is_refused_with_the_reason(cli: Cli, records: Records) -> None:
    ran = cli("retry", "row-1", "--unknown")
    assert (ran.code, ran.out) == (6, "")
    assert "its metadata were erased on" in ran.err
    assert "submit a new refund under a new id" in ran.err
    ran = cli("batch", "retry", "b-1", "--unknown", "--json")
    assert ran.object["retried"] == 0
    assert records.get("row-1").generation == 1


@pytest.mark.usefixtures("imported")
def test_status_says_when_the_metadata_were_erased(cli: Cli) -> None:
    (line,) = [line for line in cli("status", "row-1").out.splitlines() if "metadata" in line]
    assert "erased 20" in line
    assert cli("status", "row-1", "--json").object["metadata_erased_at"] is not None
