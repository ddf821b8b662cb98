"""The order of the packages: who may import whom, read from the source, and what an import may not
do.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PACKAGE = Path(worker.__file__).parent

# Lowest first. A package, or a module at the top, imports from rows above its own only; those in
# one row do not know each other.
LAYERS = (
    {"errors"},
    {"model"},
    {"rules"},
    {"settings"},
    {"store", "provider", "importer"},
    {"batches", "broker"},
    {"engine", "client", "probing", "callbacks", "reconcile"},
    {"file_import"},
    {"wording"},
    {"__init__"},
    {"process", "monitoring"},
    {"http"},
    {"app"},
    {"tasks"},
    {"cli"},
    {"__main__"},
)

# The same inside the rules, which stand on each other.
RULES = (
    {"codes", "transitions"},
    {"payloads"},
    {"outcomes"},
    {"evidence", "proofs"},
    {"attempts"},
    {"contradictions", "rechecks"},
    {"preflight", "readback"},
    {"polls"},
    {"decisions"},
)

# Imported by nothing but the command line, and free to import everything below the processes.
SANDBOX = "sandbox"
SANDBOX_USERS = {"cli", SANDBOX}

# The clock, chance and the outside: nothing that is pure may reach for them.
OUTSIDE = {
    "celery",
    "kombu",
    "redis",
    "httpx",
    "aiohttp",
    "asyncio",
    "socket",
    "time",
    "random",
    "os",
}

# What a package, or one module of it, knows nothing of, beyond what the order says.
FOREIGN = {
    "errors": OUTSIDE,
    "model": OUTSIDE,
    "rules": OUTSIDE,
    "store": {"celery", "httpx", "aiohttp"},
    "provider": {"celery", "redis"},
    "importer": {"celery", "redis", "httpx", "aiohttp"},
    "broker": {"httpx", "worker.rules"},
    "engine": {"celery"},
    "engine/account": {"celery", "redis", "httpx"},
    "engine/endings": OUTSIDE,
    "engine/provider_state": {"celery", "redis", "httpx"},
    "callbacks": {"celery", "redis", "httpx", "worker.provider"},
    "file_import": {"celery", "redis", "httpx", "aiohttp", "worker.provider"},
    "client": {"httpx", "aiohttp", "worker.provider"},
    "reconcile": {"celery", "httpx", "aiohttp", "worker.provider"},
    "process": {"worker.rules"},
    "http": {"httpx", "worker.provider", "worker.rules", "worker.engine"},
    "app": {"worker.rules", "httpx"},
    "tasks": {"worker.rules", "httpx"},
    "cli": {"httpx"},
}


def modules(package: Path) -> dict[str, list[Path]]:
    """Every module by its first name under the package; a folder counts as one module."""
    found: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        found.setdefault(path.relative_to(package).parts[0].removesuffix(".py"), []).append(path)
    return found


def imported_names(path: Path, package: Path) -> Iterable[str]:
    """The dotted names a file imports anywhere in it, `from a import b` as `a.b`, relative ones
    resolved.
    """
    parents = (package.name, *path.relative_to(package).parent.parts)
    return names_imported_by(path.read_text(encoding="utf-8"), parents)


@cache
def names_imported_by(source: str, parents: tuple[str, ...]) -> tuple[str, ...]:
    """The same of a source in these packages. It is asked for again and again, and read once."""
    return tuple(_names_imported_by(ast.parse(source), parents))


def _names_imported_by(tree: ast.Module, parents: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else ()
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def inside(name: str, known: Mapping[str, object], package: Path) -> str | None:
    """The module of the package that an imported name belongs to.

    A name off the package itself is `__init__`'s.
    """
    root, *rest = name.split(".")
    if root != package.name:
        return None
    return rest[0] if rest and rest[0] in known else "__init__"


def foreign_to(path: Path, package: Path) -> set[str]:
    """What a file may know nothing of: what its package may not, and what it may not by itself."""
    inner = path.relative_to(package).with_suffix("")
    return {*FOREIGN.get(inner.parts[0], ()), *FOREIGN.get(inner.as_posix(), ())}


def breaches(package: Path) -> list[str]:
    """One sentence for each import that breaks the order, and for each module that has no place in
    it.
    """
    rank = {name: row for row, names in enumerate(LAYERS) for name in names}
    known = modules(package)
    found = [
        f"{name} has no place in LAYERS" for name in sorted(known.keys() - rank.keys() - {SANDBOX})
    ]
    for module, paths in known.items():
        names = sorted({name for path in paths for name in imported_names(path, package)})
        for target in sorted({inside(name, known, package) or module for name in names} - {module}):
            if target == SANDBOX:
                allowed = module in SANDBOX_USERS
            elif module == SANDBOX:
                allowed = rank.get(target, 0) < rank["process"]
            else:
                allowed = rank.get(target, 0) < rank.get(module, len(LAYERS))
            if not allowed:
                found.append(f"{module} must not import {target}")
        foreign = {
            (name, other)
            for path in paths
            for name in imported_names(path, package)
            for other in foreign_to(path, package)
        }
        found += sorted(
            {
                f"{module} must not know {name}"
                for name, other in foreign
                if f"{name}.".startswith(f"{other}.")
            }
        )
    return found + breaches_in_rules(package)


def breaches_in_rules(package: Path) -> list[str]:
    """The same of the modules of the rules among each other."""
    rank = {name: row for row, names in enumerate(RULES) for name in names}
    found = []
    for path in sorted((package / "rules").glob("*.py")):
        if path.stem == "__init__":
            continue
        if path.stem not in rank:
            found.append(f"rules/{path.stem} has no place in RULES")
        for name in sorted({*imported_names(path, package)}):
            parts = name.split(".")
            if parts[:2] == [package.name, "rules"] and rank.get(parts[2], 0) >= rank.get(
                path.stem, len(RULES)
            ):
                found.append(f"rules/{path.stem} must not import rules/{parts[2]}")
    return found


def test_every_package_has_its_place_and_imports_only_from_below_it() -> None:
    assert breaches(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "breach"),
    [
        ("model/refund.py", "from worker import rules", "model must not import rules"),
        ("model/refund.py", "from worker.rules import attempts", "model must not import rules"),
        (
            "model/refund.py",
            "from worker.rules.outcomes import classify",
            "model must not import rules",
        ),
        ("model/refund.py", "from .. import rules", "model must not import rules"),
        ("model/refund.py", "def late():\n    import worker.rules", "model must not import rules"),
        (
            "provider/gateway.py",
            "from ..store.store import Store",
            "provider must not import store",
        ),
        ("store/store.py", "from worker import Refunds", "store must not import __init__"),
        (
            "engine/service.py",
            "from worker.sandbox.redis_server import running_server",
            "engine must not import sandbox",
        ),
        ("sandbox/demo.py", "from worker.cli import main", "sandbox must not import cli"),
        ("sandbox/demo.py", "from ..cli import main", "sandbox must not import cli"),
        ("sandbox/demo.py", "from .. import cli", "sandbox must not import cli"),
        (
            "sandbox/demo.py",
            "from worker.process import runtime",
            "sandbox must not import process",
        ),
        ("store/store.py", "import httpx", "store must not know httpx"),
        ("rules/attempts.py", "from time import monotonic", "rules must not know time.monotonic"),
        ("engine/endings.py", "import asyncio", "engine must not know asyncio"),
        (
            "rules/outcomes.py",
            "from worker.rules import attempts",
            "rules/outcomes must not import rules/attempts",
        ),
        (
            "rules/preflight.py",
            "from worker.rules.polls import after_poll",
            "rules/preflight must not import rules/polls",
        ),
        ("rules/extra.py", "import json", "rules/extra has no place in RULES"),
        ("extra.py", "import json", "extra has no place in LAYERS"),
    ],
)
def test_a_planted_breach_is_named(file: str, source: str, breach: str, tmp_path: Path) -> None:
    package = tmp_path / "worker"
    for name in [
        "__init__.py",
        "model/__init__.py",
        "rules/__init__.py",
        "store/__init__.py",
        "cli/__init__.py",
        "process/__init__.py",
        "sandbox/redis_server.py",
        file,
    ]:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    assert breaches(package) == ([breach] if Path(file).stem == "extra" else [])
    (package / file).write_text(source)
    assert breaches(package) == [breach]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("store/store.py", "from worker import model, rules, settings\nimport redis"),
        ("engine/service.py", "import asyncio"),
        ("rules/decisions.py", "from worker.rules import attempts, contradictions"),
        ("cli/group.py", "from worker.sandbox.redis_server import running_server"),
        ("sandbox/demo.py", "from worker import Refunds\nfrom .redis_server import running_server"),
    ],
)
def test_an_import_from_below_is_allowed(file: str, source: str, tmp_path: Path) -> None:
    package = tmp_path / "worker"
    for name in [
        "__init__.py",
        "model/__init__.py",
        "rules/__init__.py",
        "settings/__init__.py",
        "sandbox/redis_server.py",
    ]:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / file).parent.mkdir(parents=True, exist_ok=True)
    (package / file).write_text(source)
    assert breaches(package) == []


def run_python(code: str, *arguments: str, cwd: Path | None = None) -> list[str]:
    """Run code in an interpreter of its own, and return the list of strings it prints as JSON."""
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert run.returncode == 0, run.stderr
    printed: list[str] = json.loads(run.stdout)
    return printed


def loaded_after_importing(*names: str) -> set[str]:
    code = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps([*sys.modules]))"
    )
    return set(run_python(code, *names))


def test_the_producers_door_loads_no_provider_client() -> None:
    doors = ["worker", *(f"worker.{name}" for name in ("client",) if name in modules(PACKAGE))]
    assert not loaded_after_importing(*doors) & {
        "httpx",
        "httpx_aiohttp",
        "aiohttp",
        "worker.provider",
    }


def test_what_reads_records_or_supervises_a_worker_loads_no_celery() -> None:
    loaded = loaded_after_importing("worker.client", "worker.cli.refunds", "worker.cli.worker")
    assert not loaded & {"celery", "kombu", "structlog", "worker.importer"}


def test_the_http_server_loads_no_provider_client_and_no_worker() -> None:
    loaded = loaded_after_importing("worker.http.running", "worker.cli.serve")
    assert not loaded & {"httpx", "httpx_aiohttp", "tenacity"}
    assert not [name for name in loaded if name.startswith(("worker.provider", "worker.engine"))]


CONNECTIONS = """
import importlib, json, sys
seen = []
def watch(event, arguments):
    if event in {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"}:
        seen.append(f"{event} while importing {current}")
sys.addaudithook(watch)
for current in sys.argv[1:]:
    importlib.import_module(current)
print(json.dumps(seen))
"""


def connections_while_importing(names: list[str], folder: Path) -> list[str]:
    return run_python(CONNECTIONS, *names, cwd=folder)


def test_no_module_connects_at_import(tmp_path: Path) -> None:
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for paths in modules(PACKAGE).values()
        for path in paths
        if path.stem != "__main__"
    ]
    assert "worker.errors" in names
    assert connections_while_importing(names, tmp_path) == []


def test_a_module_that_connects_at_import_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "eager.py").write_text("import socket\nsocket.socket().bind(('127.0.0.1', 0))\n")
    assert connections_while_importing(["eager"], tmp_path) == ["socket.bind while importing eager"]
