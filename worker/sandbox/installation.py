"""Parts of an installation on this machine: processes, and the sandbox provider as one of them.

The demo, the bench, the proofs and the tests put theirs together from these.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO

from worker.errors import RefundError
from worker.sandbox.running import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

PATIENCE: Final = 60.0
"""Seconds that a process has to end by itself after SIGTERM."""
_LISTENING: Final = "sandbox listening on "


@dataclass(frozen=True, kw_only=True)
class SandboxProcess:
    """A sandbox provider that runs as a process of its own, and the client of its control API."""

    process: subprocess.Popen[str]
    sandbox: Sandbox


def environment(
    variables: Mapping[str, str], *, without: Sequence[str] = ("REFUNDS_",)
) -> dict[str, str]:
    """Return these variables and this process's own.

    Its own leave out those that begin with `without`, so that what is exported changes nothing.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(tuple(without))}
    return own | dict(variables)


@contextmanager
def process(
    command: Sequence[str],
    variables: Mapping[str, str] | None = None,
    log: Path | None = None,
    *,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a process with its stderr in a file if one is given, and end that process on exit."""
    errors: TextIO | None = None if log is None else log.open("w", encoding="utf-8")
    try:
        running = subprocess.Popen(  # noqa: S603 - our own modules, with our own arguments
            command, env=variables, cwd=cwd, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    finally:
        if errors is not None:
            errors.close()
    try:
        yield running
    finally:
        end([running])
        if running.stdout is not None:
            running.stdout.close()


def end(processes: Iterable[subprocess.Popen[str] | subprocess.Popen[bytes]]) -> None:
    """End processes in good order with SIGTERM, and after `PATIENCE` with SIGKILL."""
    started = list(processes)
    for running in started:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
    last = time.monotonic() + PATIENCE
    for running in started:
        try:
            running.wait(timeout=max(0.1, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextmanager
def sandbox_process(
    *options: str, log: Path | None = None, cwd: Path | None = None
) -> Iterator[SandboxProcess]:
    """Run `refunds sandbox` on a free port with these options; raises `RefundError` if it fails."""
    command = [sys.executable, "-m", "worker.sandbox", "--port", "0", *options]
    with process(command, log=log, cwd=cwd) as running:
        for line in running.stdout or ():
            if line.startswith(_LISTENING):
                url = line.removeprefix(_LISTENING).strip()
                yield SandboxProcess(process=running, sandbox=Sandbox(url=url))
                return
        raise RefundError("the sandbox provider did not start: run 'refunds sandbox' to see why")
