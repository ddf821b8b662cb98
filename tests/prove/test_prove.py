"""The command as a user runs it, on its smallest real run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def prove(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "ops" / "prove"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_real_run_kills_a_worker_and_prints_its_row(tmp_path: Path) -> None:
    done = prove(tmp_path, "--quick", "--only", "crash: saved unacked", "--results", str(tmp_path / "table.md"))
    assert done.returncode == 0, done.stderr
    assert "| crash: saved unacked | 1 " in done.stdout
    assert "0 violations" in done.stdout
    assert (tmp_path / "table.md").read_text().endswith(done.stdout.strip() + "\n")


def test_every_scenario_can_be_named(tmp_path: Path) -> None:
    named = prove(tmp_path, "--quick", "--list").stdout.splitlines()
    points = "received, claimed, durable, before bytes, sent before effect, effect before reply, reply half read"
    assert {f"crash: {point}" for point in [*points.split(", "), "reply read unsaved", "saved unacked"]} <= {*named}
