"""Files that a command leaves behind: known to be writable before anything is done, and never seen half written.

They hold customers' data, so only their owner may read them, and what is written goes to a file that nobody can have
laid there before.
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
from worker.cli.words import counted
from worker.errors import InputError

_NAME: Final = 40
RESULT_ROWS: Final = "with what became of each"
Fill = Callable[[IO[str]], int]
"""Writes rows and says how many."""
Write = Callable[[Fill, str], None]
"""Writes a file whole, and says what is in it: rows of what."""


@contextmanager
def output(file: str, target: Path | None) -> Iterator[Write]:
    """Give the function that writes `target`, which may not be the input `file`; without a target it does nothing.

    Raises `InputError` at once where it cannot be written.
    """
    if target is None:
        yield lambda *_: None
        return
    try:
        if file != "-" and target.exists() and target.samefile(file):
            raise InputError(f"{target} is the file to be read: give what is written a name of its own")
        # A device or a pipe, such as the shell's >(…), is written to and never put aside.
        plain = target.is_file() or not target.exists()
        out, part = _part(target) if plain else (target.open("w", encoding="utf-8", newline=""), target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from None

    def write(fill: Fill, what: str) -> None:
        try:
            rows = fill(out)
            out.close()
            if plain:
                # In one step, so that a reader never finds half a file.
                part.replace(target)
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error.strerror}") from None
        note(f"{counted(rows, 'row')} {what}: {target}")

    try:
        yield write
    finally:
        out.close()
        if plain:
            part.unlink(missing_ok=True)


def _part(target: Path) -> tuple[IO[str], Path]:
    """Open a file beside the target: a new one, under a name that nobody can guess, for its owner alone."""
    descriptor, name = tempfile.mkstemp(prefix=f"{target.name[:_NAME]}.", suffix=".part", dir=target.parent)
    return os.fdopen(descriptor, "w", encoding="utf-8", newline=""), Path(name)


def forget(target: Path | None) -> None:
    """Remove what an earlier run left under a name, where this run has nothing to put there: it would mislead.

    Raises `InputError` where it cannot be removed.
    """
    if target is None or not target.is_file():
        return
    try:
        target.unlink()
    except OSError as error:
        raise InputError(f"{target} is of an earlier run and cannot be removed: {error.strerror}") from None
    note(f"no row was refused: {target} of an earlier run was removed")


def named(_ctx: click.Context, param: click.Parameter, target: Path | None) -> Path | None:
    """Return the file to be written; a click callback that refuses `-`, since stdout is for the summary."""
    if target == Path("-"):
        raise click.BadParameter("standard output is for the summary: name a file", param=param)
    return target


@contextmanager
def standard_output() -> Iterator[Write]:
    """Give the function that writes to stdout, as it is: no line end is changed."""

    def write(fill: Fill, _what: str) -> None:
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
        fill(sys.stdout)

    yield write
