"""The command itself on a tiny checkout.

What no test notices is shown, and fails it until it is explained.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.lab.mutants.crew import Choice, Verdict, crew_for
from ops.lab.mutants.explained import read_explained
from ops.lab.mutants.measured import Kept
from ops.lab.mutants.table import rendered, rows
from ops.lab.mutants.targets import ROOT, Plan

RULES = """\
LIMIT = 3


def allowed(count):
    if count > LIMIT:
        return False
    return True


def endless(count):
    while count < 2:
        count += 1
    return count


def unused(count):
    return count + 1


def doubled(count):
    return count * 2


FOUR = doubled(2)
"""

TESTS = """\
from worker.rules.attempts import FOUR, LIMIT, allowed, endless


def test_more_than_the_limit_is_refused():
    assert not allowed(LIMIT + 1)


def test_less_than_the_limit_is_allowed():
    assert allowed(0)


def test_it_ends():
    assert endless(0) == 2
    assert FOUR == 4
"""

SPOILABLE = """\
import pytest

from worker.rules.attempts import allowed


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    return tmp_path_factory.mktemp("desk")


def test_none_is_allowed():
    assert allowed(0)


def test_desk(desk):
    spoilt = desk / "spoilt"
    assert not spoilt.exists()
    if not allowed(2) or allowed(4):
        spoilt.touch()
        raise AssertionError
"""

EXPLAINED = """\
[[mutant]]
file = "worker/rules/attempts.py"
function = ""
before = "LIMIT = 3"
after = "LIMIT = 4"
reason = "Any limit would do here."

[[mutant]]
file = "worker/rules/attempts.py"
function = "allowed"
before = "if count > LIMIT:"
after = "if count >= LIMIT:"
reason = "Nobody asks for exactly the limit."

[[mutant]]
file = "worker/rules/attempts.py"
function = "unused"
before = "return count + 1"
after = "return count - 1"
reason = "Nobody calls it."
"""

FROZEN = """\
import gc


def pytest_collection_finish():
    gc.freeze()
"""
"""Our own tests do the same: the collector then lists nothing that was loaded before them."""


@pytest.fixture(autouse=True)
def few_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugins of installed packages take most of a second in each pytest that is started."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkout with one module of rules and its tests."""
    (tmp_path / "worker" / "store" / "lua").mkdir(parents=True)
    (tmp_path / "worker" / "rules").mkdir()
    (tmp_path / "tests" / "unit" / "rules").mkdir(parents=True)
    (tmp_path / "worker" / "__init__.py").touch()
    (tmp_path / "worker" / "rules" / "attempts.py").write_text(RULES)
    (tmp_path / "tests" / "conftest.py").write_text(FROZEN)
    (tmp_path / "tests" / "unit" / "rules" / "test_policy.py").write_text(TESTS)
    return tmp_path


@pytest.fixture
def plan(tiny: Path) -> Plan:
    """The tiny checkout's plan, with little patience."""
    return Plan(
        root=tiny,
        targets=("worker/rules/attempts.py",),
        tests=("tests/unit/rules/test_policy.py",),
        copied=("worker", "tests"),
        spare_seconds=1.0,
    )


def test_each_mutant_gets_the_fate_that_the_tests_give_it(plan: Plan) -> None:
    verdicts: list[Verdict] = []
    told: list[str] = []
    with crew_for(plan, jobs=1, tell=told.append) as crew:
        crew.judge(plan.mutants("worker/rules/attempts.py"), verdicts.append)
    assert told == []
    fates = {(one.mutant.function, one.mutant.after): one.fate for one in verdicts}
    assert fates == {
        ("", "LIMIT = 4"): "survived",
        ("allowed", "if count >= LIMIT:"): "survived",
        ("allowed", "if count <= LIMIT:"): "killed",
        ("allowed", "if True:"): "killed",
        ("allowed", "if False:"): "killed",
        ("allowed", "return True"): "killed",
        ("allowed", "return None"): "killed",
        ("allowed", "return False"): "killed",
        ("endless", "while count <= 2:"): "killed",
        ("endless", "while count >= 2:"): "killed",
        ("endless", "while count < 3:"): "killed",
        ("endless", "while False:"): "killed",
        ("endless", "pass"): "timeout",
        ("endless", "count -= 1"): "timeout",
        ("endless", "count += 2"): "survived",
        ("endless", "count += 0"): "timeout",
        ("endless", "return None"): "killed",
        ("doubled", "return None"): "killed",
        ("doubled", "return count / 2"): "killed",
        ("doubled", "return count * 3"): "killed",
        ("", "FOUR = doubled(3)"): "killed",
        ("unused", "return None"): "unreached",
        ("unused", "return count - 1"): "unreached",
        ("unused", "return count + 2"): "unreached",
        ("unused", "return count + 0"): "unreached",
    }
    assert {one.by for one in verdicts if one.mutant.after == "if True:"} == {
        "tests/unit/rules/test_policy.py::test_less_than_the_limit_is_allowed"
    }
    assert {one.by for one in verdicts if one.fate == "timeout"} == {
        "tests/unit/rules/test_policy.py::test_it_ends"
    }
    row, everything = rows(verdicts, {verdicts[0].mutant.key: "why"})
    assert (row.mutants, row.killed, row.survived) == (
        everything.mutants,
        everything.killed,
        everything.survived,
    )
    assert row.killed == sum(fate in {"killed", "timeout"} for fate in fates.values())


