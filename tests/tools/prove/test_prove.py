"""The command as a user runs it, on its smallest real run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ops.lab.prove import faulty_door, faulty_worker
from ops.lab.prove.planted import BUGS, RULES
from ops.lab.prove.scenarios import matrix
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def prove(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "ops" / "lab" / "prove"), *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_real_run_kills_a_worker_and_prints_its_row(tmp_path: Path) -> None:
    done = prove(
        tmp_path,
        "--quick",
        "--only",
        "crash: saved unacked",
        "--results",
        str(tmp_path / "table.md"),
    )
    assert done.returncode == 0, done.stderr
    assert "| crash: saved unacked | 1 " in done.stdout
    assert "0 violations" in done.stdout
    assert (tmp_path / "table.md").read_text().endswith(done.stdout.strip() + "\n")


def test_a_name_that_no_scenario_has_proves_nothing_and_is_refused(tmp_path: Path) -> None:
    done = prove(tmp_path, "--quick", "--only", "nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no scenario's name holds nosuch" in done.stderr


def _started_below(folder: Path) -> list[str]:
    """The processes that run in a folder or were started with it as their place for temporary
    files.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            here = (
                str(process.joinpath("cwd").readlink()),
                process.joinpath("environ").read_text(errors="replace"),
            )
        except OSError:
            continue  # it has ended, or is somebody else's
        if any(str(folder) in one for one in here):
            found.append(
                process.joinpath("comm").read_text().strip() if process.exists() else process.name
            )
    return found


def test_told_to_end_it_ends_whatever_it_has_started_and_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    command = [
        sys.executable,
        str(ROOT / "ops" / "lab" / "prove"),
        "--quick",
        "--only",
        "crash: claimed",
        "--no-control",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"TMPDIR": str(folder)}
    ) as running:
        while not [*folder.glob("refunds-prove-*/worker-1.log")]:
            assert running.poll() is None
            time.sleep(0.05)
        assert len(_started_below(folder)) >= 4
        running.terminate()
        assert running.wait(30) == 128 + signal.SIGTERM
    assert _started_below(folder) == []
    assert [*folder.glob("refunds-*")] == []


def test_every_key_mode_meets_every_reply_and_every_break_of_the_wire() -> None:
    modes = {(scenario.mode, scenario.name.split(" (")[0]) for scenario in matrix()}
    keys = {
        (mode.idempotency, mode.keys, mode.store_5xx)
        for mode, name in modes
        if name == "provider replies"
    }
    assert keys == {
        ("verify", "ignore", False),
        ("verify", "honour", False),
        ("verify", "honour", True),
        ("trust", "honour", False),
        ("trust", "honour", True),
    }
    replies = {mode for mode, name in modes if name == "provider replies"}
    assert replies == {mode for mode, name in modes if name == "provider wire"}
    assert {(mode.idempotency, mode.readback) for mode in replies} == {
        (idempotency, readback)
        for idempotency in ("verify", "trust")
        for readback in ("list", "totals", "none")
    }


def test_a_worker_that_was_told_nothing_meets_every_reply_and_every_break_of_the_wire() -> None:
    told = Settings()
    rules = (told.idempotency, told.readback, told.totals)
    named = {
        scenario.name.split(" (")[0]
        for scenario in matrix()
        if (scenario.mode.idempotency, scenario.mode.readback, scenario.mode.totals) == rules
    }
    assert named >= {"provider replies", "provider wire"}


def test_the_quick_plan_holds_every_readback_and_both_ways_to_take_a_key() -> None:
    quick = {
        scenario.mode
        for scenario in matrix()
        if scenario.quick and scenario.name.startswith("provider replies")
    }
    assert {mode.readback for mode in quick} == {"list", "totals", "none"}
    assert {(mode.idempotency, mode.store_5xx) for mode in quick} == {
        ("verify", False),
        ("trust", False),
        ("trust", True),
    }


def test_every_planted_bug_is_run_and_one_of_them_in_a_quick_run_too(tmp_path: Path) -> None:
    assert {bug.plant for bug in BUGS} == {*faulty_worker.BUGS, *faulty_door.BUGS}
    assert (
        "planted bug: a lapsed lease taken as unsent"
        in prove(tmp_path, "--quick", "--list").stdout.splitlines()
    )
    assert {*RULES} <= {*prove(tmp_path, "--list").stdout.splitlines()}


def test_every_scenario_can_be_named(tmp_path: Path) -> None:
    named = prove(tmp_path, "--quick", "--list").stdout.splitlines()
    points = (
        "received, claimed, durable, before bytes, sent before effect, effect before reply, reply"
        " half read"
    )
    assert {
        f"crash: {point}" for point in [*points.split(", "), "reply read unsaved", "saved unacked"]
    } <= {*named}
