"""The README says what is: its diagram, its settings and its exit codes are held to the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worker.cli.exits import MEANINGS
from worker.rules.transitions import TRANSITIONS
from worker.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def diagram() -> str:
    """The stages as mermaid draws them, made from the table of transitions."""
    lines = ["stateDiagram-v2", "    [*] --> queued: accepted"]
    for source, targets in TRANSITIONS.items():
        lines += [f"    {source} --> {target}: {why}" for target, why in targets.items()]
    return "\n".join(lines)


def test_the_stage_diagram_is_the_table_of_transitions() -> None:
    found = re.search(r"```mermaid\n(.*?)\n```", README, re.DOTALL)
    assert found is not None
    assert found.group(1) == diagram()


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(REFUNDS_[A-Z_]+)` \| (.*?) \|", README, re.MULTILINE))
    assert set(rows) == {f"REFUNDS_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown = rows[f"REFUNDS_{name.upper()}"].strip("`")
        default = field.default
        if default is None:
            assert shown in {"\N{EN DASH}", "as above", "json"}
        elif isinstance(default, bool):
            assert shown == str(default).lower()
        elif isinstance(default, (int, float)):
            assert float(shown) == default
        else:
            assert shown == (default if isinstance(default, str) else default.get_secret_value())


def test_every_exit_code_stands_in_the_table() -> None:
    rows = re.findall(r"^\| (\d) \| (.*?) \|$", README, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == MEANINGS


@pytest.mark.parametrize("command", ["./ops/dev demo", "./ops/dev test"])
def test_the_two_commands_are_named(command: str) -> None:
    assert command in README


def test_every_package_stands_in_the_map_once() -> None:
    package = ROOT / "worker"
    packages = {f"worker/{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rows = re.findall(r"^\| `(worker/[a-z]+/)` \|", README, re.MULTILINE)
    assert sorted(rows) == sorted(packages)
    row = re.search(r"^\| `worker/(client\.py`, .*?) \|", README, re.MULTILINE)
    assert row is not None
    named = set(re.findall(r"([a-z]+\.py)`", row.group(1)))
    assert named == {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
