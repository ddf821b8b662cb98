"""The store's own tests on a server that is named to them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from ops.lab.servers.found import Server
from ops.lab.servers.table import Row
from worker.sandbox.redis_server import VARIABLE

ROOT: Final = Path(__file__).resolve().parents[3]
TESTS: Final = ("tests/unit/store", "tests/unit/monitoring/test_health_permissions.py")
SECONDS: Final = 600
_COUNTED: Final = re.compile(r"(\d+) (passed|failed|skipped|error)")


def run(server: Server) -> Row:
    """Run them; each starts servers of the modes that it is about.

    What is skipped is counted in the row.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        "-k",
        "not fake",
        *TESTS,
    ]
    environment = os.environ | {VARIABLE: str(server.path)}
    try:
        ran = subprocess.run(  # noqa: S603 - our own tests
            command,
            cwd=ROOT,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Row.of(
            server,
            "both",
            "default",
            "all rights",
            passed=False,
            result=f"not done after {SECONDS} s",
        )
    last = (ran.stdout.strip().splitlines() or ["pytest said nothing"])[-1]
    counted = {name: int(count) for count, name in _COUNTED.findall(last)}
    result = f"{counted.get('passed', 0)} tests of the store passed"
    if skipped := counted.get("skipped"):
        result += f", {skipped} need WAITAOF"
    if ran.returncode:
        result = f"tests of the store failed: {last}"
    return Row.of(
        server,
        "both",
        "default",
        "all rights",
        passed=ran.returncode == 0,
        result=result,
        trace=ran.stdout[-4000:],
    )