def test_a_test_that_is_expected_to_notice_is_tried_before_cheaper_ones(plan: Plan) -> None:
    mutant = next(
        one for one in plan.mutants("worker/rules/attempts.py") if one.function == "allowed"
    )
    seen = {"lines": {mutant.file: [mutant.touched[0]]}}
    measured = {
        "tests/test_cheap.py::test_it": {**seen, "seconds": 0.1},
        "tests/test_dear.py::test_it": {**seen, "seconds": 3.0},
    }

    def names(**limits: Any) -> list[str]:
        return [name for name, _ in Choice(measured, [], **limits).tests(mutant, at_import=False)]

    cheap, dear = measured
    assert names() == [cheap, dear]
    assert names(first=["test_dear"]) == [dear, cheap]
    # Whoever expects it has it tried, however little time there is.
    assert names(first=["test_dear"], seconds=1.0) == [dear]
    # So is the one that noticed the same change before the file became another.
    assert names(noticed={mutant.key: dear}) == [dear, cheap]
    assert names(noticed={mutant.key: dear}, first=["test_cheap"]) == [cheap, dear]
    # Of another change in the same function it counts as one that has noticed before.
    assert names(noticed={mutant.key._replace(after="pass"): dear}) == [cheap, dear]
    measured[dear]["seconds"] = 0.4
    assert names(noticed={mutant.key._replace(after="pass"): dear}) == [dear, cheap]


def test_a_test_that_fails_without_any_mutant_judges_nothing(plan: Plan, tiny: Path) -> None:
    with (tiny / "tests" / "unit" / "rules" / "test_policy.py").open("a") as file:
        file.write("\n\ndef test_broken():\n    assert allowed(LIMIT + 1)\n")
    told: list[str] = []
    with crew_for(plan, jobs=1, tell=told.append) as crew:
        names = {
            name
            for mutant in plan.mutants("worker/rules/attempts.py")
            for name, _ in crew.choice.tests(mutant, at_import=False)
        }
    assert told == [
        "fails without any mutant and is left out: tests/unit/rules/test_policy.py::test_broken"
    ]
    assert "tests/unit/rules/test_policy.py::test_broken" not in names
    assert len(names) == 3


def test_a_test_that_holds_only_once_judges_nothing(plan: Plan, tiny: Path) -> None:
    # It passes while the tests are measured, and fails in every fork.
    with (tiny / "tests" / "unit" / "rules" / "test_policy.py").open("a") as file:
        file.write(
            "\n\ndef test_once(calls=[]):\n    calls.append(allowed(0))\n    assert len(calls)"
            " == 1\n"
        )
    verdicts: list[Verdict] = []
    with crew_for(plan, jobs=1, tell=pytest.fail) as crew:
        crew.judge(
            [one for one in plan.mutants("worker/rules/attempts.py") if one.function == "allowed"],
            verdicts.append,
        )
    assert {one.mutant.after for one in verdicts if not one.killed} == {"if count >= LIMIT:"}
    assert "tests/unit/rules/test_policy.py::test_once" not in {one.by for one in verdicts}


def test_what_a_mutant_leaves_behind_does_not_speak_against_the_next(
    plan: Plan, tiny: Path
) -> None:
    # As a script that never ends does to the server that all tests share.
    (tiny / "tests" / "unit" / "rules" / "test_policy.py").write_text(SPOILABLE)
    of_allowed = [
        one for one in plan.mutants("worker/rules/attempts.py") if one.function == "allowed"
    ]
    of_allowed.sort(key=lambda one: one.after == "if count >= LIMIT:")
    verdicts: list[Verdict] = []
    with crew_for(plan, jobs=1, tell=pytest.fail) as crew:
        crew.judge(of_allowed, verdicts.append)
    fates = {one.mutant.after: one.fate for one in verdicts}
    assert fates.pop("if count >= LIMIT:") == "survived"
    assert len(fates) > 3
    assert set(fates.values()) == {"killed"}


