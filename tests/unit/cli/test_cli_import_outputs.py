"""The files that `refunds import` leaves behind.

Never of a run before, and never in a device's place.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_runner import Cli, Records
from tests.support.files import workbook

GOOD = "refund_id,payment_intent,amount\nrow-1,pi_1,500\n"
BAD = "refund_id,payment_intent,amount\nrow-1,pi_1,0\n"


def a_file(folder: Path, text: str, name: str = "season.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_errors_of_an_earlier_run_are_gone_after_one_without_any(
    cli: Cli, tmp_path: Path, options: tuple[str, ...]
) -> None:
    errors = tmp_path / "bad.csv"
    assert cli("import", a_file(tmp_path, BAD), "--errors", str(errors)).code == 3
    assert errors.exists()
    ran = cli("import", a_file(tmp_path, GOOD), "--errors", str(errors), *options)
    assert (ran.code, errors.exists()) == (0, False)
    assert f"no row is invalid: {errors} from an earlier run was removed" in ran.err


@pytest.mark.parametrize("options", [("--dry-run",), ("--max-total", "1")])
def test_results_of_an_earlier_run_are_named_as_such_if_none_are_written(
    cli: Cli, tmp_path: Path, options: tuple[str, ...]
) -> None:
    result = tmp_path / "result.csv"
    assert cli("import", a_file(tmp_path, GOOD), "--result", str(result)).code == 0
    before = result.read_text()
    today = a_file(tmp_path, GOOD.replace("row-1,pi_1", "row-2,pi_2"), "today.csv")
    ran = cli("import", today, "--result", str(result), *options)
    assert result.read_text() == before
    assert f"{result} was left as it was: nothing in it is from this run" in ran.err
    ran = cli("import", today, "--result", str(result))
    assert (ran.code, "was left as it was" in ran.err) == (0, False)


@pytest.mark.parametrize("text", [GOOD, BAD])
@pytest.mark.parametrize(
    "other",
    [
        GOOD,
        '{"refund_id": "row-1", "payment_intent": "pi_1"}\n',
        "{",
        '"',
        "the line, the column, a code, its value and a rule\n",
        "code,line,column,value,rule\n",
        "status,refund_id,stage\n",
        "\0",
    ],
)
@pytest.mark.parametrize(("option", "kind"), [("--errors", "errors"), ("--result", "results")])
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_file_of_another_kind_is_neither_replaced_nor_removed(
    cli: Cli,
    records: Records,
    tmp_path: Path,
    option: str,
    kind: str,
    options: tuple[str, ...],
    other: str,
    text: str,
) -> None:
    february = tmp_path / "february.csv"
    february.write_text(other)
    ran = cli("import", a_file(tmp_path, text), option, str(february), *options)
    accepted = sum(records.store.counts().values())
    assert (ran.code, february.read_text(), accepted) == (3, other, 0)
    assert ran.err == (
        f"error: {february} exists and is not a file of {kind}, so it is not replaced: choose"
        " another name, or move that file away\n"
    )


@pytest.mark.parametrize(("one", "other"), [("--errors", "--result"), ("--result", "--errors")])
def test_errors_and_results_do_not_replace_each_other(
    cli: Cli, tmp_path: Path, one: str, other: str
) -> None:
    file, target = a_file(tmp_path, BAD), tmp_path / "out.csv"
    assert cli("import", file, one, str(target)).code == 3
    before = target.read_text()
    ran = cli("import", file, other, str(target))
    assert (target.read_text(), "is not replaced" in ran.err) == (before, True)


JSON = '{"refund_id": "row-1", "payment_intent": "pi_1", "amount": 0}\n'
ODD = {
    "s.csv": BAD,
    "s.tsv": BAD.replace(",", "\t"),
    "semicolon.csv": BAD.replace(",", ";"),
    "marked.csv": "\ufeff" + BAD,
    "named.csv": "sep=;\n" + BAD.replace(",", ";"),
    "lines.csv": BAD.replace("amount", 'amount,"metadata.a\r\nb"').replace("0\n", "0,x\n"),
    "own.csv": BAD.replace("amount", "amount,line,Status").replace("0\n", "0,x,y\n"),
    "capitals.csv": BAD.replace("refund_id", "Refund ID"),
    "long.csv": BAD.replace("amount", "amount," + "y" * 90_000).replace("0\n", "0,x\n"),
    "s.jsonl": JSON,
    "own.jsonl": JSON.replace("}", ', "line": 1, "status": "x"}'),
}


@pytest.mark.parametrize("option", ["--errors", "--result"])
@pytest.mark.parametrize("name", ODD)
def test_what_an_earlier_run_wrote_is_replaced_in_every_format(
    cli: Cli, tmp_path: Path, name: str, option: str
) -> None:
    file, target = a_file(tmp_path, ODD[name], name), tmp_path / "out"
    target.touch()
    command = ("import", file, "--ignore-extra", option, str(target))
    assert cli(*command).code == 3
    written = target.read_text()
    assert "amount_zero" in written
    target.write_text(written + "fixed by hand\n")
    assert (cli(*command).code, target.read_text()) == (3, written)
    # Both are input too, and what becomes of that is of the same kind.
    for _ in range(2):
        again = tmp_path / f"again-{name}"
        target.rename(again)
        assert cli("import", str(again), "--ignore-extra", option, str(target)).code == 3
        assert cli("import", str(again), "--ignore-extra", option, str(target)).code == 3
        assert target.exists()


def test_a_file_that_came_during_the_import_stays(
    cli: Cli, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "r.csv"

    def fill(*_: object) -> int:
        target.write_text(GOOD)
        return 1

    monkeypatch.setattr("worker.cli.import_run.write_result", fill)
    ran = cli("import", a_file(tmp_path, GOOD), "--result", str(target))
    assert (ran.code, target.read_text(), records.get("row-1").amount) == (1, GOOD, 500)
    assert "write their results with 'refunds batch result'" in ran.err


@pytest.mark.parametrize("option", ["--errors", "--result"])
def test_an_open_file_is_not_replaced_by_its_number(cli: Cli, tmp_path: Path, option: str) -> None:
    with (tmp_path / "log").open("w") as log:
        name = f"/dev/fd/{log.fileno()}"
        ran = cli("import", a_file(tmp_path, BAD), option, name)
    assert ran.code == 3
    assert ran.err == f"error: {name} leads to a plain file here: name that file itself\n"


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_result_of_a_refused_file_has_the_refunds_of_rows_that_were_accepted_before(
    cli: Cli, away: Cli, records: Records, tmp_path: Path, options: tuple[str, ...]
) -> None:
    records.succeeded("row-1", "re_1", payment_intent="pi_1", amount=500)
    result = tmp_path / "result.csv"
    command = ("import", a_file(tmp_path, f"{GOOD}row-2,pi_2,0\n"), "--result", str(result))
    assert cli(*command, *options).code == 3
    written = result.read_text()
    assert [line.split(",")[:5] for line in written.splitlines()[1:]] == [
        ["row-1", "pi_1", "500", "succeeded", "settled"],
        ["row-2", "pi_2", "0", "invalid", ""],
    ]
    ran = away(*command, *options)
    assert (ran.code, result.read_text()) == (3, written)
    assert "no results were written" in ran.err


def test_errors_of_json_lines_of_an_earlier_run_are_gone_too(cli: Cli, tmp_path: Path) -> None:
    errors = tmp_path / "bad.jsonl"
    row = {"refund_id": "row-1", "payment_intent": "pi_1", "amount": 0}
    assert cli("import", a_file(tmp_path, json.dumps(row), "s.jsonl"), "--errors", str(errors)).code
    good = a_file(tmp_path, json.dumps(row | {"amount": 5}), "s.jsonl")
    assert (cli("import", good, "--errors", str(errors)).code, errors.exists()) == (0, False)


@pytest.mark.parametrize("option", ["--errors", "--result"])
def test_standard_output_is_for_the_summary_alone(cli: Cli, tmp_path: Path, option: str) -> None:
    ran = cli("import", a_file(tmp_path, BAD), option, "-")
    assert (
        ran.code,
        ran.out,
        "'-' must be a file, because the summary goes to standard output" in ran.err,
    ) == (
        2,
        "",
        True,
    )


def test_result_and_errors_may_be_names_of_one_pipe(cli: Cli, tmp_path: Path) -> None:
    """As /dev/stdout and /dev/stderr are on a terminal: nothing is replaced there."""
    for name in ("one", "other"):
        (tmp_path / name).symlink_to("/dev/null")
    targets = ("--errors", str(tmp_path / "one"), "--result", str(tmp_path / "other"))
    assert cli("import", a_file(tmp_path, GOOD), *targets).code == 0


def test_a_link_that_leads_to_itself_is_replaced(cli: Cli, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    targets = ("--errors", str(tmp_path / "x"), "--result", str(loop))
    assert cli("import", a_file(tmp_path, GOOD), *targets).code == 0
    assert "row-1" in loop.read_text()


@pytest.mark.parametrize("folder", ["", "sub/../", "link/"])
def test_result_and_errors_cannot_share_a_file(cli: Cli, tmp_path: Path, folder: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    result = f"{tmp_path}/{folder}x"
    ran = cli("import", a_file(tmp_path, BAD), "--errors", f"{tmp_path}/x", "--result", result)
    assert (ran.code, "--result and --errors both name" in ran.err, (tmp_path / "x").exists()) == (
        2,
        True,
        False,
    )


def test_a_pipe_is_written_to_and_stays_a_pipe(cli: Cli, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    came: list[str] = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()), daemon=True)
    reader.start()
    assert cli("import", a_file(tmp_path, BAD), "--errors", str(pipe)).code == 3
    reader.join(10)
    assert ("amount_zero" in came[0], pipe.is_fifo()) == (True, True)


def test_a_batchs_result_goes_to_standard_output_for_a_hyphen(cli: Cli, tmp_path: Path) -> None:
    file = a_file(tmp_path, GOOD)
    cli("import", file, "--batch", "b-1")
    ran = cli("batch", "result", "b-1", "--input", file, "--output", "-")
    assert (ran.code, ran.out.startswith("refund_id,payment_intent,amount,status")) == (0, True)


def test_a_sheet_of_a_csv_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    ran = cli("import", a_file(tmp_path, GOOD), "--sheet", "Refunds")
    assert (ran.code, ran.out) == (2, "")
    assert (
        "--sheet applies only to a workbook, but season.csv is read as CSV, comma-separated: leave"
        " the option out" in ran.err
    )


def test_a_delimiter_of_json_lines_or_a_workbook_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    lines = a_file(tmp_path, '{"refund_id": "row-1", "payment_intent": "pi_1"}\n', "season.jsonl")
    (tmp_path / "season.xlsx").write_bytes(
        workbook([["refund_id", "payment_intent"], ["row-1", "pi_1"]])
    )
    for file in (lines, str(tmp_path / "season.xlsx")):
        ran = cli("import", file, "--delimiter", "tab")
        assert (ran.code, "--delimiter applies only to a CSV" in ran.err) == (2, True)


def test_a_file_without_a_name_is_no_folder(cli: Cli) -> None:
    ran = cli("import", "")
    assert (ran.code, ran.err) == (
        3,
        "error: the file's name is empty: name a file, or - for standard input\n",
    )


def test_a_file_whose_name_is_no_text_is_imported(cli: Cli, tmp_path: Path) -> None:
    name = os.fsdecode(b"season-\xff.csv")
    ran = cli("import", a_file(tmp_path, GOOD, name), "--json")
    assert (ran.code, ran.object["file"]) == (0, r"season-\udcff.csv")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("option", ["--errors", "--result"])
def test_what_a_command_leaves_behind_is_for_its_owner_alone(
    cli: Cli, tmp_path: Path, option: str
) -> None:
    target = tmp_path / "bad.csv"
    assert cli("import", a_file(tmp_path, BAD), option, str(target)).code == 3
    target.chmod(0o644)
    before = os.umask(0)
    try:
        assert cli("import", a_file(tmp_path, BAD), option, str(target)).code == 3
    finally:
        os.umask(before)
    assert ("amount_zero" in target.read_text(), mode(target)) == (True, 0o600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "season.csv"]


@pytest.mark.parametrize("option", ["--errors", "--result"])
def test_a_link_that_somebody_has_laid_beside_it_is_not_followed(
    cli: Cli, tmp_path: Path, option: str
) -> None:
    precious, target = tmp_path / "precious", tmp_path / "bad.csv"
    assert cli("import", a_file(tmp_path, BAD), option, str(precious)).code == 3
    before = precious.read_text() + "fixed by hand"
    precious.write_text(before)
    for name in ("bad.csv.part", ".bad.csv.part", "bad.csv"):
        (tmp_path / name).symlink_to(precious)
    assert cli("import", a_file(tmp_path, BAD), option, str(target)).code == 3
    assert precious.read_text() == before
    assert ("amount_zero" in target.read_text(), target.is_symlink()) == (True, False)
    assert (tmp_path / "bad.csv.part").is_symlink()


def test_a_batchs_result_in_a_file_is_for_its_owner_alone(cli: Cli, tmp_path: Path) -> None:
    file, target = a_file(tmp_path, GOOD), tmp_path / "result.csv"
    cli("import", file, "--batch", "b-1")
    assert cli("batch", "result", "b-1", "--input", file, "--output", str(target)).code == 0
    assert mode(target) == 0o600
    target.write_text(GOOD)
    ran = cli("batch", "result", "b-1", "--input", file, "--output", str(target))
    assert (ran.code, target.read_text()) == (3, GOOD)
    assert "is not a file of results" in ran.err


def test_a_command_that_is_refused_leaves_no_part_of_a_file(cli: Cli, tmp_path: Path) -> None:
    file = a_file(tmp_path, "refund_id,payment_intent,amount\nrow-1,pi_1,1e3,x\n")
    assert (
        cli(
            "import", file, "--result", str(tmp_path / "r.csv"), "--errors", str(tmp_path / "e.csv")
        ).code
        == 3
    )
    assert [path.name for path in tmp_path.iterdir()] == ["season.csv"]


def test_a_name_as_long_as_names_may_be_is_written(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / ("b" * 251 + ".csv")
    assert cli("import", a_file(tmp_path, BAD), "--errors", str(target)).code == 3
    assert "amount_zero" in target.read_text()


def test_a_result_that_cannot_be_written_at_the_end_takes_nothing_back(
    cli: Cli, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*facts: Any) -> None:
        out = facts[-1]
        out.write("half a row")
        with Path(os.devnull).open("rb") as unwritable:
            # So the rest of the buffer cannot be written either when the file is closed.
            os.dup2(unwritable.fileno(), out.fileno())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("worker.cli.import_run.write_result", full)
    ran = cli("import", a_file(tmp_path, GOOD), "--result", str(tmp_path / "r.csv"))
    assert (ran.code, records.get("row-1").amount) == (1, 500)
    assert (
        "the accepted refunds continue: write their results with 'refunds batch result'" in ran.err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["season.csv"]
