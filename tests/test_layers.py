"""The order of the modules: who may import whom, read from the source, and what an import may not do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = Path(worker.__file__).parent

# Lowest first. A module imports from rows above its own only; those in one row do not know each other.
LAYERS = (
    {"errors", "ranges", "currencies", "forks", "redaction"},
    {"request"},
    {"model", "envelope", "kept"},
    {"codes"},
    {"payloads"},
    {"answers"},
    {"readback"},
    {"policy"},
    {"contradictions"},
    {"decisions", "endings", "looks", "preflight", "sentinels"},
    {"settings", "connections", "records", "inbox", "heartbeat"},
    {"calls", "transport", "messages", "durability", "wire"},
    {"broker", "store", "gateway", "importer", "telemetry"},
    {
        "lanes",
        "backlog",
        "breaker",
        "intake",
        "consumer",
        "remote",
        "sweeper",
        "switches",
        "rejections",
        "batches",
        "tally",
    },
    {"probing", "metrics", "recovery"},
    {"health"},
    {"recorder", "trouble", "account"},
    {"reconciler", "checker"},
    {"service", "client"},
    {"__init__"},
    {"runtime"},
    {"app"},
    {"tasks", "supervisor"},
    {"cli"},
    {"__main__"},
)

# Imported by nothing but the command line, and free to import everything below that.
SANDBOX = "sandbox"
SANDBOX_USERS = {"cli", SANDBOX}

# The clock, chance and the outside: nothing that is pure may reach for them.
OUTSIDE = {"celery", "kombu", "redis", "httpx", "aiohttp", "asyncio", "socket", "time", "random", "os"}

# What a module knows nothing of, beyond what the order says.
FOREIGN = {
    "errors": OUTSIDE,
    "redaction": OUTSIDE,
    "request": OUTSIDE,
    "model": OUTSIDE,
    "codes": OUTSIDE,
    "payloads": OUTSIDE,
    "answers": OUTSIDE,
    "readback": OUTSIDE,
    "policy": OUTSIDE,
    "endings": OUTSIDE,
    "looks": OUTSIDE,
    "preflight": OUTSIDE,
    "decisions": OUTSIDE,
    "contradictions": OUTSIDE,
    "broker": {"httpx", "worker.policy"},
    "store": {"celery", "httpx", "aiohttp"},
    "gateway": {"celery", "redis"},
    "transport": {"celery", "redis"},
    "importer": {"celery", "redis", "httpx", "aiohttp"},
    "telemetry": {"worker.policy"},
    "service": {"celery"},
    "trouble": {"celery", "redis", "httpx"},
    "account": {"celery", "redis", "httpx"},
    "client": {"httpx", "aiohttp", "worker.gateway"},
    "runtime": {"worker.policy"},
    "app": {"worker.policy", "httpx"},
    "tasks": {"worker.policy", "httpx"},
    "cli": {"httpx"},
}


def modules(package: Path) -> dict[str, list[Path]]:
    """Every module by its first name under the package; a folder counts as one module."""
    found: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        found.setdefault(path.relative_to(package).parts[0].removesuffix(".py"), []).append(path)
    return found


def imported_names(path: Path, package: Path) -> Iterator[str]:
    """The dotted names a file imports anywhere in it, `from a import b` as `a.b`, relative ones resolved."""
    parents = (package.name, *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else ()
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def inside(name: str, known: Mapping[str, object], package: Path) -> str | None:
    """The module of the package that an imported name belongs to; a name off the package itself is `__init__`'s."""
    root, *rest = name.split(".")
    if root != package.name:
        return None
    return rest[0] if rest and rest[0] in known else "__init__"


def breaches(package: Path) -> list[str]:
    """One sentence for each import that breaks the order, and for each module that has no place in it."""
    rank = {name: row for row, names in enumerate(LAYERS) for name in names}
    known = modules(package)
    found = [f"{name} has no place in LAYERS" for name in sorted(known.keys() - rank.keys() - {SANDBOX})]
    for module, paths in known.items():
        names = sorted({name for path in paths for name in imported_names(path, package)})
        for target in sorted({inside(name, known, package) or module for name in names} - {module}):
            if target == SANDBOX:
                allowed = module in SANDBOX_USERS
            elif module == SANDBOX:
                allowed = rank.get(target, 0) < rank["cli"]
            else:
                allowed = rank.get(target, 0) < rank.get(module, len(LAYERS))
            if not allowed:
                found.append(f"{module} must not import {target}")
        found += [
            f"{module} must not know {name}"
            for name in names
            if any(f"{name}.".startswith(f"{foreign}.") for foreign in FOREIGN.get(module, ()))
        ]
    return found


def test_every_module_has_its_place_and_imports_only_from_below_it() -> None:
    assert breaches(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "breach"),
    [
        ("model.py", "from worker import policy", "model must not import policy"),
        ("model.py", "from worker.policy import classify", "model must not import policy"),
        ("model.py", "from . import policy", "model must not import policy"),
        ("model.py", "def late():\n    import worker.policy", "model must not import policy"),
        ("gateway.py", "from .store import Store", "gateway must not import store"),
        ("store.py", "from worker import Refunds", "store must not import __init__"),
        ("service.py", "from worker.sandbox.server import running_server", "service must not import sandbox"),
        ("sandbox/demo.py", "from worker.cli import main", "sandbox must not import cli"),
        ("sandbox/demo.py", "from ..cli import main", "sandbox must not import cli"),
        ("sandbox/demo.py", "from .. import cli", "sandbox must not import cli"),
        ("store.py", "import httpx", "store must not know httpx"),
        ("policy.py", "from time import monotonic", "policy must not know time.monotonic"),
        ("extra.py", "import json", "extra has no place in LAYERS"),
    ],
)
def test_a_planted_breach_is_named(file: str, source: str, breach: str, tmp_path: Path) -> None:
    package = tmp_path / "worker"
    for name in ["__init__.py", "model.py", "policy.py", "store.py", "cli.py", "sandbox/server.py", file]:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    assert breaches(package) == ([] if file != "extra.py" else [breach])
    (package / file).write_text(source)
    assert breaches(package) == [breach]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("store.py", "from worker import model, policy, settings\nimport redis"),
        ("cli.py", "from worker.sandbox.server import running_server"),
        ("sandbox/demo.py", "from worker import Refunds\nfrom .server import running_server"),
    ],
)
def test_an_import_from_below_is_allowed(file: str, source: str, tmp_path: Path) -> None:
    package = tmp_path / "worker"
    for name in ["__init__.py", "model.py", "policy.py", "settings.py", "sandbox/server.py"]:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    (package / file).write_text(source)
    assert breaches(package) == []


def run_python(code: str, *arguments: str, cwd: Path | None = None) -> list[str]:
    """Run code in an interpreter of its own, and return the list of strings it prints as JSON."""
    run = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True, cwd=cwd)
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
    assert not loaded_after_importing(*doors) & {"httpx", "httpx_aiohttp", "aiohttp", "worker.gateway"}


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
