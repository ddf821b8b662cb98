"""The README and the pages beside it say what is.

Diagrams, tables and the demo's output are held to the code.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from worker.cli.exits import INTERRUPTED, MEANINGS
from worker.model.refund import Refund, Stage, Status
from worker.rules.transitions import TRANSITIONS
from worker.sandbox import demo
from worker.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DESIGN = (ROOT / "ops" / "docs" / "design.md").read_text("utf-8")
SETTINGS = (ROOT / "ops" / "docs" / "settings.md").read_text("utf-8")
FEW = 6
"""How many settings the README itself names."""


def block(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)\n```", page, re.DOTALL)
    assert found is not None
    return found.group(1)


def diagram() -> str:
    """The stages as mermaid draws them, made from the table of transitions."""
    lines = ["stateDiagram-v2", "    [*] --> queued: accepted"]
    for source, targets in TRANSITIONS.items():
        lines += [f"    {source} --> {target}: {why}" for target, why in targets.items()]
    return "\n".join(lines)


def short_diagram() -> str:
    """The same without the reasons, one line a stage."""
    lines = ["flowchart LR", "    accepted([accepted]) --> queued"]
    lines += [f"    {source} --> {' & '.join(targets)}" for source, targets in TRANSITIONS.items()]
    return "\n".join(lines)


def test_the_stage_diagram_is_the_table_of_transitions() -> None:
    assert block(DESIGN, "mermaid") == diagram()


def test_the_readmes_diagram_is_the_table_of_transitions_without_its_reasons() -> None:
    assert block(README, "mermaid") == short_diagram()


def settings_in(page: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(REFUNDS_[A-Z_]+)` \| (.*?) \|", page, re.MULTILINE))


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = settings_in(SETTINGS)
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


def test_the_readme_names_a_few_settings_with_the_defaults_of_the_table() -> None:
    few = settings_in(README)
    assert len(few) == FEW
    assert few.items() <= settings_in(SETTINGS).items()


def test_every_exit_code_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \|$", SETTINGS, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == MEANINGS
    assert INTERRUPTED in MEANINGS


@pytest.mark.parametrize("command", ["./ops/dev demo", "./ops/dev test"])
def test_the_two_commands_are_named(command: str) -> None:
    assert command in README


def shown_record(line: str, row: demo.Row) -> tuple[Refund, int]:
    """Return the record that a line of the README's table shows, and how often it moved money."""
    _, _, _, status, tries, why, moved = re.split(r" {2,}", line.strip())
    failed = status == "failed"
    now = datetime(2026, 1, 31, tzinfo=UTC)
    record = Refund(
        refund_id=row.refund_id,
        status=Status(status),
        stage=Stage.SETTLED,
        payment_intent=row.payment_intent,
        attempts=int(tries),
        error_code=why if failed else None,
        evidence=None if failed else why,
        created_at=now,
        updated_at=now,
        version=1,
        fingerprint="",
        idempotency_key="",
    )
    return record, int(moved)


def usual_record(row: demo.Row) -> tuple[Refund, int]:
    """Return what a row that the README does not show usually becomes, and its effects."""
    end = "failed  1  refused  0" if row.expected is Status.FAILED else "succeeded  1  reply  1"
    return shown_record(f"{row.refund_id}  {row.story}  {row.amount or 0}  {end}", row)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_the_demos_table_is_taken_from_what_the_demo_prints() -> None:
    shown = lines_of(block(README, "text"))
    rows = {row.refund_id: row for row in demo.rows(demo_rows())}
    lines = {line.split()[0]: line for line in shown if line.strip().startswith("order-")}
    records = {
        name: shown_record(lines[name], row) if name in lines else usual_record(row)
        for name, row in rows.items()
    }
    assert all(records[name][0].status is row.expected for name, row in rows.items())
    console = Console(soft_wrap=True, width=110, file=io.StringIO())
    effects = Counter({name: moved for name, (_, moved) in records.items()})
    console.print(
        demo._table([*rows.values()], [record for record, _ in records.values()], effects)
    )
    assert isinstance(console.file, io.StringIO)
    printed = lines_of(console.file.getvalue())
    table = [*shown[:2], *lines.values()]
    assert shown[: len(table)] == table == [line for line in printed if line in table]
    ended = Counter(str(record.status) for record, _ in records.values())
    counts = ", ".join(f"{number} {status}" for status, number in sorted(ended.items()))
    fired = len(demo.FAULTS.split(","))
    assert shown[len(table)].startswith(
        f"5. {len(rows)} refunds: {counts}; {effects.total()} effects in the ledger, {fired} faults"
        " fired"
    )


def demo_rows() -> int:
    count = next(option.default for option in demo.main.params if option.name == "count")
    assert isinstance(count, int)
    return count


def test_every_package_is_in_the_map_once() -> None:
    packages = {
        f"worker/{path.name}/"
        for path in (ROOT / "worker").iterdir()
        if (path / "__init__.py").exists()
    }
    rows = re.findall(r"^\| (`worker/.*?) \|", README, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(worker/[a-z_]+/)`", row)]
    assert sorted(named) == sorted(packages)