def test_what_runs_at_import_and_in_a_test_is_first_judged_where_it_is_loaded(
    plan: Plan, tiny: Path
) -> None:
    with (tiny / "tests" / "unit" / "rules" / "test_policy.py").open("a") as file:
        file.write(
            "\n\nfrom worker.rules.attempts import doubled\n\n\ndef test_twice():\n"
            "    assert doubled(3) == 6\n"
        )
    verdicts: list[Verdict] = []
    with crew_for(plan, jobs=1, tell=pytest.fail) as crew:
        crew.judge(
            [one for one in plan.mutants("worker/rules/attempts.py") if one.function == "doubled"],
            verdicts.append,
        )
    assert [one.by for one in verdicts] == ["tests/unit/rules/test_policy.py::test_twice"] * 3


def test_tests_are_measured_once_while_the_code_and_their_file_are_unchanged(
    plan: Plan, tiny: Path
) -> None:
    measured = tiny / "measured"
    (tiny / "ops" / "lab" / "mutants").mkdir(parents=True)
    judging = tiny / "ops" / "lab" / "mutants" / "crew.py"
    judging.write_text("# one way to judge")
    plan = replace(plan, copied=(*plan.copied, "ops"))
    with crew_for(plan, jobs=1, tell=pytest.fail, measured=measured):
        names = list(json.loads(measured.read_text("utf-8")))
    judging.write_text("# another way to judge")
    assert list(Kept(plan, measured).known(names)) == names
    with crew_for(plan, jobs=1, tell=pytest.fail, measured=measured) as crew:
        mutant = plan.mutants("worker/rules/attempts.py")[-1]
        assert crew.choice.tests(mutant, at_import=True)
    (tiny / "worker" / "rules" / "codes.py").write_text("CODES = ()")
    assert Kept(plan, measured).known(names) == {}


def run(tiny: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    shutil.copytree(
        ROOT / "ops" / "lab" / "mutants", tiny / "ops" / "lab" / "mutants", dirs_exist_ok=True
    )
    (tiny / "ops" / "lab" / "mutants" / "seeds.py").write_text("")
    (tiny / "ops" / "lab" / "mutants" / "explained.toml").write_text(EXPLAINED)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "ops.lab.mutants",
            "--only",
            "attempts.py",
            "--jobs",
            "1",
            *arguments,
        ],
        cwd=tiny,
        env=os.environ | {"PYTHONPATH": str(tiny)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_fails_where_something_survives_unexplained(tiny: Path) -> None:
    (tiny / "worker" / "rules" / "attempts.py").write_text(RULES[: RULES.index("def endless")])
    (tiny / "tests" / "unit" / "rules" / "test_policy.py").write_text(
        TESTS[: TESTS.index("def test_it_ends")].replace(", endless", "").replace("FOUR, ", "")
    )
    found = run(tiny, "--keep", str(tiny / "kept"))
    assert found.returncode == 1
    # The third explanation has lost its mutant.
    assert "there is no such mutant" in found.stderr
    assert "| worker/rules/attempts.py | 8 | 6 | 0 | 2 | 100.0 % |" in found.stdout
    with (tiny / "tests" / "unit" / "rules" / "test_policy.py").open("w") as file:
        file.write(
            "from worker.rules.attempts import allowed\n\n\ndef test_it():\n    assert allowed(0)\n"
        )
    found = run(tiny, "--results", str(tiny / "RESULTS.md"))
    assert found.stdout in (tiny / "RESULTS.md").read_text()
    assert "`./ops/dev mutants --only attempts.py`" in (tiny / "RESULTS.md").read_text()
    assert "worker/rules/attempts.py:5 allowed\n- if count > LIMIT:\n+ if False:" in found.stdout
    # What the better tests had noticed before is believed of an unchanged file.
    assert (
        "| worker/rules/attempts.py | 8 | 6 | 0 | 2 | 100.0 % |"
        in run(tiny, "--keep", str(tiny / "kept")).stdout
    )


def test_an_explanation_needs_a_reason_and_stands_once(tmp_path: Path) -> None:
    path = tmp_path / "explained.toml"
    path.write_text(EXPLAINED)
    assert len(read_explained(path)) == 3
    path.write_text(EXPLAINED.replace("Nobody calls it.", " "))
    with pytest.raises(ValueError, match="no reason"):
        read_explained(path)
    path.write_text(EXPLAINED + EXPLAINED)
    with pytest.raises(ValueError, match="explained twice"):
        read_explained(path)


def test_a_score_is_never_rounded_up_to_the_whole(plan: Plan) -> None:
    mutants = plan.mutants("worker/rules/attempts.py")
    verdicts = [Verdict(mutant=mutant, fate="killed") for mutant in mutants] * 100
    verdicts.append(Verdict(mutant=mutants[0], fate="survived"))
    assert rendered(verdicts, {}).splitlines()[-1].endswith("| 1 | 0 | 99.9 % |")
