"""What is mutated, and which tests are to notice."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.lab.mutants.change import Mutant
from ops.lab.mutants.lua import lua_mutants
from ops.lab.mutants.python import python_mutants

ROOT: Final = Path(__file__).resolve().parents[3]
SEEDS: Final = "ops/lab/mutants/seeds.py"
"""Worlds of the simulation, one test a seed."""

_RULES: Final = tuple(
    f"worker/{name}.py"
    for name in (
        "rules/transitions",
        "rules/attempts",
        "rules/proofs",
        "rules/readback",
        "rules/polls",
        "rules/preflight",
        "rules/decisions",
        "rules/contradictions",
        "rules/rechecks",
        "rules/outcomes",
        "rules/payloads",
        "rules/codes",
        "rules/evidence",
        "engine/endings",
        "model/hints",
        "model/signatures",
    )
)
_SHELL: Final = tuple(
    f"worker/{name}.py"
    for name in (
        "store/commands",
        "store/store",
        "store/async_store",
        "store/durability",
        "store/scripts",
        "store/creations",
        "store/claims",
        "store/saves",
        "store/reads",
        "store/sweeps",
        "store/gate",
        "store/account_facts",
        "store/meta",
        "store/record_time",
        "store/callbacks",
        "callbacks/addresses",
        "callbacks/delivery",
        "callbacks/endpoints",
        "callbacks/guard",
        "callbacks/pace",
        "callbacks/payload",
        "callbacks/posting",
        "callbacks/retries",
        "callbacks/signing",
        "engine/service",
        "engine/actions",
        "engine/claimer",
        "engine/attempt_runner",
        "engine/poller",
        "engine/positions",
        "engine/provider_state",
        "engine/recorder",
        "engine/readback_runner",
        "engine/checker",
        "engine/account",
        "engine/candidates",
        "engine/rechecker",
        "store/rechecks",
    )
)
_HTTP: Final = tuple(
    f"worker/http/{name}.py"
    for name in (
        "auth",
        "bodies",
        "creations",
        "nudges",
        "queries",
        "refunds",
        "waiters",
        "webhooks",
    )
)
_RECONCILE: Final = tuple(
    f"worker/reconcile/{name}.py"
    for name in ("books", "comparing", "export", "mapping", "settled", "totals", "window")
)
_HTTP_TESTS: Final = ("tests/unit/http",)
_RECONCILE_TESTS: Final = (
    "tests/unit/reconcile",
    "tests/unit/cli/test_cli_reconcile.py",
    "tests/unit/cli/test_cli_totals.py",
)
_RULES_TESTS: Final = (
    "tests/unit/rules",
    "tests/unit/model/test_redaction.py",
    "tests/unit/model/test_hints.py",
    "tests/unit/model/test_signatures.py",
    "tests/unit/engine/test_endings.py",
    "tests/unit/store",
    SEEDS,
)
_SHELL_TESTS: Final = (
    *_RULES_TESTS,
    "tests/unit/batches",
    "tests/unit/callbacks",
    "tests/unit/client",
    "tests/unit/engine",
    "tests/unit/cli/test_cli_batch.py",
    "tests/unit/cli/test_cli_import.py",
    "tests/unit/monitoring/test_metrics.py",
)
_COPIED: Final = (
    "worker",
    "tests",
    "ops/lab/mutants",
    "ops/lab/tools",
    "ops/docs/error-codes.md",
    "pyproject.toml",
    "README.md",
)
_LUA: Final = "worker/store/lua"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checkout's targets, the tests that judge them, and what has to be copied to run those."""

    root: Path = ROOT
    targets: tuple[str, ...]
    tests: tuple[str, ...]
    copied: tuple[str, ...]
    spare_seconds: float = 12.0
    """A test may take so much longer than without a mutant, before it counts as hanging."""
    few: int = 20
    """So many worlds are played for every mutant; all of them before one is called a survivor."""

    def source(self, file: str) -> str:
        """Return a target's text."""
        return (self.root / file).read_text("utf-8")

    def mutants(self, file: str) -> list[Mutant]:
        """Return every mutant of a target."""
        if not file.endswith(".lua"):
            return python_mutants(self.source(file), file)
        from worker.store.scripts import SHARED  # noqa: PLC0415 - a checkout may have no scripts

        before = [f"{_LUA}/{name}.lua" for name in SHARED]
        if file in before:
            del before[before.index(file) :]
        return lua_mutants(self.source(file), file, "\n".join(map(self.source, before)))


def checkout(parts: Collection[str] = ()) -> Plan:
    """Return the plan for this checkout: all targets, or those whose path holds one of the
    parts.
    """
    scripts = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / _LUA).glob("*.lua"))
    groups = {
        _RULES: _RULES_TESTS,
        (*_SHELL, *scripts): _SHELL_TESTS,
        _HTTP: _HTTP_TESTS,
        _RECONCILE: _RECONCILE_TESTS,
    }
    targets = tuple(
        name
        for names in groups
        for name in names
        if not parts or any(part in name for part in parts)
    )
    tests = dict.fromkeys(
        test for names, tests in groups.items() if {*targets} & {*names} for test in tests
    )
    return Plan(
        targets=targets,
        tests=tuple(name for name in tests if (ROOT / name).exists()),
        copied=tuple(name for name in _COPIED if (ROOT / name).exists()),
    )
