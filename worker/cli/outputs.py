"""Files that a command writes: checked as writable before all else, never visible half written.

The files hold customers' data, so only their owner may read them. Rows go to a new file with a
random name, which no other user can have created before.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import click

from worker.cli.session import note
from worker.errors import InputError
from worker.importer.columns import FAILED_COLUMNS
from worker.words import counted

_NAME: Final = 40
_LINE: Final = 64 * 1024
RESULT_ROWS: Final = "with results"
Fill = Callable[[IO[str]], int]
"""Writes rows and returns their number."""
Write = Callable[[Fill, str], None]
"""Writes a whole file, and reports the number of rows; the text describes the rows."""


@contextmanager
def output(file: str, target: Path | None) -> Iterator[Write]:
    """Yield the function that writes `target`, which may not be the input `file`.

    Without a target it does nothing.

    Raises `InputError` at once if `target` cannot be written.
    """
    if target is None:
        yield lambda *_: None
        return
    try:
        if file != "-" and target.exists() and target.samefile(file):
            raise InputError(f"{target} is the input file: choose another file for the output")
        # A device or a pipe, such as the shell's >(…), is written to directly and never replaced.
        plain = target.is_file() or not target.exists()
        out, part = (
            _part(target) if plain else (target.open("w", encoding="utf-8", newline=""), target)
        )
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror}): choose another file"
        ) from None

    def write(fill: Fill, what: str) -> None:
        try:
            rows = fill(out)
            out.close()
            if plain:
                # In one step, so that no reader ever sees half a file.
                part.replace(target)
        except OSError as error:
            raise InputError(
                f"{target} cannot be written ({error.strerror}): choose another file"
            ) from None
        note(f"{counted(rows, 'row')} {what}: {target}")

    try:
        yield write
    finally:
        out.close()
        if plain:
            part.unlink(missing_ok=True)


def _part(target: Path) -> tuple[IO[str], Path]:
    """Open a new file beside the target, under a random name, which only its owner may read."""
    descriptor, name = tempfile.mkstemp(
        prefix=f"{target.name[:_NAME]}.", suffix=".part", dir=target.parent
    )
    return os.fdopen(descriptor, "w", encoding="utf-8", newline=""), Path(name)


def forget(target: Path | None) -> None:
    """Remove an earlier run's file of errors if this run has nothing to write: it would mislead.

    Another file, named by mistake, stays. Raises `InputError` if it cannot be removed.
    """
    if target is None or not target.is_file():
        return
    try:
        if not _is_of_errors(target):
            note(f"no row is invalid: {target} is not a file of errors, and was left as it is")
            return
        target.unlink()
    except OSError as error:
        raise InputError(
            f"{target} is from an earlier run and cannot be removed ({error.strerror}): choose"
            " another file"
        ) from None
    note(f"no row is invalid: {target} from an earlier run was removed")


def _is_of_errors(target: Path) -> bool:
    """Return whether the first line of a file names the columns that only files of errors have."""
    with target.open("rb") as file:
        head = file.readline(_LINE)
    return all(name.encode() in head for name in FAILED_COLUMNS)


def named(_ctx: click.Context, param: click.Parameter, target: Path | None) -> Path | None:
    """Return the file to write; this click callback refuses `-`: the summary goes to stdout."""
    if target == Path("-"):
        raise click.BadParameter(
            "'-' must be a file, because the summary goes to standard output", param=param
        )
    return target


@contextmanager
def standard_output() -> Iterator[Write]:
    """Yield the function that writes to stdout, without changing line ends."""

    def write(fill: Fill, _what: str) -> None:
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
        fill(sys.stdout)

    yield write
